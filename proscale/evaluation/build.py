"""Which evaluators a configuration and a data set call for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from proscale.evaluation.cityscapes_instance import CityscapesInstanceEvaluator
from proscale.evaluation.cityscapes_semantic import CityscapesSemanticEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

logger = logging.getLogger(__name__)

Builder = Callable[[CfgNode, str, str | None], DatasetEvaluator]


def _panoptic(cfg: CfgNode, name: str, output_dir: str | None) -> DatasetEvaluator:
    return CocoPanopticEvaluator(name, output_dir, save_predictions=cfg.TEST.SAVE_PREDICTIONS)


def _instance(cfg: CfgNode, name: str, output_dir: str | None) -> DatasetEvaluator:
    return InstanceEvaluator(
        name,
        output_dir,
        boundary_iou=cfg.TEST.BOUNDARY_IOU,
        save_predictions=cfg.TEST.SAVE_PREDICTIONS,
    )


def _semantic(cfg: CfgNode, name: str, output_dir: str | None) -> DatasetEvaluator:
    return SemanticEvaluator(name, output_dir, boundary_iou=cfg.TEST.BOUNDARY_IOU)


def _cityscapes_instance(cfg: CfgNode, name: str, output_dir: str | None) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(name, output_dir)


def _cityscapes_semantic(cfg: CfgNode, name: str, output_dir: str | None) -> DatasetEvaluator:
    return CityscapesSemanticEvaluator(name, output_dir, boundary_iou=cfg.TEST.BOUNDARY_IOU)


@dataclass(frozen=True)
class Kinds:
    """How each kind of result is evaluated; None where there is no truth for it."""

    panoptic: Builder | None = None
    instance: Builder | None = None
    semantic: Builder | None = None


EVALUATORS = {
    "coco": Kinds(instance=_instance),
    "coco_panoptic_seg": Kinds(_panoptic, _instance, _semantic),
    "ade20k_panoptic_seg": Kinds(_panoptic, _instance, _semantic),
    "mapillary_vistas_panoptic_seg": Kinds(_panoptic, None, _semantic),
    "cityscapes_panoptic_seg": Kinds(_panoptic, _cityscapes_instance, _cityscapes_semantic),
    "cityscapes_instance": Kinds(instance=_cityscapes_instance),
    "cityscapes_sem_seg": Kinds(semantic=_cityscapes_semantic),
    "sem_seg": Kinds(semantic=_semantic),
}
"""By a data set's `evaluator_type`, as Detectron2 and Mask2Former name them."""


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluators:
    """Build the evaluators of the results that `cfg` switches on and that the data set has.

    `MODEL.MASK_FORMER.TEST.PANOPTIC_ON` gives PQ, `INSTANCE_ON` instance AP, `SEMANTIC_ON` mIoU.
    What is switched on, but has no truth in the data set, is left out with a warning.

    Args:
        cfg: the configuration, with this project's keys.
        dataset_name: a data set registered with Detectron2.
        output_dir: where the evaluators write their files; None writes nothing.

    Raises:
        ValueError: the data set's `evaluator_type` is not one of `EVALUATORS`, or nothing is left
            to evaluate.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if evaluator_type not in EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}: expected "
            f"{', '.join(EVALUATORS)}"
        )
    kinds, test = EVALUATORS[evaluator_type], cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    for switch, figure, builder in (
        ("PANOPTIC_ON", "PQ", kinds.panoptic),
        ("INSTANCE_ON", "AP", kinds.instance),
        ("SEMANTIC_ON", "mIoU", kinds.semantic),
    ):
        if not test[switch]:
            continue
        if builder is None:
            obstacle = f"there is none for evaluator_type {evaluator_type!r} of {dataset_name!r}"
        elif builder is _instance:
            obstacle = _no_instances_json(dataset_name)
        else:
            obstacle = None
        if obstacle is None:
            evaluators.append(builder(cfg, dataset_name, output_dir))
        else:
            logger.warning(
                "%s is not computed, although MODEL.MASK_FORMER.TEST.%s is True: %s",
                figure,
                switch,
                obstacle,
            )
    if not evaluators:
        raise ValueError(
            f"nothing to evaluate on data set {dataset_name!r}: set at least one of PANOPTIC_ON, "
            "INSTANCE_ON (needs an instances' JSON) and SEMANTIC_ON in MODEL.MASK_FORMER.TEST that "
            f"evaluator_type {evaluator_type!r} has truth for"
        )
    return DatasetEvaluators(evaluators)


def _no_instances_json(dataset_name: str) -> str | None:
    """Why instance AP cannot be computed; None if it can."""
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        return f"data set {dataset_name!r} has no instances' JSON (json_file)"
    if not PathManager.isfile(json_file):
        return f"{json_file} of data set {dataset_name!r} is no file"
    return None
