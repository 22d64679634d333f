"""Names of COCO data sets beyond those that Detectron2 registers.

Detectron2 registers ``coco_2017_{train,val}`` (instances) and ``coco_2017_{train,val}_panoptic``.
The names here use the same files, or those that ``proscale prepare`` makes of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import (
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
)

from proscale.data.datasets.registration import (
    data_root,
    detectron2_metadata,
    keypoint_metadata,
    register_builtin,
    semantic_metadata,
)
from proscale.data.formats.coco_format import (
    load_coco_instances,
    load_coco_keypoints,
    load_coco_panoptic,
)
from proscale.data.formats.semantic_folders import load_semantic_folders
from proscale.errors import DataError, MissingFileError
from proscale.utils.untrusted import inside

# Photographs of 640×480 pixels with few and large segments, things and stuff, and without crowds:
# a small enough task for a model to overfit on a CPU.
_EIGHT_TRAIN_IMAGES = (9, 144, 194, 387, 443, 450, 508, 510)

# The 25 images of a sample of 50 that have persons with labelled keypoints, 57 in all.
_IMAGES_OF_57_PERSONS = (
    *(5802, 12448, 60623, 111076, 113588, 184613, 204805, 222564, 293802, 318219, 328757, 337264),
    *(368402, 372938, 384553, 391895, 412151, 462565, 483108, 515289, 522418, 554625, 562150),
    *(574769, 579003),
)

# Links of the annotation files' skeleton, keypoints counted from 1.
_SKELETON = (
    *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
    *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
)
SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""COCO's tolerances of the 17 keypoints, relative to the root of a person's area."""


def register_coco(root: Path | None = None) -> None:
    """Register the names; ``root``, ``data_root()`` when None, has the folder ``coco``.

    - ``coco_2017_{train,val}_panoptic_with_sem_seg``: the panoptic splits under the names that
      Mask2Former's configuration files test on. Semantic annotations need no files of their own:
      they follow from the panoptic PNG files.
    - ``coco_2017_train_panoptic_8`` and ``coco_2017_train_8``: eight images of the training split.
    - ``coco_2017_{train,val}_sem_seg``: label images of the 133 panoptic classes, things included.
    - ``keypoints_coco_2017_{train,val}``: Detectron2's, persons with 17 keypoints; annotations keep
      their ids, which PCK needs, and links and tolerances are those of COCO. Of the training
      split ``keypoints_coco_2017_train_57`` has 57 persons.
    - ``coco_2017_{train,val}_panoptic_stuffonly``: Detectron2's, label images of the 53 stuff
      classes and “things”; from here on their entries are found as those of the others are.
    """
    root = (root or data_root()) / "coco"
    for name in (f"coco_2017_{s}{kind}" for s in ("train", "val") for kind in ("", "_panoptic")):
        guard(name)
    for split in ("train", "val"):
        poses = keypoint_metadata(
            {"id": 1, "name": "person"},
            COCO_PERSON_KEYPOINT_NAMES,
            flip_pairs=COCO_PERSON_KEYPOINT_FLIP_MAP,
            links=[(a - 1, b - 1) for a, b in _SKELETON],
            sigmas=SIGMAS,
            upper_body=COCO_PERSON_KEYPOINT_NAMES[:11],
            image_root=root / f"{split}2017",
            json_file=root / "annotations" / f"person_keypoints_{split}2017.json",
        )
        register_builtin(f"keypoints_coco_2017_{split}", load_coco_keypoints, poses)
        if split == "train":
            poses = poses | {"image_ids": _IMAGES_OF_57_PERSONS}
            register_builtin("keypoints_coco_2017_train_57", load_coco_keypoints, poses)
        panoptic = detectron2_metadata(f"coco_2017_{split}_panoptic")
        register_builtin(f"coco_2017_{split}_panoptic_with_sem_seg", load_coco_panoptic, panoptic)
        stuff = detectron2_metadata(f"coco_2017_{split}_panoptic_stuffonly")
        for name, known, folder, preparation in (
            ("sem_seg", panoptic, "semseg", "coco-semantic"),
            ("panoptic_stuffonly", stuff, "stuff", "coco-stuff"),
        ):
            metadata = semantic_metadata(
                known["stuff_classes"],
                image_root=root / f"{split}2017",
                mask_root=root / f"panoptic_{folder}_{split}2017",
                image_suffix=".jpg",
                colors=known["stuff_colors"],
            )
            # Detectron2's own metadata stay, but for the folders.
            if known is stuff:
                metadata = stuff | metadata
            name = f"coco_2017_{split}_{name}"
            register_builtin(name, load_semantic_folders, metadata, preparation=preparation)
    register_builtin(
        "coco_2017_train_panoptic_8",
        load_coco_panoptic,
        detectron2_metadata("coco_2017_train_panoptic") | {"image_ids": _EIGHT_TRAIN_IMAGES},
    )
    register_builtin(
        "coco_2017_train_8",
        load_coco_instances,
        detectron2_metadata("coco_2017_train") | {"image_ids": _EIGHT_TRAIN_IMAGES},
    )


def guard(name: str) -> None:
    """Let Detectron2's own loader load a data set of COCO, with errors that name the file."""
    load_unguarded = DatasetCatalog[name]

    def load(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        path = metadata["panoptic_json" if "panoptic_json" in metadata else "json_file"]
        try:
            entries = load_unguarded()
        except FileNotFoundError as error:
            raise MissingFileError(str(error)) from error
        except (AssertionError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a file of COCO's format ({error!r})") from error
        # Detectron2 joins folders and names without a look at "..".
        for key, root in (("file_name", "image_root"), ("pan_seg_file_name", "panoptic_root")):
            if root in metadata:
                for entry in entries:
                    file = os.path.relpath(entry[key], metadata[root])
                    where = f"{path}: {key} of image {entry['image_id']}"
                    inside(metadata[root], file, where)
        return entries

    register_builtin(name, load, MetadataCatalog.get(name))
