"""The meta-architecture of detection: images to boxes, and losses or results."""

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from proscale.modeling.detection.boxes import keep_best, relative_boxes
from proscale.modeling.detection.criterion import DetectionCriterion, DetectionMatcher
from proscale.modeling.detection.deformable_detr import DeformableDETRHead
from proscale.modeling.detection.denoising import DenoisingQueries
from proscale.modeling.detection.dino import DINOHead
from proscale.modeling.image_model import ImageModel, image_model_arguments
from proscale.utils.types import Size

Head = DINOHead | DeformableDETRHead

# By MODEL.DETECTOR.QUERIES: the head, and the weight of its class loss (DINO, §D; Deformable
# DETR's code).
_HEADS: dict[str, tuple[type[Head], float]] = {
    "mixed": (DINOHead, 1.0),
    "deformable": (DeformableDETRHead, 2.0),
    "learned": (DeformableDETRHead, 2.0),
}


@META_ARCH_REGISTRY.register()
class Detector(ImageModel):
    """Objects as boxes with classes.

    Args:
        backbone, pixel_mean, pixel_std, size_divisibility, inference_dtype, channels_last: see
            :class:`~proscale.modeling.image_model.ImageModel`.
        detection_head: DINO or Deformable DETR.
        criterion: losses of the head's outputs.
        max_detections: boxes per image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        detection_head: Head,
        criterion: DetectionCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        inference_dtype: str,
        channels_last: bool,
        max_detections: int,
    ):
        super().__init__(
            backbone=backbone,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
            inference_dtype=inference_dtype,
            channels_last=channels_last,
        )
        self.detection_head = detection_head
        self.criterion = criterion
        self.max_detections = max_detections
        self.use_layout()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        arguments, node = image_model_arguments(cfg), cfg.MODEL.DETECTOR
        head, class_weight = _HEADS[node.QUERIES]
        return {
            **arguments,
            "detection_head": head(cfg, arguments["backbone"].output_shape()),
            "criterion": DetectionCriterion(
                cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                DetectionMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
                {"loss_ce": class_weight, "loss_bbox": 5.0, "loss_giou": 2.0},
            ),
            "size_divisibility": -1,
            "max_detections": node.DETECTIONS,
        }

    def forward(
        self, batched_inputs: list[dict], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: of each image, ``image`` ``(3, H, W)`` in the range of ``pixel_mean``;
                when training ``instances`` with ``gt_classes`` and ``gt_boxes``, in pixels of
                ``image``; otherwise optionally ``height`` and ``width``, the size of the results.
            target_counts: see :meth:`~.criterion.DetectionCriterion.forward`.

        Returns:
            weighted losses by name; or for each image a dict of ``instances`` with ``pred_boxes``,
            in pixels of ``height`` and ``width``, ``scores``, falling, and ``pred_classes``.
        """
        # (3, H, W) each, of different sizes.
        images = [self.normalise(sample["image"]) for sample in batched_inputs]
        if self.training:
            return self._losses(images, batched_inputs, target_counts)
        results: list[dict] = [{}] * len(images)
        for indices in self.groups_of_size(images):
            group = ImageList.from_tensors([images[i] for i in indices], self.size_divisibility)
            outputs = self.infer(group.tensor, group.image_sizes)
            # Results image by image, in the order of the batch.
            for index, logits, boxes in zip(
                indices, outputs["pred_logits"], outputs["pred_boxes"], strict=True
            ):
                sample = batched_inputs[index]
                height, width = images[index].shape[-2:]
                size = (sample.get("height", height), sample.get("width", width))
                results[index] = {"instances": self.results(logits, boxes, size)}
        return results

    def infer(self, batch: Tensor, image_sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """The last layer's predictions for ``(B, 3, H, W)``, normalised and padded, in the number
        format of inference: ``pred_logits`` ``(B, Q, K)`` and ``pred_boxes`` ``(B, Q, 4)``, (cx,
        cy, w, h) as fractions of the image; of ``image_sizes``, or of all of the batch for None."""
        with self.inference_precision():
            outputs = self.detection_head(self.features(batch), None, image_sizes)
        return {"pred_logits": outputs["logits"][-1], "pred_boxes": outputs["boxes"][-1]}

    def results(self, logits: Tensor, boxes: Tensor, size: Size) -> Instances:
        """The results of one image of ``size`` (height, width), whose predictions, ``(Q, K)`` and
        ``(Q, 4)``, may come from elsewhere, an exported file say."""
        scores, classes, places = keep_best(logits, boxes.float(), size, self.max_detections)
        pred_boxes = Boxes(places)
        pred_boxes.clip(size)
        return Instances(size, pred_boxes=pred_boxes, scores=scores, pred_classes=classes)

    def _losses(
        self, images: list[Tensor], samples: list[dict], target_counts: Sequence[int] | None
    ) -> dict[str, Tensor]:
        # Images of a batch are padded to the largest; boxes are fractions of their own image.
        batch = ImageList.from_tensors(images, self.size_divisibility)
        targets = [
            prepare_target(sample["instances"].to(self.device), size)
            for sample, size in zip(samples, batch.image_sizes, strict=True)
        ]
        counts = target_counts or [len(target["labels"]) for target in targets]
        # The parts of a step have equally many groups of denoising queries.
        denoising = self.detection_head.denoise(targets, most=max(counts))
        features = self.features(batch.tensor)
        outputs = self.detection_head(features, denoising, batch.image_sizes)
        return self.criterion.weigh(self._supervise(outputs, targets, counts, denoising))

    def _supervise(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        counts: Sequence[int],
        denoising: DenoisingQueries | None,
    ) -> dict[str, Tensor]:
        """Losses of every layer, of the proposals (suffix ``_enc``) and of the denoising queries
        (``_dn``) of every layer, not weighted."""
        logits, boxes = outputs["logits"], outputs["boxes"]
        count = 0 if denoising is None else denoising.content.shape[1]
        # Matching queries: every layer's predictions are matched and penalised.
        predictions = _layers(logits[:, :, count:], boxes[:, :, count:])
        losses = self.criterion(predictions, targets, counts)
        # Proposals are matched by themselves.
        if "proposal_logits" in outputs:
            proposals = {
                "pred_logits": outputs["proposal_logits"],
                "pred_boxes": outputs["proposal_boxes"],
            }
            wanted = targets
            if self.detection_head.class_agnostic_proposals:
                wanted = [t | {"labels": t["labels"].new_zeros(t["labels"].shape)} for t in targets]
            found = self.criterion(proposals, wanted, counts)
            losses |= {f"{name}_enc": loss for name, loss in found.items()}
        # Denoising queries know their targets.
        if denoising is not None:
            found = self.criterion(
                _layers(logits[:, :, :count], boxes[:, :, :count]),
                targets,
                counts,
                matches=denoising.matches,
                repeats=denoising.groups,
            )
            losses |= {f"{name}_dn": loss for name, loss in found.items()}
        return losses


def _layers(logits: Tensor, boxes: Tensor) -> dict:
    """``(D, B, Q, …)`` as the last layer's predictions with the others as auxiliary outputs."""
    *earlier, last = [
        {"pred_logits": layer_logits, "pred_boxes": layer_boxes}
        for layer_logits, layer_boxes in zip(logits, boxes, strict=True)
    ]
    return {**last, "aux_outputs": earlier}


def prepare_target(instances: Instances, size: Size) -> dict[str, Tensor]:
    """Ground truth of an image of ``size`` (height, width): ``instances`` with ``gt_classes``
    ``(N,)`` and ``gt_boxes``, in pixels, as ``labels`` ``(N,)`` and ``boxes`` ``(N, 4)``."""
    boxes = relative_boxes(instances.gt_boxes.tensor, size)
    return {"labels": instances.gt_classes, "boxes": boxes}
