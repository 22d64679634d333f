"""Instance mask AP for data sets with panoptic metadata, on top of Detectron2's evaluator.

In a panoptic data set `thing_classes` names all classes, stuff too, whereas the instances' JSON
has the things only; Detectron2's `COCOEvaluator` asserts that there are equally many.
"""

from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator


class InstanceEvaluator(COCOEvaluator):
    """Mask AP (pycocotools, official implementation) of the thing classes.

    As its base class it holds all predictions, run-length encoded, until they are evaluated.

    Args:
        dataset_name: a registered data set whose metadata has `json_file`, a COCO instances file,
            and `thing_dataset_id_to_contiguous_id`; `image_ids`, if there are any, are the images
            that count.
        output_dir: where to write Detectron2's `coco_instances_results.json` and
            `instances_predictions.pth`; None writes nothing.

    Raises:
        ValueError: the things' contiguous ids are not 0, 1, 2, …, or the JSON has a category
            that is no thing.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        ids = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(
                f"data set {dataset_name!r}: thing_dataset_id_to_contiguous_id has the values "
                f"{sorted(ids.values())}; mask AP needs things to be the classes 0 to "
                f"{len(ids) - 1}, before all stuff"
            )
        super().__init__(dataset_name, tasks=("segm",), use_fast_impl=False, output_dir=output_dir)
        unknown = set(self._coco_api.cats) - set(ids)
        if unknown:
            raise ValueError(
                f"{self._metadata.json_file}: its categories {sorted(unknown)} are not among the "
                f"things of data set {dataset_name!r}, {sorted(ids)}"
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """As in Detectron2, over the metadata's `image_ids` if there are any: `{"segm": ...}`."""
        return super().evaluate(img_ids=self._metadata.get("image_ids"))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        # pycocotools puts categories in the order of their ids.
        names = [self._coco_api.cats[i]["name"] for i in sorted(self._coco_api.cats)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names=names)
