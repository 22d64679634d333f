"""Nuclei in microscopy images (Data Science Bowl 2018, stage 1; CC0).

Nuclei are things and the background is stuff. ``proscale prepare nuclei`` makes the files of the
published ones.
"""

from pathlib import Path
from typing import Any

from proscale.data.datasets.registration import (
    data_root,
    instance_metadata,
    panoptic_metadata,
    register_builtin,
)
from proscale.data.formats.coco_format import load_coco_instances, load_coco_panoptic

FOLDER = "nuclei"
SPLITS = ("train", "val")
CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "nucleus", "isthing": 1, "color": [220, 20, 60]},
    {"id": 2, "name": "background", "isthing": 0, "color": [60, 60, 60]},
)
"""The classes, as in ``categories`` of COCO's annotation files."""


def register_nuclei(root: Path | None = None) -> None:
    """Register ``nuclei_panoptic_{train,val}``, and ``nuclei_instance_{train,val}`` for detection.

    ``root``, ``data_root()`` when None, has the folder ``nuclei``.
    """
    folder = (root or data_root()) / FOLDER
    for split in SPLITS:
        metadata = panoptic_metadata(
            CATEGORIES,
            image_root=folder / split,
            panoptic_root=folder / f"panoptic_{split}",
            panoptic_json=folder / "annotations" / f"panoptic_{split}.json",
            instances_json=folder / "annotations" / f"instances_{split}.json",
        )
        name = f"nuclei_panoptic_{split}"
        register_builtin(name, load_coco_panoptic, metadata, preparation="nuclei")
        instances = instance_metadata(
            [category for category in CATEGORIES if category["isthing"]],
            image_root=folder / split,
            json_file=folder / "annotations" / f"instances_{split}.json",
        )
        name = f"nuclei_instance_{split}"
        register_builtin(name, load_coco_instances, instances, preparation="nuclei")
