"""Operations that models call, free of any knowledge about models.

Work in tiles, folded norms and cached tables are here, so that a model's ``forward`` reads like its
paper. :mod:`~proscale.ops.tracing` says when the reference implementation of each runs instead.
"""

from proscale.ops.deformable_attention import (
    available_backends,
    deformable_attention,
    key_aware_deformable_attention,
    using_backend,
)
from proscale.ops.tracing import reference_operators

__all__ = [
    "available_backends",
    "deformable_attention",
    "key_aware_deformable_attention",
    "reference_operators",
    "using_backend",
]
