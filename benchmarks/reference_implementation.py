"""The reference implementation: the same models computed the straightforward way, for comparison.

Modules run the published models' operators, as a tracer sees them: no work in blocks, frozen norms
behind their convolutions, masks of all queries with their gradients. Deformable attention samples
by ``grid_sample``, level by level. Results are made one after the other, from all masks at full
size, resized twice. Slow and large, and short enough to be read.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling import MaskFormer
from proscale.ops import reference_operators, using_backend
from proscale.ops.deformable_attention import REFERENCE
from proscale.ops.mask_resize import Sizes
from proscale.utils.types import Size

#: Of :func:`differences` in float32: both implementations sum in another order, and a query's place
#: in the panoptic map hangs by such a sum.
TOLERANCE = 1e-3


@contextmanager
def reference_implementation(model: nn.Module) -> Iterator[None]:
    """Within it the model computes the straightforward way."""
    with ExitStack() as stack:
        stack.enter_context(reference_operators())
        stack.enter_context(using_backend(REFERENCE))
        if isinstance(model, MaskFormer):
            stack.enter_context(patch.object(model, "results", partial(results, model)))
        yield


def results(
    model: MaskFormer,
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    padded_size: Size,
    image_size: Size,
    sample: dict,
) -> dict:
    """Results of one image, by name; ``instances`` as :func:`instances` has them."""
    size = (sample.get("height", image_size[0]), sample.get("width", image_size[1]))
    sizes = Sizes(padded_size, image_size, size)
    masks = mask_probabilities(mask_logits, sizes, resize_first=model.resize_first)
    found: dict = {}
    if model.semantic_on:
        scores = semantic(class_logits, masks)
        found["sem_seg"] = scores.argmax(0) if model.semantic_labels_only else scores
    if model.panoptic_on:
        found["panoptic_seg"] = panoptic(
            class_logits,
            masks,
            things=model.things,
            score_threshold=model.object_mask_threshold,
            overlap_threshold=model.overlap_threshold,
        )
    if model.instance_on:
        found["instances"] = instances(
            class_logits,
            masks,
            max_instances=model.max_instances,
            things=model.things if model.panoptic_on else None,
        )
    return found


def resized(maps: Tensor, size: Size) -> Tensor:
    """``(N, h, w)`` to ``(N, *size)``, bilinearly."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def crop_and_resize(maps: Tensor, sizes: Sizes) -> Tensor:
    """Maps of the padded size to the result's."""
    return resized(maps[:, : sizes.image[0], : sizes.image[1]], sizes.result)


def mask_probabilities(mask_logits: Tensor, sizes: Sizes, *, resize_first: bool) -> Tensor:
    """``(Q, h, w)`` logits to ``(Q, H, W)`` probabilities of the result's size."""
    masks = resized(mask_logits.float(), sizes.padded)
    if resize_first:
        return crop_and_resize(masks, sizes).sigmoid()
    return crop_and_resize(masks.sigmoid(), sizes)


def semantic(class_logits: Tensor, masks: Tensor) -> Tensor:
    """Scores ``(K, H, W)`` of all classes."""
    return torch.einsum("qc,qhw->chw", class_logits.float().softmax(-1)[:, :-1], masks)


def panoptic(
    class_logits: Tensor,
    masks: Tensor,
    *,
    things: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict]]:
    """Map ``(H, W)`` and segments, as :class:`~proscale.modeling.postprocessing.PanopticMap`."""
    scores, labels = class_logits.float().softmax(-1).max(-1)
    queries = [
        q
        for q in range(len(class_logits))
        if labels[q] != class_logits.shape[1] - 1 and scores[q] > score_threshold
    ]
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    segments: list[dict] = []
    fused: dict[int, int] = {}
    if not queries:
        return ids, segments
    winner = torch.stack([scores[q] * masks[q] for q in queries]).argmax(0)
    for place, q in enumerate(queries):
        won, own = winner == place, masks[q] >= 0.5
        label = int(labels[q])
        if not (won & own).any() or won.sum() / own.sum() < overlap_threshold:
            continue
        if label not in things and label in fused:
            ids[won & own] = fused[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
        fused[label] = len(segments)
        ids[won & own] = len(segments)
    return ids, segments


def instances(
    class_logits: Tensor,
    masks: Tensor,
    *,
    max_instances: int,
    things: Collection[int] | None,
) -> list[tuple[float, int, Tensor, list[int]]]:
    """Score, class, mask and box of each; the best first."""
    pairs = [
        (probability, query, label)
        for query, row in enumerate(class_logits.float().softmax(-1)[:, :-1].tolist())
        for label, probability in enumerate(row)
    ]
    found = []
    for probability, query, label in sorted(pairs, reverse=True)[:max_instances]:
        if things is not None and label not in things:
            continue
        mask = masks[query] > 0.5
        quality = masks[query][mask].sum() / (mask.sum() + 1e-6)
        found.append((probability * quality.item(), label, mask, box(mask)))
    return sorted(found, key=lambda instance: instance[0], reverse=True)


def box(mask: Tensor) -> list[int]:
    """[x0, y0, x1, y1], the far corner exclusive; zeros if there is no pixel."""
    rows, columns = mask.nonzero(as_tuple=True)
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def differences(fast: dict, slow: dict) -> dict[str, float]:
    """Distance of an image's results from those of the reference implementation, by kind.

    Semantic scores and instance scores by the greatest difference, over the greatest score;
    semantic labels and panoptic maps by the fraction of pixels that differ, infinite where classes
    of segments do.
    """
    found = {}
    if "sem_seg" in slow:
        one, other = fast["sem_seg"], slow["sem_seg"]
        found["semantic"] = (
            ((one - other).abs().max() / other.abs().max()).item()
            if other.is_floating_point()
            else (one != other).float().mean().item()
        )
    if "panoptic_seg" in slow:
        (one, segments), (other, expected) = fast["panoptic_seg"], slow["panoptic_seg"]
        same = [s["category_id"] for s in segments] == [s["category_id"] for s in expected]
        found["panoptic"] = (one != other).float().mean().item() if same else float("inf")
    if "instances" in slow:
        scores = fast["instances"].scores.float().sort(descending=True).values
        expected = scores.new_tensor([score for score, *_ in slow["instances"]])
        if len(scores) != len(expected):
            found["instances"] = float("inf")
        elif len(scores):
            found["instances"] = ((scores - expected).abs().max() / expected.max()).item()
    return found
