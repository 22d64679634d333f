"""Queries that are chosen from the encoder's tokens, each with a place of its own.

Learned queries have to be told apart by training alone, which many small equal objects make slow.
Here every token is classified, and those most likely to be objects become queries (Deformable DETR,
§A.4; Mask DINO, §3.2): content from the token, position from its place. That place also serves
the masks, as relative coordinates (CondInst, §3.1), and the matching, as a spatial prior (DeFCN,
§3.1).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proscale.modeling.pixel_decoders.deformable_encoder import cell_centres
from proscale.ops.selection import largest
from proscale.utils.types import Size

#: Cells of the mask features along one unit of the relative coordinates: about a small object.
CELLS_PER_UNIT = 8.0
#: Radius of a new query's mask, in units, and its logit at the centre.
INITIAL_RADIUS, INITIAL_LOGIT = 0.5, 2.0


class SelectedQueries(NamedTuple):
    """Queries of tokens: content and positions ``(B, K, C)``, and ``places`` ``(B, K, 2)`` as
    (x, y) in (0, 1), the centres of their tokens' cells."""

    content: Tensor
    position: Tensor
    places: Tensor


class QuerySelection(nn.Module):
    """Choose the tokens that are most likely to be objects.

    Args:
        hidden_dim: width C of the tokens and queries.
        count: queries of an image when training.
        test_count: of an image otherwise; there may be more objects than in a crop.
    """

    def __init__(self, hidden_dim: int, count: int, test_count: int):
        super().__init__()
        self.proposal = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        nn.init.xavier_uniform_(self.proposal.weight)
        self.count, self.test_count = count, test_count

    def forward(
        self,
        tokens: Sequence[Tensor],
        positions: Sequence[Tensor],
        sizes: Sequence[Size],
        classify: Callable[[Tensor], Tensor],
    ) -> SelectedQueries:
        """Queries of an image's K best tokens, or of all if there are fewer.

        Args:
            tokens, positions, sizes: of each level, ``(B, h·w, C)``, ``(h·w, C)`` and (h, w).
            classify: from ``(B, N, C)`` to class logits ``(B, N, K + 1)``, “no object” last.
        """
        # Every token proposes an object.
        proposals = self.norm(self.proposal(torch.cat(list(tokens), dim=1)))
        # The best by the probability of their likeliest class. Which ones is no function to be
        # derived: their classes and masks are learned as the decoder's first prediction.
        with torch.no_grad():
            scores = classify(proposals).softmax(-1)[..., :-1].amax(-1)
            count = self.count if self.training else self.test_count
            chosen = largest(scores, count)
        content = proposals.gather(1, chosen[..., None].expand(-1, -1, proposals.shape[2]))
        # Positions are those of the keys, so that a query's place is found again in every level.
        places = cell_centres(tuple(sizes), chosen.device)
        return SelectedQueries(content, torch.cat(list(positions))[chosen], places[chosen])


class RelativeCoordinates(nn.Module):
    """Masks that know how far a pixel is from the query's place.

    To the logit of query q at pixel p is added ``b - w_x (x - x_q)² - w_y (y - y_q)²``: equal
    objects differ by their places, and a mask is an ellipse before the features have been learned.
    Centre, widths and b are predicted from the query. The polynomial is a product of five numbers
    of the query and five of the pixel, so that both are appended to the embeddings: masks stay one
    product.

    Args:
        hidden_dim: width C of the queries.
    """

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.ellipse = nn.Linear(hidden_dim, 5)
        # At first a circle around the place.
        nn.init.zeros_(self.ellipse.weight)
        width = math.log(INITIAL_LOGIT / INITIAL_RADIUS**2)
        with torch.no_grad():
            self.ellipse.bias.copy_(torch.tensor([0.0, 0.0, width, width, INITIAL_LOGIT]))

    def extend_features(self, features: Tensor) -> Tensor:
        """Append x², y², x, y and 1 to ``(B, C, H, W)`` mask features: ``(B, C + 5, H, W)``."""
        batch, _, height, width = features.shape
        place = cell_centres(((height, width),), features.device).to(features.dtype)
        x, y = self._units(place, (height, width)).unbind(-1)
        polynomial = torch.stack((x * x, y * y, x, y, torch.ones_like(x)))
        polynomial = polynomial.view(1, 5, height, width).expand(batch, -1, -1, -1)
        return torch.cat((features, polynomial), dim=1)

    def extend_embeddings(
        self, embeddings: Tensor, queries: Tensor, places: Tensor, size: Size
    ) -> Tensor:
        """Append each query's polynomial to its mask embedding.

        Args:
            embeddings: ``(B, Q, mask_dim)``.
            queries: ``(B, Q, C)``, normalised.
            places: ``(B, K, 2)`` as (x, y) in [0, 1] of the last K queries; the others, learned,
                have no place, and zeros.
            size: (H, W) of the mask features.

        Returns:
            ``(B, Q, mask_dim + 5)``.
        """
        learned = queries.shape[1] - places.shape[1]
        shape = self.ellipse(queries[:, learned:])
        centre = self._units(places, size) + shape[..., :2]
        widths, logit = shape[..., 2:4].exp(), shape[..., 4:]
        # -w (x - x_q)² = -w x² + 2 w x_q x - w x_q²
        constant = logit - (widths * centre**2).sum(-1, keepdim=True)
        polynomial = torch.cat((-widths, 2 * widths * centre, constant), dim=-1)
        nowhere = polynomial.new_zeros(len(polynomial), learned, 5)
        return torch.cat((embeddings, torch.cat((nowhere, polynomial), dim=1)), dim=-1)

    @staticmethod
    def _units(places: Tensor, size: Size) -> Tensor:
        # From the middle of the map, which keeps the numbers small.
        x, y = (places - 0.5).unbind(-1)
        return torch.stack((x * size[1], y * size[0]), dim=-1) / CELLS_PER_UNIT
