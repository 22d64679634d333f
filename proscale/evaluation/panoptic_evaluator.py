"""PQ of a model over a COCO panoptic data set, as a Detectron2 evaluator.

Detectron2's own evaluator writes every prediction to disk and hands the folder to `panopticapi`.
This one scores each image as it comes: besides the truth's JSON it holds a few sums per category
and the ids of the images seen.
"""

import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from proscale.data.panoptic_png import read_panoptic_png
from proscale.evaluation.panoptic_quality import (
    CategoryQuality,
    PanopticQuality,
    PanopticResults,
)
from proscale.evaluation.results_file import write_results

RESULTS_FILE = "panoptic_seg.json"

logger = logging.getLogger(__name__)


class CocoPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality (`PanopticQuality`) over every image of a COCO panoptic data set.

    Args:
        dataset_name: a registered data set whose metadata has `panoptic_json`, `panoptic_root`,
            `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`, as
            Detectron2's `register_coco_panoptic` sets them. If it has `image_ids`, the data set
            consists of these images of the JSON only.
        output_dir: where to write `panoptic_seg.json` with the summary and every category's
            figures; None writes nothing.

    Raises:
        ValueError: a category of the JSON has no contiguous id in the metadata, or the JSON has no
            annotation of one of `image_ids`.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._panoptic_json = metadata.panoptic_json
        self._panoptic_root = metadata.panoptic_root
        with PathManager.open(self._panoptic_json) as file:
            truth = json.load(file)
        self._categories = truth["categories"]
        # The JSON lists images and annotations in different orders; image_id is the key.
        annotations = {a["image_id"]: a for a in truth["annotations"]}
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
        self.reset()

    def reset(self) -> None:
        self._quality = PanopticQuality(self._categories)
        self._scored: list[Any] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Score a batch.

        Args:
            inputs: dicts with `image_id` and `file_name`.
            outputs: dicts with `panoptic_seg`: the segment ids, an integer tensor (H, W) in the
                size of the truth with 0 for void, and a list of dicts `id`, `isthing`,
                `category_id` (contiguous), one for each id in the tensor.

        Raises:
            ValueError: the data set lacks the image, or a prediction does not fit the format or its
                truth (`PanopticQuality.update`); names the image, and the segment if it is one.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            image = f"{input_['file_name']} (image_id {input_['image_id']})"
            annotation = self._annotations.get(input_["image_id"])
            if annotation is None:
                raise ValueError(
                    f"image {image} is not among the {len(self._annotations)} images that data set "
                    f"{self._dataset_name!r} has in {self._panoptic_json}"
                )
            predicted_map, predicted_segments = output["panoptic_seg"]
            truth_file = os.path.join(self._panoptic_root, annotation["file_name"])
            self._quality.update(
                predicted_map.cpu().numpy(),
                [self._with_dataset_id(segment, image) for segment in predicted_segments],
                read_panoptic_png(PathManager.get_local_path(truth_file)),
                annotation["segments_info"],
                image=image,
            )
            self._scored.append(input_["image_id"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' counts; log two tables and write the JSON file on rank 0.

        Returns:
            `{"panoptic_seg": {"PQ": ..., "SQ": ..., "RQ": ..., "PQ_th": ..., ...}}` in percent on
            rank 0, None on the others.

        Raises:
            ValueError: images of the data set were never scored, or scored more than once.
        """
        gathered = comm.gather((self._quality, self._scored))
        if not comm.is_main_process():
            return None
        total = PanopticQuality(self._categories)
        scored: Counter[Any] = Counter()
        for quality, image_ids in gathered:
            total.merge(quality)
            scored.update(image_ids)
        self._check_every_image_once(scored)

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
        return OrderedDict(panoptic_seg=results.summary())

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

    def _check_every_image_once(self, scored: Counter[Any]) -> None:
        missing = [i for i in self._annotations if i not in scored]
        repeated = [i for i, times in scored.items() if times > 1]
        for image_ids, fault in (
            (missing, "have no prediction"),
            (repeated, "were predicted more than once"),
        ):
            if image_ids:
                raise ValueError(
                    f"{len(image_ids)} of the {len(self._annotations)} images of data set "
                    f"{self._dataset_name!r} {fault}, the first being image_id "
                    f"{', '.join(map(str, image_ids[:5]))}: PQ counts every image exactly once"
                )


def _summary_table(results: PanopticResults) -> str:
    rows = [
        (name, mean.pq, mean.sq, mean.rq, mean.num_categories)
        for name, mean in (
            ("All", results.all),
            ("Things", results.things),
            ("Stuff", results.stuff),
        )
    ]
    return _table(rows, ["", "PQ", "SQ", "RQ", "categories"])


def _category_table(categories: Sequence[CategoryQuality]) -> str:
    """The categories that occur; the others have no figures."""
    rows = [(c.name, c.pq, c.sq, c.rq, c.tp, c.fp, c.fn) for c in categories if c.occurs]
    return _table(rows, ["category", "PQ", "SQ", "RQ", "TP", "FP", "FN"])


def _table(rows: Sequence[tuple], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")
