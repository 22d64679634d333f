"""From a checkpoint to predictions: in Python, and as a folder of files with a page to look at."""

from proscale.prediction.predictor import TASKS, Predictor
from proscale.prediction.result import Prediction, Segment

__all__ = ["TASKS", "Prediction", "Predictor", "Segment"]
