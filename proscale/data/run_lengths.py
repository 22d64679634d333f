"""COCO's run lengths: checked when they come from files, and made from whole maps of segments.

A code is a dict of ``size`` [height, width] and ``counts``, compressed, as pycocotools has it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's ``segmentation`` as one code.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, …], …] in pixels of three points or more, or run
            lengths, compressed or not.
        height, width: of the image.

    Raises:
        ValueError: it is neither, or of another size than the image.
    """
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if list(size or ()) != [height, width]:
            raise ValueError(
                f"its run lengths have (height, width) {size}, its image {(height, width)}"
            )
        if isinstance(counts, (str, bytes)):
            return dict(segmentation)
        if isinstance(counts, list) and sum(counts) == height * width:
            return pycocotools.mask.frPyObjects(dict(segmentation), height, width)
        raise ValueError(f"its run lengths do not add up to {height * width} pixels")
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("its segmentation is neither polygons nor run lengths")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("its polygons must be lists of an even number, at least six, numbers")
    return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))


def encode_segments(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """The code of every id in a map, in one pass however many there are.

    Args:
        ids: (H, W) integers.

    Returns:
        codes by id, ascending.
    """
    height, width = ids.shape
    flat = ids.ravel(order="F")  # runs go down the columns
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    codes = {}
    for id_ in np.unique(values).tolist():
        runs = values == id_
        # Borders between background and segment in turn; their distances are the counts.
        borders = np.stack([starts[runs], ends[runs]], axis=1).ravel().tolist()
        if borders[-1] != flat.size:
            borders.append(flat.size)
        counts = np.diff(borders, prepend=0).tolist()
        codes[id_] = pycocotools.mask.frPyObjects(
            {"size": [height, width], "counts": counts}, height, width
        )
    return codes
