"""PQ of a model over a COCO panoptic data set, as a Detectron2 evaluator.

Detectron2's own evaluator writes every prediction to disk and hands the folder to ``panopticapi``.
This one scores each image as it comes, on a few threads while the model goes on.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from proscale.data.formats.coco_format import (
    PANOPTIC_CATEGORIES,
    check_categories,
    check_panoptic_annotations,
)
from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.data.formats.json_file import ID, TEXT, check_lists, read_json
from proscale.errors import DataError
from proscale.evaluation.panoptic_quality import PanopticQuality, Segments
from proscale.evaluation.results import (
    check_every_image_once,
    metrics_table,
    prediction_dir,
    write_results,
)
from proscale.utils.background import BackgroundWorkers
from proscale.utils.untrusted import inside

RESULTS_FILE = "panoptic_seg.json"
IMAGES_FILE = "panoptic_seg_images.json"
PREDICTIONS = "panoptic_predictions"

logger = logging.getLogger(__name__)


class CocoPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality (``PanopticQuality``) over every image of a COCO panoptic data set.

    Args:
        dataset_name: a registered data set whose metadata has ``panoptic_json``, ``panoptic_root``,
            ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``, as
            Detectron2's ``register_coco_panoptic`` sets them, and optionally ``image_ids``, the
            images of the JSON that count.
        output_dir: where to write ``panoptic_seg.json`` with the metrics, also by category, and
            ``panoptic_seg_images.json`` with the PQ of every image, the mean over the categories
            that occur in it; None writes nothing.
        save_predictions: also write predictions as COCO's test server takes them, a
            ``panoptic_predictions.json`` and PNG files in ``panoptic_predictions``. A data set
            without annotations, a test split, can only be saved.
        num_workers: threads that score, 1 or more.

    Raises:
        DataError: the JSON is not of the format, or does not fit the metadata.
        ConfigError, DataError: see ``prediction_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        save_predictions: bool = False,
        num_workers: int = 2,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._json = metadata.panoptic_json
        self._root = metadata.panoptic_root
        content = read_json(self._json)
        self._categories = check_categories(content, self._json, PANOPTIC_CATEGORIES)
        self._is_annotated = "annotations" in content
        if self._is_annotated:
            check_panoptic_annotations(content, self._json)
            # The JSON lists images and annotations in different orders; image_id is the key.
            annotations = {a["image_id"]: a for a in content["annotations"]}
        else:
            # Predictions of a test split have the names of its images.
            check_lists(content, {"images": {"id": ID, "file_name": TEXT}}, self._json)
            annotations = {
                image["id"]: {"file_name": os.path.splitext(image["file_name"])[0] + ".png"}
                for image in content["images"]
            }
        self._prediction_dir = prediction_dir(content, self._json, output_dir, save_predictions)
        image_ids = metadata.get("image_ids", annotations)
        absent = [image_id for image_id in image_ids if image_id not in annotations]
        if absent:
            raise DataError(
                f"{self._json}: no annotations of the images {absent} of data set {dataset_name!r}"
            )
        self._annotations = {image_id: annotations[image_id] for image_id in image_ids}
        # Models may count things and stuff apart, so that both have the same contiguous ids.
        things = metadata.thing_dataset_id_to_contiguous_id
        stuff = metadata.stuff_dataset_id_to_contiguous_id
        self._dataset_ids = {(True, contiguous): id_ for id_, contiguous in things.items()}
        self._dataset_ids |= {(False, contiguous): id_ for id_, contiguous in stuff.items()}
        unmapped = {c["id"] for c in self._categories} - set(self._dataset_ids.values())
        if unmapped:
            raise DataError(
                f"{self._json}: categories {sorted(unmapped)} have no contiguous id in the "
                f"metadata of data set {dataset_name!r}"
            )
        self._background = BackgroundWorkers(self._add, num_workers=num_workers)
        self.reset()

    def reset(self) -> None:
        self._background.cancel()
        self._quality = PanopticQuality(self._categories)
        self._scored: list[Any] = []
        self._images: list[dict[str, Any]] = []
        self._saved: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Start scoring a batch; its maps must not be changed afterwards.

        Args:
            inputs: dicts with ``image_id`` and ``file_name``.
            outputs: dicts with ``panoptic_seg``: the segment ids, an integer tensor (H, W) in the
                size of the ground truth with 0 for void, and a list of dicts ``id``, ``isthing``,
                ``category_id`` (contiguous), one for each id in the tensor.

        Raises:
            ValueError: the data set lacks the image; or, at the latest in ``evaluate``, a
                prediction does not fit the format or its ground truth (``PanopticQuality.update``).
        """
        for input_, output in zip(inputs, outputs, strict=True):
            image_id = input_["image_id"]
            image = f"{input_['file_name']} (image_id {image_id})"
            annotation = self._annotations.get(image_id)
            if annotation is None:
                raise DataError(
                    f"image {image} is not among the {len(self._annotations)} images that data set "
                    f"{self._dataset_name!r} has in {self._json}"
                )
            predicted_map, predicted_segments = output["panoptic_seg"]
            segments = []
            for segment in predicted_segments:
                isthing, contiguous = bool(segment["isthing"]), segment["category_id"]
                if (isthing, contiguous) not in self._dataset_ids:
                    kind = "thing" if isthing else "stuff"
                    accepted = sorted(i for thing, i in self._dataset_ids if thing == isthing)
                    raise ValueError(
                        f"image {image}, predicted segment {segment['id']}: {contiguous} is not "
                        f"the contiguous id of a {kind} category of data set "
                        f"{self._dataset_name!r}: expected {accepted}"
                    )
                category_id = self._dataset_ids[isthing, contiguous]
                segments.append({"id": segment["id"], "category_id": category_id})
            ids = predicted_map.cpu().numpy()
            self._scored.append(image_id)
            if self._prediction_dir is not None:
                saved = {"image_id": image_id, "file_name": annotation["file_name"]}
                self._saved.append(saved | {"segments_info": segments})
            # Decoding the PNG and counting release Python's lock while the model goes on.
            self._background.submit(
                partial(self._score, ids, segments, annotation, input_["file_name"], image)
            )

    def _score(
        self, ids: np.ndarray, segments: Segments, annotation: dict, file_name: str, image: str
    ) -> tuple[PanopticQuality, dict[str, Any]]:
        """The counts of one image, and its PQ; runs on a thread of its own."""
        # Counts of its own, since `_quality` is the main thread's; it merges them in `_add`.
        quality = PanopticQuality(self._categories)
        png, where = annotation["file_name"], f"{self._json}: file_name of an annotation"
        if self._is_annotated:
            path = inside(self._root, png, where)
            image = f"{image} with ground truth {path}"
            true_map, true_segments = read_panoptic_png(path), annotation["segments_info"]
            quality.update(ids, segments, true_map, true_segments, image=image)
        if self._prediction_dir is not None:
            path = inside(os.path.join(self._prediction_dir, PREDICTIONS), png, where)
            PathManager.mkdirs(os.path.dirname(path))
            write_panoptic_png(path, ids)
        return quality, {"file_name": file_name, "PQ": quality.results().all.pq}

    def _add(self, scored: tuple[PanopticQuality, dict[str, Any]]) -> None:
        quality, image = scored
        self._quality.merge(quality)
        self._images.append(image)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' counts; log two tables and write the files on rank 0.

        Returns:
            ``{"panoptic_seg": PanopticResults.summary()}`` on rank 0, with an empty dict if there
            are no annotations; None on the others.

        Raises:
            ValueError: see ``check_every_image_once`` and ``process``.
        """
        self._background.finish()
        gathered = comm.gather((self._quality, self._scored, self._images, self._saved))
        if not comm.is_main_process():
            return None
        total = PanopticQuality(self._categories)
        qualities, *lists = zip(*gathered, strict=True)
        for quality in qualities:
            total.merge(quality)
        scored, images, saved = (list(chain(*parts)) for parts in lists)
        check_every_image_once(self._annotations, scored, self._dataset_name)

        if self._prediction_dir is not None:
            write_results(self._prediction_dir, f"{PREDICTIONS}.json", {"annotations": saved})
            folder = os.path.join(self._prediction_dir, PREDICTIONS)
            logger.info("Panoptic predictions: %s", folder)
        if not self._is_annotated:
            return OrderedDict(panoptic_seg={})
        results = total.results()
        means = {"All": results.all, "Things": results.things, "Stuff": results.stuff}
        summary = [(name, m.pq, m.sq, m.rq, m.num_categories) for name, m in means.items()]
        table = metrics_table(summary, ["", "PQ", "SQ", "RQ", "categories"])
        logger.info("Panoptic quality on %s:\n%s", self._dataset_name, table)
        occurring = [c for c in results.per_category if c.occurs]
        rows = [(c.name, c.pq, c.sq, c.rq, c.tp, c.fp, c.fn) for c in occurring]
        table = metrics_table(rows, ["category", "PQ", "SQ", "RQ", "TP", "FP", "FN"])
        logger.info("Panoptic quality per category:\n%s", table)
        dataset = {"dataset": self._dataset_name}
        content = dataset | {
            "num_images": len(scored),
            "summary": results.summary(),
            "per_category": [asdict(entry) for entry in results.per_category],
        }
        write_results(self._output_dir, RESULTS_FILE, content)
        write_results(self._output_dir, IMAGES_FILE, dataset | {"images": images})
        return OrderedDict(panoptic_seg=results.summary())
