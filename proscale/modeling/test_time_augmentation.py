"""Test-time augmentation: one result from several scales of an image, and their mirror images.

Semantic scores of the views are averaged. The third query of one view has nothing to do with the
third of another: for panoptic and instance results queries are matched first, by their masks, and
matched queries are averaged. Inference goes on as with a single view.
"""

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import ImageList
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proscale.modeling.postprocessing import Collector, SemanticScores
from proscale.modeling.segmenter import MaskFormer
from proscale.ops.mask_resize import Sizes, mask_probabilities
from proscale.utils.types import Size

MASK_STRIDE = 4
"""Pixels of the largest view for one of the masks that are averaged, as in the model itself."""


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap ``model`` in the views of ``TEST.AUG``: ``MIN_SIZES``, ``MAX_SIZE`` and ``FLIP``.

    ``model`` is a ``MaskFormer``, for all of its results, or returns ``sem_seg`` scores.
    """
    # Views are no batches to be split over processes.
    if isinstance(model, DistributedDataParallel):
        model = model.module
    mapper = DatasetMapperTTA(cfg)
    if isinstance(model, MaskFormer):
        return MaskFormerWithTTA(model, mapper)
    return SemanticSegmentorWithTTA(model, mapper)


class SemanticSegmentorWithTTA(nn.Module):
    """Averages a model's ``sem_seg`` scores ``(K, H, W)`` over the views that ``mapper`` makes."""

    def __init__(self, model: nn.Module, mapper: DatasetMapperTTA):
        super().__init__()
        self.model = model
        self.mapper = mapper

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the model's in evaluation; results have the size of ``height`` and ``width``."""
        results = []
        for sample in batched_inputs:
            height, width = sample["image"].shape[-2:]
            results.append(self._segment({"height": height, "width": width, **sample}))
        return results

    def _segment(self, sample: dict) -> dict:
        views = self.mapper(sample)
        total: Tensor | None = None
        for view in views:
            # One view at a time is in the model; its scores have the image's size.
            (result,) = self.model([view])
            scores = _unflip(result["sem_seg"], view)
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return {"sem_seg": total / len(views)}


class MaskFormerWithTTA(SemanticSegmentorWithTTA):
    """All results of a ``MaskFormer``, whose switches and thresholds apply."""

    model: MaskFormer

    def _segment(self, sample: dict) -> dict:
        model, size = self.model, (sample["height"], sample["width"])
        views = self.mapper(sample)
        # Masks of all views are compared on one grid, a quarter of the largest view's size.
        largest = max((view["image"].shape[-2:] for view in views), key=lambda s: s[0] * s[1])
        grid = (-(-largest[0] // MASK_STRIDE), -(-largest[1] // MASK_STRIDE))
        fusion = QueryFusion()
        scores: Tensor | None = None
        for view in views:
            class_logits, mask_logits, sizes = self._predict(view["image"], size)
            if model.semantic_on:
                collector: dict[str, Collector] = {"": SemanticScores(class_logits, size)}
                of_view = _unflip(model.collect(collector, mask_logits, sizes)[""], view)
                scores = of_view if scores is None else scores.add_(of_view)
            if model.panoptic_on or model.instance_on:
                # Queries that predict “no object” take part in no view.
                probabilities = class_logits.float().softmax(-1)
                queries = (probabilities.argmax(-1) < probabilities.shape[1] - 1).nonzero()[:, 0]
                masks = mask_logits.new_zeros((0, *grid), dtype=torch.float32)
                if len(queries):
                    # All rows of the grid, strip by strip.
                    strips = mask_probabilities(
                        mask_logits,
                        queries,
                        Sizes(padded=sizes.padded, image=sizes.image, result=grid),
                        resize_first=True,
                        strip_bytes=model.strip_bytes,
                    )
                    masks = torch.cat([strip for _, strip in strips], dim=1)
                fusion.add(probabilities[queries], _unflip(masks, view))
        results: dict = {}
        if scores is not None:
            scores /= len(views)
            results["sem_seg"] = scores.argmax(0) if model.semantic_labels_only else scores
        if model.panoptic_on or model.instance_on:
            # The averaged masks are the logits of a single view that covers the whole result.
            class_logits, mask_logits = fusion.result()
            sizes = Sizes(padded=size, image=size, result=size)
            collectors = model.segment_collectors(class_logits, size)
            results |= model.collect(collectors, mask_logits, sizes)
        return results

    def _predict(self, image: Tensor, size: Size) -> tuple[Tensor, Tensor, Sizes]:
        """Logits of the queries' classes ``(Q, K + 1)`` and masks ``(Q, h, w)``."""
        # A view is padded as any image.
        model = self.model
        images = ImageList.from_tensors([model.normalise(image)], model.size_divisibility)
        outputs = model.infer(images.tensor)
        sizes = Sizes(
            padded=(images.tensor.shape[2], images.tensor.shape[3]),
            image=(image.shape[1], image.shape[2]),
            result=size,
        )
        return outputs["pred_logits"][0], outputs["pred_masks"][0], sizes


class QueryFusion:
    """Averages the queries of several views, having found out which ones mean the same.

    A query joins the one of the views before whose mean mask it overlaps with an IoU of more than
    one half; a query without such a partner is a new one.
    """

    probabilities: Tensor  #: ``(M, K + 1)`` sums over the views that have the query
    masks: Tensor  #: ``(M, h, w)`` likewise
    counts: Tensor  #: ``(M,)`` how many these are

    def __init__(self) -> None:
        self.num_views = 0

    def add(self, probabilities: Tensor, masks: Tensor) -> None:
        """Add the queries of a view: ``(N, K + 1)`` class probabilities, “no object” last, and
        ``(N, h, w)`` masks in [0, 1], h and w being the same in all views."""
        self.num_views += 1
        if self.num_views == 1:
            self.probabilities, self.masks = probabilities.clone(), masks.clone()
            self.counts = probabilities.new_ones(len(probabilities))
            return
        # Partners are added up, queries without one are appended.
        known, new = self._partners(probabilities, masks)
        self.probabilities[known] += probabilities[new]
        self.masks[known] += masks[new]
        self.counts[known] += 1
        # New queries: those of this view that found no partner.
        alone = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        alone[new] = False
        self.probabilities = torch.cat([self.probabilities, probabilities[alone]])
        self.masks = torch.cat([self.masks, masks[alone]])
        self.counts = torch.cat([self.counts, self.counts.new_ones(int(alone.sum()))])

    def result(self) -> tuple[Tensor, Tensor]:
        """Logits of the M queries' classes ``(M, K + 1)`` and masks ``(M, h, w)``."""
        # Views without the query vote for “no object”; masks are averaged over the others.
        probabilities = self.probabilities / self.num_views
        probabilities[:, -1] += 1 - self.counts / self.num_views
        masks = self.masks / self.counts[:, None, None]
        return probabilities.clamp_min(1e-30).log(), masks.logit(eps=1e-6)

    def _partners(self, probabilities: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of queries known and of new ones that mean the same."""
        # IoU of every pair of binary masks, (M, N).
        old = (self.masks > 0.5 * self.counts[:, None, None]).flatten(1).float()
        new = (masks > 0.5).flatten(1).float()
        # |A ∩ B|; |A ∪ B| = |A| + |B| - |A ∩ B|.
        common = old @ new.T
        iou = common / (old.sum(1)[:, None] + new.sum(1) - common).clamp_min(1)
        # Σ over classes of the product of their probabilities: equal masks go by equal classes.
        agreement = (self.probabilities / self.counts[:, None])[:, :-1] @ probabilities[:, :-1].T
        # Above one half, a segment has one partner at most, as in panoptic quality.
        is_same = iou > 0.5
        # The assignment of the most IoU and agreement. Pairs that may not be are worth nothing.
        rows, columns = linear_sum_assignment(
            torch.where(is_same, iou + agreement, 0).cpu().numpy(), maximize=True
        )
        # Back from SciPy, without the pairs that may not be.
        rows, columns = (torch.from_numpy(i).to(masks.device) for i in (rows, columns))
        chosen = is_same[rows, columns]
        return rows[chosen], columns[chosen]


def _unflip(maps: Tensor, view: dict) -> Tensor:
    """``(…, H, W)`` as they lie in the image that the view is of."""
    # The mapper says which transforms made the view.
    is_flipped = any(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
    return maps.flip(-1) if is_flipped else maps
