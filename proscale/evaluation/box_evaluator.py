"""AP of detected boxes over a COCO data set.

Detectron2's ``COCOEvaluator`` keeps every prediction until the end, on rank 0 those of all ranks.
This one matches an image's predictions when they come, and keeps scores and matches.
"""

import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as rle

from proscale.data.formats.coco_format import (
    INSTANCE_ANNOTATIONS,
    INSTANCE_CATEGORIES,
    check_categories,
    check_instances,
    in_order,
)
from proscale.data.formats.json_file import (
    BOX,
    ID,
    INTEGER,
    NUMBER,
    Keys,
    check_lists,
    read_json,
)
from proscale.data.formats.problems import first_few
from proscale.errors import DataError
from proscale.evaluation.average_precision import AveragePrecision, Objects
from proscale.evaluation.results import metrics_table, prediction_dir, write_predictions
from proscale.utils.background import BackgroundWorkers

PREDICTIONS_FILE = "coco_instances_results.json"

logger = logging.getLogger(__name__)

_IMAGES: Keys = {"id": ID, "height": INTEGER, "width": INTEGER}


# A kind of AP, and the arguments of ``AveragePrecision.add_detections``.
_Matched = tuple[str, tuple[int, int, np.ndarray, np.ndarray, np.ndarray, Objects]]


class BoxEvaluator(DatasetEvaluator):
    """AP of boxes as ``pycocotools`` computes it (``bbox``).

    The area of an object is that of its box where the file states none.

    Args:
        dataset_name: a registered data set whose metadata has ``json_file``, a COCO instances file,
            and ``thing_dataset_id_to_contiguous_id`` with its categories; ``image_ids``, if there
            are any, are the images that count.
        output_dir: where to write files; None writes nothing.
        save_predictions: write ``coco_instances_results.json`` to ``output_dir``, as COCO's test
            server takes it; all predictions are held as text until then. A data set without
            annotations, a test split, can only be saved.

    Raises:
        DataError: the JSON is not of the format, or has a category that is no thing.
        ConfigError, DataError: see ``prediction_dir``.
    """

    title: ClassVar[str] = "Box AP"
    # Evaluation needs more than training does.
    annotation_keys: ClassVar[Keys] = {
        **INSTANCE_ANNOTATIONS,
        **{"area": replace(NUMBER, is_needed=False), "bbox": BOX},
    }
    kinds: tuple[str, ...] = ("bbox",)

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, save_predictions: bool = False
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            DatasetCatalog.get(dataset_name)  # Detectron2 finds out when it loads the data set
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._dataset_name = dataset_name
        self._json = metadata.json_file
        content = read_json(self._json)
        categories = check_categories(content, self._json, INSTANCE_CATEGORIES)
        self._is_annotated = "annotations" in content
        if self._is_annotated:
            check_instances(content, self._json, images=_IMAGES, annotations=self.annotation_keys)
        else:
            check_lists(content, {"images": _IMAGES}, self._json)
        names = {category["id"]: category["name"] for category in categories}
        if not names.keys() <= ids.keys():
            raise DataError(
                f"{self._json}: its categories {sorted(names.keys() - ids.keys())} are not among "
                f"the things of data set {dataset_name!r}: expected {sorted(ids)}"
            )
        # By image and category, in which detections are matched.
        self._annotations: dict[tuple[Any, int], list[dict[str, Any]]] = defaultdict(list)
        for annotation in content.get("annotations", ()):
            category_id = annotation["category_id"]
            if category_id not in names:
                expected = first_few(sorted(names))
                raise DataError(
                    f"{self._json}: annotation {annotation['id']} has category_id {category_id}: "
                    f"expected {expected}"
                )
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
            self._annotations[annotation["image_id"], category_id].append(annotation)
        self._prediction_dir = prediction_dir(content, self._json, output_dir, save_predictions)
        # Categories and images are numbered in the order of their ids.
        self._category_names = [names[id_] for id_ in sorted(names)]
        self._categories = {id_: number for number, id_ in enumerate(sorted(names))}
        # Models predict contiguous ids, files have the data set's.
        self._dataset_ids = {contiguous_id: id_ for id_, contiguous_id in ids.items()}
        self._sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        image_ids = metadata.get("image_ids", self._sizes)
        self._images = {image_id: number for number, image_id in enumerate(in_order(image_ids))}
        # One thread: masks wait for it, a gigabyte for some images.
        self._background = BackgroundWorkers(self._add, num_workers=1)
        self.reset()

    def reset(self) -> None:
        self._background.cancel()
        self._precision = {kind: AveragePrecision(len(self._categories)) for kind in self.kinds}
        self._seen: set[Any] = set()
        self._saved: list[str] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Start matching a batch; its instances must not be changed afterwards.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances``: Detectron2's ``Instances`` of N objects with
                ``scores`` (N,), contiguous ``pred_classes`` (N,), and ``pred_boxes``, Boxes (N, 4)
                in the coordinates of the image.

        Raises:
            ValueError: an image is unknown or repeated, a class is no thing, or the instances are
                of another size than the image.
            DataError: at the latest in ``evaluate``, an annotation is not of the format.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            image_id, instances = input_["image_id"], output["instances"]
            if image_id not in self._images or image_id in self._seen:
                problem = "was predicted before" if image_id in self._seen else "is not one of them"
                raise ValueError(
                    f"image_id {image_id}: data set {self._dataset_name!r} has {len(self._images)} "
                    f"images, this one {problem}"
                )
            name, size = self._size(instances)
            expected = self._sizes[image_id]
            if size != expected:
                raise ValueError(
                    f"image_id {image_id}: {name} are of size {size}, the image is {expected}"
                )
            self._seen.add(image_id)
            for class_ in instances.pred_classes.tolist():
                if class_ not in self._dataset_ids:
                    raise ValueError(
                        f"image_id {image_id}: {class_} is not the contiguous id of a thing of "
                        f"data set {self._dataset_name!r}: expected {sorted(self._dataset_ids)}"
                    )
            # Coding and comparing masks goes on while the model computes the next image.
            self._background.submit(partial(self._match, image_id, instances.to("cpu")))

    def _size(self, instances: Instances) -> tuple[str, tuple[int, ...]]:
        """What is compared with the image's size, and its (height, width)."""
        return "instances", tuple(instances.image_size)

    def _regions(self, instances: Instances, order: np.ndarray) -> list[Any]:
        """[x, y, width, height] (4,) of the boxes in this order."""
        # In float32 as Detectron2 does, which decides between overlaps near a threshold.
        boxes = instances.pred_boxes.tensor.float().numpy()[order]
        sizes = boxes[:, 2:] - boxes[:, :2]
        return list(np.concatenate([boxes[:, :2], sizes], axis=1).astype(float))

    def _as_json(self, region: Any) -> dict[str, Any]:
        """A prediction's region in COCO's files of results."""
        return {"bbox": region.tolist()}

    def _compare(
        self,
        image_id: Any,
        predicted: Sequence[Any],
        annotations: Sequence[Mapping[str, Any]],
        objects: Objects,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each kind overlaps (D, N) of predictions with objects, and the predictions' areas."""
        boxes = np.asarray(predicted)
        return {"bbox": (box_overlaps(boxes, annotations, objects), boxes[:, 2] * boxes[:, 3])}

    def _match(self, image_id: Any, instances: Instances) -> tuple[list[_Matched], list[str]]:
        """Match the detections of an image with its objects, category by category, and make the
        texts to save; runs on a thread of its own."""
        # COCO's first step: detections in descending order of score, equal ones as they came.
        scores = instances.scores.double().numpy()
        order = np.argsort(-scores, kind="stable")
        regions, scores = self._regions(instances, order), scores[order]
        classes = instances.pred_classes[order].tolist()
        category_ids = np.array([self._dataset_ids[class_] for class_ in classes])
        saved, matched = [], []
        if self._prediction_dir is not None:
            # As text, which takes less memory than dicts.
            for id_, score, region in zip(
                category_ids.tolist(), scores.tolist(), regions, strict=True
            ):
                prediction = {"image_id": image_id, "category_id": id_, "score": score}
                saved.append(json.dumps(prediction | self._as_json(region)))
        found = set(category_ids.tolist()) if self._is_annotated else set()
        for category_id in sorted(found & set(self._categories)):
            chosen = np.flatnonzero(category_ids == category_id)
            annotations = self._annotations.get((image_id, category_id), [])
            objects = Objects(annotations)
            predicted = [regions[i] for i in chosen.tolist()]
            place = self._categories[category_id], self._images[image_id]
            compared = self._compare(image_id, predicted, annotations, objects)
            for kind, (overlaps, areas) in compared.items():
                matched.append((kind, (*place, scores[chosen], areas, overlaps, objects)))
        return matched, saved

    def _add(self, result: tuple[list[_Matched], list[str]]) -> None:
        matched, saved = result
        for kind, detections in matched:
            self._precision[kind].add_detections(*detections)
        self._saved += saved

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' matches; log tables and write the file on rank 0.

        Returns:
            for each of ``kinds`` a dict with ``AveragePrecision.summary``, empty without
            annotations; None on other ranks than 0.
        """
        self._background.finish()
        # One array travels faster than one for every image and category.
        for precision in self._precision.values():
            precision.compact()
        gathered = comm.gather((self._precision, self._saved))
        if not comm.is_main_process():
            return None
        if self._prediction_dir is not None:
            texts = [text for _, saved in gathered for text in saved]
            write_predictions(self._prediction_dir, PREDICTIONS_FILE, texts)
        if not self._is_annotated:
            return OrderedDict((kind, {}) for kind in self.kinds)
        results = OrderedDict()
        for kind in self.kinds:
            total = AveragePrecision(len(self._categories))
            for precision, _ in gathered:
                total.merge(precision[kind])
            # Objects of images that were never processed are missed, as in Detectron2.
            for (image_id, category_id), annotations in self._annotations.items():
                if image_id in self._images:
                    total.add_objects(self._categories[category_id], Objects(annotations))
            results[kind] = total.summary(self._category_names)
            summary = {k: value for k, value in results[kind].items() if not k.startswith("AP-")}
            categories = [(name, results[kind][f"AP-{name}"]) for name in self._category_names]
            table = metrics_table(categories, ["category", "AP"])
            name = f"{self.title} ({kind})"
            logger.info("%s on %s:\n%s", name, self._dataset_name, metrics_table([summary]))
            logger.info("%s per category:\n%s", name, table)
        return results


def box_overlaps(
    predicted: np.ndarray, annotations: Sequence[Mapping[str, Any]], objects: Objects
) -> np.ndarray:
    """(D, N) IoU of boxes [x, y, width, height] with those of annotations, see ``overlap``."""
    true = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    return overlap(predicted, true, objects)


def overlap(predicted: Any, true: Any, objects: Objects) -> np.ndarray:
    """(D, N) IoU; with a crowd the fraction of the prediction that lies on the crowd."""
    if not len(true):
        return np.zeros((len(predicted), 0))
    return np.asarray(rle.iou(predicted, true, objects.is_crowd.astype(int).tolist()))
