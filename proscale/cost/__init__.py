"""What a model costs, before and after it is trained."""

from proscale.cost.flops import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops"]
