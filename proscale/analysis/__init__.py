"""What a model costs, before and after it is trained."""

from proscale.analysis.flops import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops"]
