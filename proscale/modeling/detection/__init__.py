"""Object detection by DINO and Deformable DETR with any encoder of this project."""

from proscale.modeling.detection.criterion import DetectionCriterion, DetectionMatcher
from proscale.modeling.detection.deformable_detr import DeformableDETRHead
from proscale.modeling.detection.detector import Detector
from proscale.modeling.detection.dino import DINOHead

__all__ = [
    "DINOHead",
    "DeformableDETRHead",
    "DetectionCriterion",
    "DetectionMatcher",
    "Detector",
]
