"""From a checkpoint to predictions: in Python, and as a folder of files with a page to look at."""

from proscale.predict.predictor import TASKS, Predictor, load
from proscale.predict.result import DetectedObject, Pose, Poses, Prediction, Segment, Segmentation

__all__ = [
    "TASKS",
    "DetectedObject",
    "Pose",
    "Poses",
    "Prediction",
    "Predictor",
    "Segment",
    "Segmentation",
    "load",
]
