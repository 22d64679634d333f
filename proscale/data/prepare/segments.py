"""Segments of a map as COCO's annotations have them."""

from typing import Any

import numpy as np
import pycocotools.mask

from proscale.data.formats.panoptic_png import VOID
from proscale.data.formats.run_lengths import encode_segments


def describe_segments(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """``area``, ``bbox`` and ``segmentation`` of every id but void in a map (H, W), ascending."""
    described = {}
    for id_, code in encode_segments(ids).items():
        if id_ != VOID:
            described[id_] = {
                "area": int(pycocotools.mask.area(code)),
                "bbox": [int(value) for value in pycocotools.mask.toBbox(code)],
                "segmentation": {**code, "counts": code["counts"].decode("ascii")},
            }
    return described


def segments_info(ids: np.ndarray) -> list[dict[str, Any]]:
    """``id``, ``area`` and ``bbox`` of every id but void in a map (H, W), ascending."""
    return [
        {"id": id_, "area": segment["area"], "bbox": segment["bbox"]}
        for id_, segment in describe_segments(ids).items()
    ]
