"""Heatmaps of keypoints: targets with one Gaussian each, and keypoints from maxima.

The codec of simple top-down baselines (Xiao et al., ECCV 2018, §2; Newell et al., Stacked
Hourglass, ECCV 2016, for the quarter of a cell), as SegFormer++ trains and tests with it.
Coordinates are pixel indices of the input image: a whole number is the centre of a pixel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# A decoded maximum is moved towards its larger neighbour by this part of a cell.
_OFFSET = 0.25
# Cells at which a map without a positive value is decoded.
_NOWHERE = -1.0


class HeatmapCodec:
    """Encodes keypoints in an input image as heatmaps, and decodes them.

    Args:
        input_size: (W, H) of the input image, pixels.
        heatmap_size: (w, h) of the heatmaps, cells.
        sigma: standard deviation of the Gaussians, cells.
    """

    def __init__(self, input_size: Sequence[int], heatmap_size: Sequence[int], sigma: float = 3.0):
        self.input_size, self.heatmap_size = tuple(input_size), tuple(heatmap_size)
        self.sigma = sigma
        # Pixels of a cell along x and y.
        self.stride = tuple(
            pixels / cells for pixels, cells in zip(input_size, heatmap_size, strict=True)
        )

    def encode(
        self, keypoints: Tensor | np.ndarray, visible: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Targets of N persons.

        Args:
            keypoints: ``(N, K, 2)``, x and y in the input image; they may lie outside of it.
            visible: ``(N, K)``, 1 of labelled keypoints, else 0.

        Returns:
            heatmaps ``(N, K, h, w)`` with a peak of 1, zero without a target; weights ``(N, K)``,
            ``visible`` where the keypoint has a target, else 0.
        """
        keypoints, visible = torch.as_tensor(keypoints).float(), torch.as_tensor(visible).float()
        # The centre is the nearest cell, truncated towards zero as published: −0.25 is in cell 0.
        centres = (keypoints / keypoints.new_tensor(self.stride) + 0.5).trunc()
        # Each Gaussian fills a square of 3σ to each side; it has a target if that meets the map.
        radius = int(3 * self.sigma)
        sizes = centres.new_tensor(self.heatmap_size)
        meets = (centres - radius < sizes) & (centres + radius + 1 >= 0)
        weights = visible * meets.all(-1)
        # exp(−(dx² + dy²) / 2σ²) is a product of one factor along x and one along y.
        along_x, along_y = (
            self._gaussian(centres[..., axis], length, radius)
            for axis, length in enumerate(self.heatmap_size)
        )
        heatmaps = along_y[..., :, None] * along_x[..., None, :]
        return heatmaps * (weights > 0)[..., None, None], weights

    def _gaussian(self, centres: Tensor, length: int, radius: int) -> Tensor:
        """``(N, K)`` cells to ``(N, K, length)``, zero farther than ``radius`` cells."""
        distances = torch.arange(length, device=centres.device) - centres[..., None]
        values = (-distances.square() / (2 * self.sigma**2)).exp()
        return values * (distances.abs() <= radius)

    def decode(self, heatmaps: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """The maximum of every map, moved a quarter of a cell towards its larger neighbours.

        Args:
            heatmaps: ``(N, K, h, w)``, of any range.

        Returns:
            keypoints ``(N, K, 2)``, x and y in the input image, one cell outside of it for a map
            without a positive value; scores ``(N, K)``, the maxima.
        """
        maps = torch.as_tensor(heatmaps)
        height, width = maps.shape[-2:]
        # Of equal maxima the first one in row-major order.
        flat = maps.flatten(-2)
        scores, cells = flat.max(-1).values, flat.argmax(-1)
        x, y = cells % width, cells // width

        def neighbours(dx: int, dy: int) -> Tensor:
            # Those outside are looked up at the border; they do not count, see below.
            column, row = (x + dx).clamp(0, width - 1), (y + dy).clamp(0, height - 1)
            return flat.gather(-1, (row * width + column)[..., None])[..., 0]

        # Published: a cell of the first row or column stays, one of the second does not move
        # across it, nor does one of the last.
        moves_x = (x > 1) & (x < width - 1) & (y > 0)
        moves_y = (y > 1) & (y < height - 1) & (x > 0)
        offset_x = _OFFSET * (neighbours(1, 0) - neighbours(-1, 0)).sign() * moves_x
        offset_y = _OFFSET * (neighbours(0, 1) - neighbours(0, -1)).sign() * moves_y
        found = torch.stack((x + offset_x, y + offset_y), -1)
        found = torch.where(scores[..., None] > 0, found, _NOWHERE)
        # Cells to pixels.
        return found * found.new_tensor(self.stride), scores


def flip_heatmaps(heatmaps: Tensor, flip_indices: Sequence[int], shift: bool = True) -> Tensor:
    """Heatmaps of a mirrored image as those of the image.

    Args:
        heatmaps: ``(N, K, h, w)``.
        flip_indices: of each keypoint its counterpart on the other side of the body.
        shift: move them one cell to the right, because the centres of a map's cells and those of
            its mirror image do not coincide in the image (published; the first column stays).
    """
    flipped = torch.as_tensor(heatmaps).flip(-1)[:, list(flip_indices)]
    if shift:
        flipped = torch.cat((flipped[..., :1], flipped[..., :-1]), -1)
    return flipped


def heatmap_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error of heatmaps ``(N, K, h, w)``, of each weighted by ``weights`` ``(N, K)``.

    As published, maps of weight 0 count in the denominator.
    """
    return (weights[..., None, None] * (predicted - target).square()).mean()
