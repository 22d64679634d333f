"""Instance AP of masks, their boxes and their boundaries over a COCO data set."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as rle

from proscale.data.formats.json_file import NUMBER, Keys, Kind
from proscale.data.formats.run_lengths import encode_mask, run_lengths
from proscale.errors import DataError
from proscale.evaluation.average_precision import Objects
from proscale.evaluation.boundary import inner_boundary
from proscale.evaluation.box_evaluator import BoxEvaluator, box_overlaps, overlap

_SEGMENTATION = Kind("a list or an object", lambda v: isinstance(v, (list, dict)))


class InstanceEvaluator(BoxEvaluator):
    """AP as ``pycocotools`` computes it, of masks (``segm``) and the boxes around them (``bbox``).

    ``process`` takes Detectron2's ``Instances`` with ``pred_masks`` (N, H, W) bool in the size of
    the image, ``scores`` (N,) and contiguous ``pred_classes`` (N,).

    Args:
        dataset_name, output_dir, save_predictions: see ``BoxEvaluator``; annotations need
            ``segmentation`` and ``area``.
        boundary_iou: also compute Boundary AP (``boundary``): the overlap is the lesser of mask IoU
            and Boundary IoU, as in Cheng et al. 2021.
    """

    title = "Instance AP"
    annotation_keys: ClassVar[Keys] = {
        **BoxEvaluator.annotation_keys,
        **{"area": NUMBER, "segmentation": _SEGMENTATION},
    }

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        boundary_iou: bool = False,
        save_predictions: bool = False,
    ) -> None:
        self.kinds = ("bbox", "segm", "boundary") if boundary_iou else ("bbox", "segm")
        super().__init__(dataset_name, output_dir, save_predictions=save_predictions)

    def _size(self, instances: Instances) -> tuple[str, tuple[int, ...]]:
        return "pred_masks", tuple(instances.pred_masks.shape[1:])

    def _regions(self, instances: Instances, order: np.ndarray) -> list[dict]:
        masks = instances.pred_masks.numpy()
        return [encode_mask(masks[i]) for i in order.tolist()]

    def _as_json(self, region: dict) -> dict[str, Any]:
        segmentation = {**region, "counts": region["counts"].decode("ascii")}
        return {"bbox": rle.toBbox(region).tolist(), "segmentation": segmentation}

    def _compare(
        self,
        image_id: Any,
        predicted: Sequence[dict],
        annotations: Sequence[Mapping[str, Any]],
        objects: Objects,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        true = []
        for annotation in annotations:
            try:
                true.append(run_lengths(annotation["segmentation"], *self._sizes[image_id]))
            except ValueError as error:
                raise DataError(
                    f"{self._json}: annotation {annotation['id']} of image {image_id}: {error}"
                ) from error
        boxes = rle.toBbox(predicted)
        # One by one: pycocotools 2.0.11 refuses more than 255 masks at a time under NumPy 2.
        areas = np.array([rle.area(mask) for mask in predicted], dtype=np.float64)
        overlaps = overlap(predicted, true, objects)
        # pycocotools takes the area of a detection from its box or from its mask, by kind.
        compared = {
            "bbox": (box_overlaps(boxes, annotations, objects), boxes[:, 2] * boxes[:, 3]),
            "segm": (overlaps, areas),
        }
        if "boundary" in self.kinds:
            boundaries = [
                [encode_mask(inner_boundary(rle.decode(mask).astype(bool))) for mask in of_both]
                for of_both in (predicted, true)
            ]
            # The lesser of the two, since boundaries alone would match a ring with a disc.
            lesser = np.minimum(overlaps, overlap(boundaries[0], boundaries[1], objects))
            compared["boundary"] = lesser, areas
        return compared
