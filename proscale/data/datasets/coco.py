"""Names of COCO data sets beyond those that Detectron2 registers.

Detectron2 registers ``coco_2017_{train,val}`` (instances) and ``coco_2017_{train,val}_panoptic``.
The names here share their files, or have what ``proscale prepare`` makes of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.datasets.builtin import Entries, data_root, detectron2_metadata, register_builtin
from proscale.data.datasets.coco_panoptic import register
from proscale.data.datasets.semantic_folders import load_semantic_folders, semantic_metadata
from proscale.data.formats.data_folder import DataFolder
from proscale.errors import DataError

# Photographs of 640×480 pixels with few and large segments, things and stuff, and without crowds:
# small enough a task for a model to learn it by heart on a CPU.
_EIGHT_TRAIN_IMAGES = (9, 144, 194, 387, 443, 450, 508, 510)


def register_coco(root: Path | None = None) -> None:
    """Register the names.

    - ``coco_2017_{train,val}_panoptic_with_sem_seg``: the panoptic splits under the names that
      Mask2Former's configuration files test on. Semantic truth needs no files of its own: it
      follows from the panoptic PNG files.
    - ``coco_2017_train_panoptic_8``: eight images of the training split.
    - ``coco_2017_{train,val}_sem_seg``: label images of the 133 panoptic classes, things included.
    - ``coco_2017_{train,val}_panoptic_stuffonly``: Detectron2's, label images of the 53 stuff
      classes and “things”; from here on their entries are found as those of the others are.

    Args:
        root: the folder that has ``coco``; ``data_root()`` when None.
    """
    root = (root or data_root()) / "coco"
    for name in (f"coco_2017_{s}{kind}" for s in ("train", "val") for kind in ("", "_panoptic")):
        guard(name)
    for split in ("train", "val"):
        panoptic = detectron2_metadata(f"coco_2017_{split}_panoptic")
        register(f"coco_2017_{split}_panoptic_with_sem_seg", panoptic)
        image_root = root / f"{split}2017"
        register_builtin(
            f"coco_2017_{split}_sem_seg",
            load_semantic_folders,
            semantic_metadata(
                panoptic["stuff_classes"],
                image_root=image_root,
                mask_root=root / f"panoptic_semseg_{split}2017",
                image_suffix=".jpg",
                colors=panoptic["stuff_colors"],
            ),
            preparation="coco-semantic",
        )
        stuff = detectron2_metadata(f"coco_2017_{split}_panoptic_stuffonly")
        folders = semantic_metadata(
            stuff["stuff_classes"],
            image_root=image_root,
            mask_root=root / f"panoptic_stuff_{split}2017",
            image_suffix=".jpg",
            colors=stuff["stuff_colors"],
        )
        register_builtin(
            f"coco_2017_{split}_panoptic_stuffonly",
            load_semantic_folders,
            stuff | folders,
            preparation="coco-stuff",
        )
    register(
        "coco_2017_train_panoptic_8",
        detectron2_metadata("coco_2017_train_panoptic"),
        image_ids=_EIGHT_TRAIN_IMAGES,
    )


def guard(name: str) -> None:
    """Let Detectron2's own loader load a data set of COCO, but tell what is wrong by name."""
    load, metadata = DatasetCatalog[name], MetadataCatalog.get(name)

    def guarded(known: Mapping[str, Any]) -> Entries:
        path = known["panoptic_json" if "panoptic_json" in known else "json_file"]
        try:
            entries = load()
        except (AssertionError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a file of COCO's format ({error!r})") from error
        for key, root in (("file_name", "image_root"), ("pan_seg_file_name", "panoptic_root")):
            if root in known:
                folder = DataFolder(known[root])
                for entry in entries:
                    file = os.path.relpath(entry[key], known[root])
                    folder.file(file, f"{path}: {key} of image {entry['image_id']}")
        return entries

    register_builtin(name, guarded, metadata)
