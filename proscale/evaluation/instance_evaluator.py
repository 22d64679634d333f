"""Instance AP of masks, their boxes and their boundaries over a COCO data set.

Detectron2's `COCOEvaluator` keeps every prediction until the end, on rank 0 those of all ranks and
several times over. This one matches an image's predictions with the truth when they come, and keeps
their scores and what they matched. The figures are `pycocotools`'.
"""

import contextlib
import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools import mask as rle
from pycocotools.coco import COCO

from proscale.data.formats.coco_format import (
    INSTANCE_ANNOTATIONS,
    INSTANCE_CATEGORIES,
    check_instances,
)
from proscale.data.formats.json_file import check_lists, read_json
from proscale.data.formats.run_lengths import run_lengths
from proscale.errors import DataError
from proscale.evaluation.average_precision import AveragePrecision, Objects
from proscale.evaluation.boundary import inner_boundary
from proscale.evaluation.figures import table

PREDICTIONS_FILE = "coco_instances_results.json"

logger = logging.getLogger(__name__)


class InstanceEvaluator(DatasetEvaluator):
    """AP as `pycocotools` computes it, of masks (`segm`) and of the boxes around them (`bbox`).

    Args:
        dataset_name: a registered data set whose metadata has `json_file`, a COCO instances file,
            and `thing_dataset_id_to_contiguous_id` with its categories; `image_ids`, if there are
            any, are the images that count.
        output_dir: where to write files; None writes nothing.
        boundary_iou: also compute Boundary AP (`boundary`): overlap is the lesser of mask IoU and
            Boundary IoU, as in Cheng et al. 2021.
        save_predictions: write `coco_instances_results.json` to `output_dir`, as COCO's test server
            takes it; all predictions are held as text until then. A data set without annotations, a
            test split, can only be saved.

    Raises:
        DataError: the JSON is not of the format, or an annotation has an unknown category.
        ValueError: the JSON has a category that is no thing of the data set; it has no annotations
            and `save_predictions` is off; or there is no `output_dir` to save to.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        boundary_iou: bool = False,
        save_predictions: bool = False,
    ) -> None:
        if save_predictions and output_dir is None:
            raise ValueError("TEST.SAVE_PREDICTIONS needs an output folder for the predictions")
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            DatasetCatalog.get(dataset_name)  # Detectron2 finds out when it loads the data set
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._truth = _read_truth(metadata.json_file)
        unknown = set(self._truth.cats) - set(ids)
        if unknown:
            raise ValueError(
                f"{metadata.json_file}: its categories {sorted(unknown)} are not among the "
                f"things of data set {dataset_name!r}, {sorted(ids)}"
            )
        self._has_truth = "annotations" in self._truth.dataset
        for annotation in self._truth.dataset.get("annotations", ()):
            if annotation["category_id"] not in self._truth.cats:
                raise DataError(
                    f"{metadata.json_file}: annotation {annotation['id']} has category_id "
                    f"{annotation['category_id']}; known are {sorted(self._truth.cats)}"
                )
            if [type(v) in (int, float) for v in annotation["bbox"]] != [True] * 4:
                raise DataError(
                    f"{metadata.json_file}: annotation {annotation['id']} has bbox "
                    f"{annotation['bbox']}: expected [x, y, width, height]"
                )
        if not self._has_truth and not save_predictions:
            raise ValueError(
                f"{metadata.json_file} has no annotations to compare with; set "
                "TEST.SAVE_PREDICTIONS True to write predictions for a test server"
            )
        self._dataset_name = dataset_name
        self._json_file = metadata.json_file
        self._output_dir = output_dir
        self._save_predictions = save_predictions
        self._dataset_ids = {contiguous_id: id_ for id_, contiguous_id in ids.items()}
        self._categories = {id_: number for number, id_ in enumerate(sorted(self._truth.cats))}
        image_ids = metadata.get("image_ids", self._truth.imgs)
        self._images = {image_id: number for number, image_id in enumerate(sorted(image_ids))}
        self._kinds = ("bbox", "segm", "boundary") if boundary_iou else ("bbox", "segm")
        self.reset()

    def reset(self) -> None:
        self._precision = {kind: AveragePrecision(len(self._categories)) for kind in self._kinds}
        self._seen: set[Any] = set()
        self._saved: list[str] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Match a batch.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances`: Detectron2's `Instances` with `pred_masks` (N, H, W)
                bool in the size of the truth, `scores` (N,) and `pred_classes` (N,), contiguous.

        Raises:
            ValueError: the data set lacks the image or has had it; a class is no thing; or masks
                have another size than the image.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            self._process_image(input_["image_id"], output["instances"])

    def _process_image(self, image_id: Any, instances: Instances) -> None:
        if image_id not in self._images or image_id in self._seen:
            fault = "was predicted before" if image_id in self._seen else "is not one of them"
            raise ValueError(
                f"image_id {image_id}: data set {self._dataset_name!r} has {len(self._images)} "
                f"images, this one {fault}"
            )
        image = self._truth.imgs[image_id]
        size, wanted = tuple(instances.pred_masks.shape[1:]), (image["height"], image["width"])
        if size != wanted:
            raise ValueError(
                f"image_id {image_id}: pred_masks are of size {size}, the image is {wanted}"
            )
        self._seen.add(image_id)
        scores = instances.scores.double().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        masks = [_encode(instances.pred_masks[i].cpu().numpy()) for i in order.tolist()]
        scores = scores[order]
        category_ids = [
            self._dataset_id(class_, image_id) for class_ in instances.pred_classes[order].tolist()
        ]
        if self._save_predictions:
            self._saved += map(
                _as_json, category_ids, scores.tolist(), masks, [image_id] * len(masks)
            )
        if self._has_truth:
            self._match(image_id, np.array(category_ids), scores, masks)

    def _match(
        self, image_id: Any, category_ids: np.ndarray, scores: np.ndarray, masks: list[dict]
    ) -> None:
        annotations = self._truth.imgToAnns.get(image_id, [])
        annotated = np.array([a["category_id"] for a in annotations])
        for category_id in sorted(set(category_ids.tolist()) & set(self._categories)):
            chosen = np.flatnonzero(category_ids == category_id)
            true = [annotations[i] for i in np.flatnonzero(annotated == category_id)]
            shapes = _Shapes(
                [masks[i] for i in chosen],
                [self._code(annotation, image_id) for annotation in true],
                true_boxes=[a["bbox"] for a in true],
                is_crowd=[int(a.get("iscrowd", 0)) for a in true],
            )
            for kind, precision in self._precision.items():
                overlaps, areas = shapes.compare(kind)
                precision.add_detections(
                    self._categories[category_id],
                    self._images[image_id],
                    scores[chosen],
                    areas,
                    overlaps,
                    _objects(true),
                )

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' matches; log tables and write the file on rank 0.

        Images that were never processed have their objects missed, as in Detectron2.

        Returns:
            `{"bbox": {"AP": ..., "AP50": ..., "AP75": ..., "APs": ..., "APm": ..., "APl": ...,
            "AP-(category)": ...}, "segm": {...}}` and, if asked for, `boundary`, in percent (nan if
            there is nothing to be found) on rank 0, None on the others. Without annotations the
            inner dicts are empty.
        """
        for precision in self._precision.values():
            precision.compact()
        gathered = comm.gather((self._precision, self._saved))
        if not comm.is_main_process():
            return None
        if self._save_predictions:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, PREDICTIONS_FILE)
            with PathManager.open(path, "w") as file:
                file.write(
                    "[" + ",\n".join(text for _, saved in gathered for text in saved) + "]\n"
                )
            logger.info("Instance predictions: %s", path)
        if not self._has_truth:
            return OrderedDict((kind, {}) for kind in self._kinds)
        results = OrderedDict()
        names = [self._truth.cats[id_]["name"] for id_ in self._categories]
        for kind in self._kinds:
            total = AveragePrecision(len(self._categories))
            for precision, _ in gathered:
                total.merge(precision[kind])
            self._add_truth(total)
            results[kind] = total.summary(names)
            _log(self._dataset_name, kind, results[kind])
        return results

    def _add_truth(self, precision: AveragePrecision) -> None:
        for image_id in self._images:
            for annotation in self._truth.imgToAnns.get(image_id, []):
                category = self._categories[annotation["category_id"]]
                precision.add_truth(category, _objects([annotation]))

    def _code(self, annotation: dict, image_id: Any) -> dict:
        image = self._truth.imgs[image_id]
        try:
            return run_lengths(annotation["segmentation"], image["height"], image["width"])
        except ValueError as error:
            raise DataError(
                f"{self._json_file}: annotation {annotation['id']} of image {image_id}: {error}"
            ) from error

    def _dataset_id(self, class_: int, image_id: Any) -> int:
        if class_ not in self._dataset_ids:
            raise ValueError(
                f"image_id {image_id}: {class_} is not the contiguous id of a thing of data set "
                f"{self._dataset_name!r}; they are {sorted(self._dataset_ids)}"
            )
        return self._dataset_ids[class_]


class _Shapes:
    """D predicted and N true masks of one image and category, run-length encoded."""

    def __init__(
        self,
        predicted: list[dict],
        true: list[dict],
        *,
        true_boxes: list[list[float]],
        is_crowd: list[int],
    ) -> None:
        self._predicted, self._true = predicted, true
        self._true_boxes = true_boxes
        self._is_crowd = is_crowd

    def compare(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """(D, N) overlaps, and (D,) areas of the predictions."""
        if kind == "bbox":
            boxes = rle.toBbox(self._predicted)
            overlaps = self._overlaps(boxes, np.array(self._true_boxes, dtype=np.float64))
            return overlaps, boxes[:, 2] * boxes[:, 3]
        overlaps = self._overlaps(self._predicted, self._true)
        if kind == "boundary" and self._true:
            on_boundary = self._overlaps(
                [_encode(inner_boundary(rle.decode(m).astype(bool))) for m in self._predicted],
                [_encode(inner_boundary(rle.decode(m).astype(bool))) for m in self._true],
            )
            overlaps = np.minimum(overlaps, on_boundary)
        return overlaps, rle.area(self._predicted).astype(np.float64)

    def _overlaps(self, predicted: Any, true: Any) -> np.ndarray:
        """(D, N) IoU; with a crowd, the share of the prediction that lies on it."""
        if not len(true):
            return np.zeros((len(predicted), 0))
        return np.asarray(rle.iou(predicted, true, self._is_crowd))


def _read_truth(path: str) -> COCO:
    content = read_json(path)
    check_lists(content, {"categories": INSTANCE_CATEGORIES}, path)
    if "annotations" in content:
        annotations = INSTANCE_ANNOTATIONS | _EVALUATED
        check_instances(content, path, images=_IMAGES, annotations=annotations)
    else:
        check_lists(content, {"images": _IMAGES}, path)
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


_IMAGES = {"id": (int, str), "height": (int,), "width": (int,)}
# What evaluation needs besides training.
_EVALUATED = {"area": (int, float), "bbox": (list,), "segmentation": (list, dict)}


def _encode(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8))


def _objects(annotations: Sequence[dict]) -> Objects:
    return Objects(
        areas=np.array([a["area"] for a in annotations], dtype=np.float64),
        is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def _as_json(category_id: int, score: float, mask: dict, image_id: Any) -> str:
    return json.dumps(
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": rle.toBbox(mask).tolist(),
            "score": score,
            "segmentation": {**mask, "counts": mask["counts"].decode("ascii")},
        }
    )


def _log(dataset_name: str, kind: str, figures: dict[str, float]) -> None:
    summary = {name: value for name, value in figures.items() if not name.startswith("AP-")}
    categories = [
        (name.removeprefix("AP-"), value) for name, value in figures.items() if name not in summary
    ]
    logger.info("Instance AP (%s) on %s:\n%s", kind, dataset_name, table([summary]))
    logger.info("Instance AP (%s) per category:\n%s", kind, table(categories, ["category", "AP"]))
