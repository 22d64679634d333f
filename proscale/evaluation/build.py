"""Chooses the evaluators for a configuration and a data set."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from proscale.errors import ConfigError
from proscale.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

logger = logging.getLogger(__name__)

_METRICS = {"PANOPTIC_ON": "PQ", "INSTANCE_ON": "AP", "SEMANTIC_ON": "mIoU"}

_Evaluators = dict[str, type[DatasetEvaluator]]
_PANOPTIC: _Evaluators = {"PANOPTIC_ON": CocoPanopticEvaluator}
_INSTANCE: _Evaluators = {"INSTANCE_ON": InstanceEvaluator}
_SEMANTIC: _Evaluators = {"SEMANTIC_ON": SemanticEvaluator}
_CITYSCAPES_INSTANCE: _Evaluators = {"INSTANCE_ON": CityscapesInstanceEvaluator}
_CITYSCAPES_SEMANTIC: _Evaluators = {"SEMANTIC_ON": CityscapesSemanticEvaluator}

EVALUATORS = {
    "coco": _INSTANCE,
    "coco_panoptic_seg": _PANOPTIC | _INSTANCE | _SEMANTIC,
    "ade20k_panoptic_seg": _PANOPTIC | _INSTANCE | _SEMANTIC,
    "mapillary_vistas_panoptic_seg": _PANOPTIC | _SEMANTIC,
    "cityscapes_panoptic_seg": _PANOPTIC | _CITYSCAPES_INSTANCE | _CITYSCAPES_SEMANTIC,
    "cityscapes_instance": _CITYSCAPES_INSTANCE,
    "cityscapes_sem_seg": _CITYSCAPES_SEMANTIC,
    "sem_seg": _SEMANTIC,
}
"""By ``evaluator_type``, as Detectron2 and Mask2Former name them, the evaluators by the key of
``MODEL.MASK_FORMER.TEST`` that switches them on."""

# The keys of TEST that an evaluator takes, in lower case, as options.
_OPTIONS: dict[type[DatasetEvaluator], tuple[str, ...]] = {
    CocoPanopticEvaluator: ("save_predictions",),
    InstanceEvaluator: ("boundary_iou", "save_predictions"),
    SemanticEvaluator: ("boundary_iou",),
    CityscapesInstanceEvaluator: (),
    CityscapesSemanticEvaluator: ("boundary_iou",),
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluators:
    """Build the evaluators that ``cfg`` switches on and that the data set has annotations for.

    ``MODEL.MASK_FORMER.TEST.PANOPTIC_ON`` gives PQ, ``INSTANCE_ON`` instance AP, ``SEMANTIC_ON``
    mIoU. One that is switched on without annotations is left out with a warning.

    Args:
        cfg: the configuration, with this project's keys.
        dataset_name: a data set registered with Detectron2.
        output_dir: where the evaluators write their files; None writes nothing.

    Raises:
        ConfigError: the data set's ``evaluator_type`` is not one of ``EVALUATORS``, or nothing is
            left to evaluate.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATORS:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}: expected "
            f"{', '.join(EVALUATORS)}"
        )
    evaluators: list[DatasetEvaluator] = []
    for switch, metric in _METRICS.items():
        if not cfg.MODEL.MASK_FORMER.TEST[switch]:
            continue
        kind = EVALUATORS[evaluator_type].get(switch)
        obstacle = _obstacle(kind, dataset_name)
        if kind is None or obstacle:
            message = "%s is not computed, although MODEL.MASK_FORMER.TEST.%s is True: %s"
            logger.warning(message, metric, switch, obstacle)
        else:
            options = {name: cfg.TEST[name.upper()] for name in _OPTIONS[kind]}
            evaluators.append(kind(dataset_name, output_dir, **options))
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on data set {dataset_name!r}: expected True for at least one of "
            "PANOPTIC_ON, INSTANCE_ON (needs an instances' JSON) and SEMANTIC_ON in "
            f"MODEL.MASK_FORMER.TEST that evaluator_type {evaluator_type!r} has annotations for"
        )
    return DatasetEvaluators(evaluators)


def _obstacle(kind: type[DatasetEvaluator] | None, dataset_name: str) -> str:
    """The reason why a data set cannot be evaluated so; empty if it can."""
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    if kind is None:
        return f"{dataset_name!r} is of evaluator_type {metadata.evaluator_type!r}, without it"
    # Panoptic data sets may come without COCO's instance annotations.
    if kind is not InstanceEvaluator or (json_file and PathManager.isfile(json_file)):
        return ""
    if json_file:
        return f"{json_file} of data set {dataset_name!r} is no file"
    return f"data set {dataset_name!r} has no instances' JSON (json_file)"
