"""Operators of the models, free of any knowledge about them."""

from proscale.ops.deformable_attention import (
    available_backends,
    deformable_attention,
    using_backend,
)

__all__ = ["available_backends", "deformable_attention", "using_backend"]
