"""Panoptic quality, instance AP and semantic mIoU, of COCO's kind and of Cityscapes'."""

from proscale.evaluation.build import build_evaluator
from proscale.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.panoptic_quality import PanopticQuality
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "CocoPanopticEvaluator",
    "InstanceEvaluator",
    "PanopticQuality",
    "SemanticEvaluator",
    "build_evaluator",
]
