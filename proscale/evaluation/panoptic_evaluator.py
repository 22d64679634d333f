"""PQ of a model over a COCO panoptic data set, as a Detectron2 evaluator.

Detectron2's own evaluator writes every prediction to disk and hands the folder to `panopticapi`.
This one scores each image as it comes, on a few threads while the model goes on: besides the
truth's JSON it holds a few sums per category, and of every image seen its id, name and PQ.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from proscale.data.formats.coco_format import PANOPTIC_CATEGORIES, check_panoptic_annotations
from proscale.data.formats.data_folder import DataFolder
from proscale.data.formats.json_file import check_lists, read_json
from proscale.data.formats.panoptic_png import read_panoptic_png, write_panoptic_png
from proscale.errors import DataError
from proscale.evaluation.figures import check_every_image_once, table
from proscale.evaluation.panoptic_quality import (
    CategoryQuality,
    PanopticQuality,
    PanopticResults,
)
from proscale.evaluation.results_file import write_results
from proscale.utils.background import BackgroundWorkers

RESULTS_FILE = "panoptic_seg.json"
IMAGES_FILE = "panoptic_seg_images.json"
PREDICTIONS = "panoptic_predictions"

logger = logging.getLogger(__name__)


class CocoPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality (`PanopticQuality`) over every image of a COCO panoptic data set.

    Args:
        dataset_name: a registered data set whose metadata has `panoptic_json`, `panoptic_root`,
            `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`, as
            Detectron2's `register_coco_panoptic` sets them. If it has `image_ids`, the data set
            consists of these images of the JSON only.
        output_dir: where to write `panoptic_seg.json` with the summary and every category's
            figures, and `panoptic_seg_images.json` with the PQ of every image by itself, the mean
            over the categories that occur in it; None writes nothing.
        save_predictions: also write the predictions to `output_dir` as COCO's test server takes
            them: `panoptic_predictions.json` and the PNG files in `panoptic_predictions`. A data
            set without annotations, a test split, can only be saved.
        num_workers: threads that score, 1 or more.

    Raises:
        DataError: the JSON is not of the format.
        ValueError: a category of the JSON has no contiguous id in the metadata, or the JSON has no
            annotation of one of `image_ids`; there is nothing to compare with and
            `save_predictions` is off; or there is no `output_dir` to save to.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        save_predictions: bool = False,
        num_workers: int = 2,
    ) -> None:
        if save_predictions and output_dir is None:
            raise ValueError("TEST.SAVE_PREDICTIONS needs an output folder for the predictions")
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._save_predictions = save_predictions
        self._panoptic_json = metadata.panoptic_json
        self._panoptic_root = metadata.panoptic_root
        truth = read_json(self._panoptic_json)
        check_lists(truth, {"categories": PANOPTIC_CATEGORIES}, self._panoptic_json)
        self._categories = truth["categories"]
        self._has_truth = "annotations" in truth
        if not self._has_truth and not save_predictions:
            raise ValueError(
                f"{self._panoptic_json} has no annotations to compare with; set "
                "TEST.SAVE_PREDICTIONS True to write predictions for a test server"
            )
        if self._has_truth:
            check_panoptic_annotations(truth, self._panoptic_json)
        else:
            check_lists(truth, {"images": _TEST_IMAGES}, self._panoptic_json)
        # The JSON lists images and annotations in different orders; image_id is the key.
        annotations = (
            {a["image_id"]: a for a in truth["annotations"]}
            if self._has_truth
            else {i["id"]: {"file_name": _png_name(i["file_name"])} for i in truth["images"]}
        )
        image_ids = metadata.get("image_ids", annotations)
        absent = [image_id for image_id in image_ids if image_id not in annotations]
        if absent:
            raise ValueError(
                f"{self._panoptic_json}: no annotations of the images {absent} of data set "
                f"{dataset_name!r}"
            )
        self._annotations = {image_id: annotations[image_id] for image_id in image_ids}

        self._dataset_ids = {
            (isthing, contiguous_id): dataset_id
            for isthing, ids in (
                (True, metadata.thing_dataset_id_to_contiguous_id),
                (False, metadata.stuff_dataset_id_to_contiguous_id),
            )
            for dataset_id, contiguous_id in ids.items()
        }
        unmapped = {c["id"] for c in self._categories} - set(self._dataset_ids.values())
        if unmapped:
            raise ValueError(
                f"{self._panoptic_json}: categories {sorted(unmapped)} have no contiguous id in "
                f"the metadata of data set {dataset_name!r}"
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
            inputs: dicts with `image_id` and `file_name`.
            outputs: dicts with `panoptic_seg`: the segment ids, an integer tensor (H, W) in the
                size of the truth with 0 for void, and a list of dicts `id`, `isthing`,
                `category_id` (contiguous), one for each id in the tensor.

        Raises:
            ValueError: the data set lacks the image; or, at the latest in `evaluate`, a prediction
                does not fit the format or its truth (`PanopticQuality.update`). Names the image,
                and the segment if it is one.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            image_id = input_["image_id"]
            image = f"{input_['file_name']} (image_id {image_id})"
            annotation = self._annotations.get(image_id)
            if annotation is None:
                raise ValueError(
                    f"image {image} is not among the {len(self._annotations)} images that data set "
                    f"{self._dataset_name!r} has in {self._panoptic_json}"
                )
            predicted_map, predicted_segments = output["panoptic_seg"]
            segments = [self._with_dataset_id(segment, image) for segment in predicted_segments]
            ids = predicted_map.cpu().numpy()
            self._scored.append(image_id)
            if self._save_predictions:
                name = annotation["file_name"]
                self._saved.append(
                    {"image_id": image_id, "file_name": name, "segments_info": segments}
                )
            self._background.submit(
                partial(self._score, ids, segments, annotation, input_["file_name"], image)
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' counts; log two tables and write the files on rank 0.

        Returns:
            `{"panoptic_seg": {"PQ": ..., "SQ": ..., "RQ": ..., "PQ_th": ..., ...}}` in percent on
            rank 0, None on the others. Without annotations the inner dict is empty.

        Raises:
            ValueError: images of the data set were never scored, or scored more than once; or see
                `process`.
        """
        self._background.finish()
        gathered = comm.gather((self._quality, self._scored, self._images, self._saved))
        if not comm.is_main_process():
            return None
        total = PanopticQuality(self._categories)
        scored: list[Any] = []
        images: list[dict[str, Any]] = []
        saved: list[dict[str, Any]] = []
        for quality, image_ids, image_figures, predictions in gathered:
            total.merge(quality)
            scored += image_ids
            images += image_figures
            saved += predictions
        check_every_image_once(self._annotations, scored, dataset_name=self._dataset_name)

        if self._save_predictions:
            write_results(self._output_dir, f"{PREDICTIONS}.json", {"annotations": saved})
            logger.info("Panoptic predictions: %s", os.path.join(self._output_dir, PREDICTIONS))
        if not self._has_truth:
            return OrderedDict(panoptic_seg={})
        results = total.results()
        logger.info("Panoptic quality on %s:\n%s", self._dataset_name, _summary_table(results))
        logger.info("Panoptic quality per category:\n%s", _category_table(results.per_category))
        if self._output_dir is not None:
            write_results(
                self._output_dir,
                RESULTS_FILE,
                {
                    "dataset": self._dataset_name,
                    "num_images": len(scored),
                    "summary": results.summary(),
                    "per_category": [asdict(entry) for entry in results.per_category],
                },
            )
            write_results(
                self._output_dir, IMAGES_FILE, {"dataset": self._dataset_name, "images": images}
            )
        return OrderedDict(panoptic_seg=results.summary())

    def _score(
        self,
        predicted_map: np.ndarray,
        predicted_segments: Sequence[Mapping[str, Any]],
        annotation: Mapping[str, Any],
        file_name: str,
        image: str,
    ) -> tuple[PanopticQuality, dict[str, Any]]:
        """The counts of one image, and its figures; runs on a thread of its own."""
        quality = PanopticQuality(self._categories)
        if self._has_truth:
            truth_file = self._file_in(self._panoptic_root, annotation)
            truth = read_panoptic_png(truth_file)
            try:
                quality.update(
                    predicted_map,
                    predicted_segments,
                    truth,
                    annotation["segments_info"],
                    image=image,
                )
            except ValueError as error:
                raise DataError(f"{truth_file}: {error}") from error
        if self._save_predictions:
            path = self._file_in(os.path.join(self._output_dir, PREDICTIONS), annotation)
            PathManager.mkdirs(os.path.dirname(path))
            write_panoptic_png(path, predicted_map)
        return quality, {"file_name": file_name, "PQ": quality.results().all.pq}

    def _file_in(self, folder: str, annotation: Mapping[str, Any]) -> str:
        return DataFolder(folder).file(
            annotation["file_name"], f"{self._panoptic_json}: file_name of an annotation"
        )

    def _add(self, scored: tuple[PanopticQuality, dict[str, Any]]) -> None:
        quality, figures = scored
        self._quality.merge(quality)
        self._images.append(figures)

    def _with_dataset_id(self, segment: dict, image: str) -> dict[str, int]:
        key = bool(segment["isthing"]), segment["category_id"]
        if key not in self._dataset_ids:
            kind = "thing" if key[0] else "stuff"
            accepted = sorted(i for isthing, i in self._dataset_ids if isthing == key[0])
            raise ValueError(
                f"image {image}, predicted segment {segment['id']}: {key[1]} is not the contiguous "
                f"id of a {kind} category of data set {self._dataset_name!r}; they are {accepted}"
            )
        return {"id": segment["id"], "category_id": self._dataset_ids[key]}


# What is read of the images of a test split.
_TEST_IMAGES = {"id": (int, str), "file_name": (str,)}


def _png_name(image_name: str) -> str:
    return os.path.splitext(image_name)[0] + ".png"


def _summary_table(results: PanopticResults) -> str:
    rows = [
        (name, mean.pq, mean.sq, mean.rq, mean.num_categories)
        for name, mean in (
            ("All", results.all),
            ("Things", results.things),
            ("Stuff", results.stuff),
        )
    ]
    return table(rows, ["", "PQ", "SQ", "RQ", "categories"])


def _category_table(categories: Sequence[CategoryQuality]) -> str:
    """The categories that occur; the others have no figures."""
    rows = [(c.name, c.pq, c.sq, c.rq, c.tp, c.fp, c.fn) for c in categories if c.occurs]
    return table(rows, ["category", "PQ", "SQ", "RQ", "TP", "FP", "FN"])
