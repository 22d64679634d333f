"""Chooses the evaluators for a configuration and a data set."""

import logging
from typing import NamedTuple

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


class _Kind(NamedTuple):
    evaluator: type[DatasetEvaluator]
    # The key of MODEL.MASK_FORMER.TEST that asks for it.
    switch: str
    # Keys of TEST, in lower case, that it takes as arguments.
    options: tuple[str, ...]


_PANOPTIC = _Kind(CocoPanopticEvaluator, "PANOPTIC_ON", ("save_predictions",))
_INSTANCE = _Kind(InstanceEvaluator, "INSTANCE_ON", ("boundary_iou", "save_predictions"))
_SEMANTIC = _Kind(SemanticEvaluator, "SEMANTIC_ON", ("boundary_iou",))
_CITYSCAPES_INSTANCE = _Kind(CityscapesInstanceEvaluator, "INSTANCE_ON", ())
_CITYSCAPES_SEMANTIC = _Kind(CityscapesSemanticEvaluator, "SEMANTIC_ON", ("boundary_iou",))

EVALUATORS = {
    "coco": (_INSTANCE,),
    "coco_panoptic_seg": (_PANOPTIC, _INSTANCE, _SEMANTIC),
    "ade20k_panoptic_seg": (_PANOPTIC, _INSTANCE, _SEMANTIC),
    "mapillary_vistas_panoptic_seg": (_PANOPTIC, _SEMANTIC),
    "cityscapes_panoptic_seg": (_PANOPTIC, _CITYSCAPES_INSTANCE, _CITYSCAPES_SEMANTIC),
    "cityscapes_instance": (_CITYSCAPES_INSTANCE,),
    "cityscapes_sem_seg": (_CITYSCAPES_SEMANTIC,),
    "sem_seg": (_SEMANTIC,),
}
"""By ``evaluator_type``, as Detectron2 and Mask2Former name them."""


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
    kinds = {kind.switch: kind for kind in EVALUATORS[evaluator_type]}
    evaluators: list[DatasetEvaluator] = []
    for switch, metric in (("PANOPTIC_ON", "PQ"), ("INSTANCE_ON", "AP"), ("SEMANTIC_ON", "mIoU")):
        if not cfg.MODEL.MASK_FORMER.TEST[switch]:
            continue
        kind = kinds.get(switch)
        obstacle = _obstacle(kind, dataset_name)
        if kind is None or obstacle:
            message = "%s is not computed, although MODEL.MASK_FORMER.TEST.%s is True: %s"
            logger.warning(message, metric, switch, obstacle)
        else:
            options = {name: cfg.TEST[name.upper()] for name in kind.options}
            evaluators.append(kind.evaluator(dataset_name, output_dir, **options))
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on data set {dataset_name!r}: expected True for at least one of "
            "PANOPTIC_ON, INSTANCE_ON (needs an instances' JSON) and SEMANTIC_ON in "
            f"MODEL.MASK_FORMER.TEST that evaluator_type {evaluator_type!r} has annotations for"
        )
    return DatasetEvaluators(evaluators)


def _obstacle(kind: _Kind | None, dataset_name: str) -> str:
    """The reason why a data set cannot be evaluated so; empty if it can."""
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    if kind is None:
        return f"{dataset_name!r} is of evaluator_type {metadata.evaluator_type!r}, without it"
    # Panoptic data sets may come without COCO's instance annotations.
    if kind is not _INSTANCE or (json_file and PathManager.isfile(json_file)):
        return ""
    if json_file:
        return f"{json_file} of data set {dataset_name!r} is no file"
    return f"data set {dataset_name!r} has no instances' JSON (json_file)"
