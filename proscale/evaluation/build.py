"""Which evaluators a configuration and a data set call for."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

EVALUATOR_TYPES = ("coco_panoptic_seg",)
"""Accepted values of a data set's `evaluator_type`."""

logger = logging.getLogger(__name__)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluators:
    """Build the evaluators of the results that `cfg` switches on.

    `MODEL.MASK_FORMER.TEST.PANOPTIC_ON` gives PQ, `INSTANCE_ON` mask AP, `SEMANTIC_ON` mIoU. Mask
    AP is left out, with a warning, when the data set has no instances' JSON.

    Args:
        cfg: the configuration, with this project's keys.
        dataset_name: a data set registered with Detectron2.
        output_dir: where the evaluators write their files; None writes nothing.

    Raises:
        ValueError: the data set's `evaluator_type` is not one of `EVALUATOR_TYPES`, or nothing
            is left to evaluate.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if evaluator_type not in EVALUATOR_TYPES:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}; accepted are "
            f"{', '.join(EVALUATOR_TYPES)}"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if test.PANOPTIC_ON:
        evaluators.append(CocoPanopticEvaluator(dataset_name, output_dir))
    if test.INSTANCE_ON:
        json_file = metadata.get("json_file")
        if json_file and PathManager.isfile(json_file):
            evaluators.append(InstanceEvaluator(dataset_name, output_dir))
        else:
            logger.warning(
                "Mask AP is not computed, although MODEL.MASK_FORMER.TEST.INSTANCE_ON is True: %s",
                f"{json_file} of data set {dataset_name!r} is no file"
                if json_file
                else f"data set {dataset_name!r} has no instances' JSON (json_file)",
            )
    if test.SEMANTIC_ON:
        evaluators.append(SemanticEvaluator(dataset_name, output_dir))
    if not evaluators:
        raise ValueError(
            f"nothing to evaluate on data set {dataset_name!r}: set at least one of PANOPTIC_ON, "
            "INSTANCE_ON (needs an instances' JSON) and SEMANTIC_ON in MODEL.MASK_FORMER.TEST"
        )
    return DatasetEvaluators(evaluators)
