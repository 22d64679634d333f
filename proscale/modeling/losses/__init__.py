"""Training targets and losses: who answers for which target, and how wrong it was."""

from proscale.modeling.losses.criterion import SetCriterion
from proscale.modeling.losses.matcher import HungarianMatcher

__all__ = ["HungarianMatcher", "SetCriterion"]
