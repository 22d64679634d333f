"""COCO's run lengths: checked when they come from files, and made from whole maps of segments.

A code is a dict of ``size`` [height, width] and ``counts``, compressed, as pycocotools has it.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pycocotools.mask


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's ``segmentation`` in an image of this size as one code.

    It is polygons [[x0, y0, x1, y1, …], …] in pixels of three points or more, or run lengths,
    compressed or not.

    Raises:
        ValueError: it is neither, of another size than the image, or further outside of it than the
            image is long.
    """
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        # JSON has a list, pycocotools a tuple.
        if size != [height, width] and size != (height, width):
            raise ValueError(
                f"its run lengths have (height, width) {size}, its image {(height, width)}"
            )
        if isinstance(counts, (str, bytes)):
            code = counts.encode() if isinstance(counts, str) else counts
            if _compressed_sum(code) == height * width:
                return {"size": [height, width], "counts": code}
        elif (
            isinstance(counts, list)
            and all(type(count) is int and count >= 0 for count in counts)
            and sum(counts) == height * width
        ):
            return pycocotools.mask.frPyObjects(dict(segmentation), height, width)
        # Runs that do not fill the image would be decoded all the same.
        raise ValueError(f"its run lengths do not add up to {height * width} pixels")
    # Polygons: the union of all of them is one mask.
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("its segmentation is neither polygons nor run lengths")
    # Drawing takes memory for every pixel along an edge, inside or outside: a corner may be
    # outside, as far as the image is long.
    margin = max(height, width)
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("its polygons must be lists of an even number, at least six, numbers")
        if not all(type(value) in (int, float) for value in polygon):
            raise ValueError("its polygons must be lists of numbers")
        xs, ys = polygon[::2], polygon[1::2]
        if min(*xs, *ys) < -margin or max(xs) > width + margin or max(ys) > height + margin:
            raise ValueError(
                f"its polygons reach from (x, y) {(min(xs), min(ys))} to {(max(xs), max(ys))}: "
                f"expected {margin} pixels beyond its image of {(width, height)}"
            )
    return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))


def _compressed_sum(code: bytes) -> int | None:
    """The sum of compressed run lengths; None if they are no run lengths.

    A number is written with 5 bits a character, the lowest first: a character is 48 plus the bits,
    plus 32 if another follows; 16 in the last is the sign. From the fourth on numbers are what the
    run is longer than the one two before it.
    """
    characters = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(characters < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts[: ends.size] + 1
    # A last character with its continuation bit set promises another one.
    is_complete = ends.size and ends[-1] == characters.size - 1
    # Seven characters hold more than any image has pixels.
    if is_complete and 0 <= characters.min() <= characters.max() < 64 and lengths.max() <= 7:
        shifts = 5 * (np.arange(characters.size) - np.repeat(starts, lengths))
        # Five bits from each character of a number, added up.
        runs = np.add.reduceat((characters & 31) << shifts, starts)
        # Sign extension.
        runs -= np.where(characters[ends] & 16, 1 << 5 * lengths, 0)
        # Differences to the run two before become run lengths.
        for first in (1, 2):
            runs[first::2] = np.cumsum(runs[first::2])
        if runs.min() >= 0:
            return int(runs.sum())
    return None


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The code of a mask (H, W) bool."""
    pixels = mask.view(np.uint8)
    # COCO's runs go down the columns. Copied by OpenCV, which transposes by tiles; NumPy's copy
    # takes three times as long as coding does.
    columns = pixels if pixels.flags.f_contiguous else cv2.transpose(pixels).T
    return pycocotools.mask.encode(columns)


def encode_segments(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """The code of every id in a map (H, W) of integers, by id, ascending.

    One pass over the map finds its runs, which all codes share.
    """
    height, width = ids.shape
    flat = ids.ravel(order="F")  # runs go down the columns
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    ends = np.append(starts[1:], flat.size)
    # One id per run; a segment's mask is the runs with its id.
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


def describe_segments(ids: np.ndarray) -> dict[int, tuple[int, list[int], dict[str, Any]]]:
    """Area, box [x, y, width, height] and run lengths, as JSON has them, see encode_segments."""
    return {
        id_: (
            int(pycocotools.mask.area(code)),
            [int(value) for value in pycocotools.mask.toBbox(code)],
            {**code, "counts": code["counts"].decode("ascii")},
        )
        for id_, code in encode_segments(ids).items()
    }
