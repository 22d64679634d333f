"""Panoptic quality, AP, mIoU and measures of poses, of COCO's kind and of Cityscapes'."""

from proscale.evaluation.box_evaluator import BoxEvaluator
from proscale.evaluation.build import build_evaluator
from proscale.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.keypoints import (
    keypoint_pck,
    object_keypoint_similarity,
    oks_nms,
)
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.panoptic_quality import PanopticQuality
from proscale.evaluation.pose_evaluator import PoseEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator
from proscale.modeling.pose.scores import pose_scores

__all__ = [
    "BoxEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "CocoPanopticEvaluator",
    "InstanceEvaluator",
    "PanopticQuality",
    "PoseEvaluator",
    "SemanticEvaluator",
    "build_evaluator",
    "keypoint_pck",
    "object_keypoint_similarity",
    "oks_nms",
    "pose_scores",
]
