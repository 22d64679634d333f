"""Relabelling replaces every id, or says which it cannot."""

import numpy as np
import pytest

from proscale.data.formats.relabel import relabel


def test_every_id_is_replaced():
    ids = np.array([[0, 9], [70000, 9]], np.uint32)
    result = relabel(ids, {70000: 2, 0: 255, 9: 1, 8: 7}, np.uint8)
    assert result.dtype == np.uint8
    assert result.tolist() == [[255, 1], [2, 1]]


@pytest.mark.parametrize("ids", [[1, 5], [0, 5], [2, 5]])
def test_unknown_ids_are_listed(ids):
    with pytest.raises(ValueError, match=r"ids \[5\]: expected \[0, 1, 2\]"):
        relabel(np.array(ids), {0: 0, 1: 0, 2: 0}, np.uint8)
