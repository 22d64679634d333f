"""Chooses the evaluators for a configuration and a data set."""

import logging
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from proscale.errors import ConfigError
from proscale.evaluation.box_evaluator import BoxEvaluator
from proscale.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.pose_evaluator import PoseEvaluator
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

    A ``Detector`` gets box AP, a ``PoseEstimator`` keypoint AP and PCK. For others
    ``MODEL.MASK_FORMER.TEST.PANOPTIC_ON`` gives PQ, ``INSTANCE_ON`` AP, ``SEMANTIC_ON`` mIoU; one
    without annotations is left out with a warning.

    Args:
        cfg: with this project's keys.
        dataset_name: a data set registered with Detectron2.
        output_dir: where the evaluators write their files; None writes nothing.

    Raises:
        ConfigError: the data set's ``evaluator_type`` is not one of ``EVALUATORS``, or it has no
            annotations for the model.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type, json_file = metadata.get("evaluator_type"), metadata.get("json_file")
    if evaluator_type not in EVALUATORS:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}: expected "
            f"{', '.join(EVALUATORS)}"
        )
    if cfg.MODEL.META_ARCHITECTURE in _OBJECTS:
        if not json_file:
            raise ConfigError(
                f"data set {dataset_name!r} has no JSON of instances or keypoints (json_file): "
                f"expected one with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            )
        return DatasetEvaluators(
            [_OBJECTS[cfg.MODEL.META_ARCHITECTURE](cfg, dataset_name, output_dir)]
        )
    kinds = {kind.switch: kind for kind in EVALUATORS[evaluator_type]}
    evaluators: list[DatasetEvaluator] = []
    for switch, metric in (("PANOPTIC_ON", "PQ"), ("INSTANCE_ON", "AP"), ("SEMANTIC_ON", "mIoU")):
        if not cfg.MODEL.MASK_FORMER.TEST[switch]:
            continue
        kind = kinds.get(switch)
        if kind is None:
            reason = f"{dataset_name!r} is of evaluator_type {evaluator_type!r}, without it"
        # Panoptic data sets may come without COCO's instance annotations.
        elif kind is _INSTANCE and not json_file:
            reason = f"data set {dataset_name!r} has no instances' JSON (json_file)"
        elif kind is _INSTANCE and not PathManager.isfile(json_file):
            reason = f"{json_file} of data set {dataset_name!r} is no file"
        else:
            options = {name: cfg.TEST[name.upper()] for name in kind.options}
            evaluators.append(kind.evaluator(dataset_name, output_dir, **options))
            continue
        message = "%s is not computed, although MODEL.MASK_FORMER.TEST.%s is True: %s"
        logger.warning(message, metric, switch, reason)
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on data set {dataset_name!r}: expected True for at least one of "
            "PANOPTIC_ON, INSTANCE_ON (needs an instances' JSON) and SEMANTIC_ON in "
            f"MODEL.MASK_FORMER.TEST that evaluator_type {evaluator_type!r} has annotations for"
        )
    return DatasetEvaluators(evaluators)


def _box_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> DatasetEvaluator:
    return BoxEvaluator(dataset_name, output_dir, save_predictions=cfg.TEST.SAVE_PREDICTIONS)


def _pose_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> DatasetEvaluator:
    node = cfg.MODEL.POSE
    return PoseEvaluator(
        dataset_name,
        node.INPUT_SIZE,
        output_dir,
        padding=node.BOX_PADDING,
        oks_threshold=node.OKS_NMS_THRESH,
        save_predictions=cfg.TEST.SAVE_PREDICTIONS,
    )


# By meta-architecture, of models whose results are objects of one kind.
_OBJECTS = {"Detector": _box_evaluator, "PoseEstimator": _pose_evaluator}
