"""ADE20K's 150 classes (Zhou et al., CVPR 2017) as semantic, panoptic and instance data sets.

The semantic names are Detectron2's, the others those of Mask2Former's configuration files. Class c
of any of them is the value c + 1 of the benchmark's label images; 100 of the classes are things.
"""

from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from proscale.data.datasets.registration import (
    data_root,
    instance_metadata,
    panoptic_metadata,
    register_builtin,
    semantic_metadata,
)
from proscale.data.formats.coco_format import load_coco_instances, load_coco_panoptic
from proscale.data.formats.semantic_folders import load_semantic_folders

FOLDER = "ADEChallengeData2016"

# Folder names of the splits.
SPLITS = {"train": "training", "val": "validation"}

# Classes whose objects are counted, in the order of the instance challenge's 1 to 100.
THINGS = (
    *(7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37, 38, 39, 41, 42),
    *(43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67, 69, 70, 71, 72, 73, 74, 75),
    *(76, 78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92, 93, 95, 97, 98, 102, 103, 104, 107, 108),
    *(110, 111, 112, 115, 116, 118, 119, 120, 121, 123, 124, 125, 126, 127, 129, 130, 132, 133),
    *(134, 135, 136, 137, 138, 139, 142, 143, 144, 146, 147, 148, 149),
)


def categories() -> list[dict[str, Any]]:
    """The 150 classes as in ``categories`` of a COCO panoptic file; ids are 0 to 149."""
    return [
        {"id": id_, "name": name, "isthing": int(id_ in THINGS)}
        for id_, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
    ]


def register_ade20k(root: Path | None = None) -> None:
    """Register ``ade20k_{sem_seg,panoptic,instance}_{train,val}``.

    ``root``, ``data_root()`` when None, has the folder ``ADEChallengeData2016``.
    """
    root = (root or data_root()) / FOLDER
    for split, folder in SPLITS.items():
        image_root = root / "images" / folder
        instances_json = root / f"ade20k_instance_{split}.json"
        semantic = semantic_metadata(
            ADE20K_SEM_SEG_CATEGORIES,
            image_root=image_root,
            mask_root=root / "annotations_detectron2" / folder,
            image_suffix=".jpg",
        )
        panoptic = panoptic_metadata(
            categories(),
            image_root=image_root,
            panoptic_root=root / f"ade20k_panoptic_{split}",
            panoptic_json=root / f"ade20k_panoptic_{split}.json",
            instances_json=instances_json,
            things_first=False,  # published weights keep the benchmark's order
        )
        panoptic["evaluator_type"] = "ade20k_panoptic_seg"
        # Instances are of things alone, counted from 0.
        instance = instance_metadata(
            [category for category in categories() if category["isthing"]],
            image_root=image_root,
            json_file=instances_json,
        )
        for task, name, load, metadata in (
            ("semantic", "sem_seg", load_semantic_folders, semantic),
            ("panoptic", "panoptic", load_coco_panoptic, panoptic),
            ("instance", "instance", load_coco_instances, instance),
        ):
            preparation = f"ade20k-{task}"
            register_builtin(f"ade20k_{name}_{split}", load, metadata, preparation=preparation)
