"""Cost of models: multiply-adds, parameters, activations, and encoders within a budget."""

from proscale.cost.flops import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops"]
