"""Replaces the integers of a map by others."""

from collections.abc import Mapping

import numpy as np


def relabel(ids: np.ndarray, values: Mapping[int, int], dtype: type) -> np.ndarray:
    """The map (H, W) in which every id is replaced by its value.

    Args:
        ids: (H, W) integers.
        values: by id.
        dtype: of the result.

    Raises:
        ValueError: ids have no value; the message lists them.
    """
    known = np.array(sorted(values))
    index = np.searchsorted(known, ids).clip(max=len(known) - 1)
    fits = known[index] == ids
    if not fits.all():
        accepted = known.tolist()
        raise ValueError(f"ids {np.unique(ids[~fits]).tolist()}: expected {accepted}")
    return np.array([values[id_] for id_ in known.tolist()], dtype)[index]
