"""Evaluation: panoptic quality, instance mask AP and semantic mIoU."""

from proscale.evaluation.build import build_evaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.panoptic_quality import PanopticQuality
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

__all__ = [
    "CocoPanopticEvaluator",
    "InstanceEvaluator",
    "PanopticQuality",
    "SemanticEvaluator",
    "build_evaluator",
]
