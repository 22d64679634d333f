"""Mapillary Vistas v1.2 (Neuhold et al., ICCV 2017), with the classes of its configuration file.

Its 66 labels, the last of which is “Unlabeled”, make 65 classes. The files may lie as in the
release of version 1.2 (``config.json``, ``training/labels``) or in that of 2.0
(``config_v1.2.json``, ``training/v1.2/labels``).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from proscale.data.datasets.registration import (
    LazyMetadata,
    data_root,
    panoptic_metadata,
    register_builtin,
    semantic_metadata,
)
from proscale.data.formats.coco_format import load_coco_panoptic
from proscale.data.formats.json_file import read_json
from proscale.data.formats.semantic_folders import load_semantic_folders
from proscale.errors import DataError, MissingFileError

CONFIG_FILES = ("config_v1.2.json", "config.json")
SPLITS = {"train": "training", "val": "validation"}
_Classes = list[dict[str, Any]]

# Keys of the metadata that follow without the configuration file.
_KNOWN = ("evaluator_type", "image_root", "label_divisor")


def register_mapillary(root: Path | None = None) -> None:
    """Register ``mapillary_vistas_{sem_seg,panoptic}_{train,val}``.

    Asking for their classes reads the configuration file, or raises a DataError. ``root``,
    ``data_root()`` when None, has the folder ``mapillary_vistas``.
    """
    root = (root or data_root()) / "mapillary_vistas"
    for split, folder in SPLITS.items():
        for task, load in (("sem_seg", load_semantic_folders), ("panoptic", load_coco_panoptic)):
            name = f"mapillary_vistas_{task}_{split}"
            # Without classes, for its keys alone.
            without_classes = _metadata(task, root, folder, lambda root: [])
            metadata = LazyMetadata(
                name,
                known={key: without_classes[key] for key in _KNOWN if key in without_classes},
                lazy_keys=without_classes.keys() - set(_KNOWN),
                read=partial(_metadata, task, root, folder, read_classes),
            )
            register_builtin(name, load, metadata)


def read_classes(root: Path) -> _Classes:
    """The evaluated labels l of the configuration file, as COCO's ``categories`` with ids l + 1.

    Raises:
        DataError: there is no configuration file, or it has no labels, or some that are not
            evaluated before some that are.
    """
    found = [root / name for name in CONFIG_FILES if (root / name).is_file()]
    if not found:
        raise MissingFileError(
            f"there is no {' or '.join(CONFIG_FILES)} in {root}: Mapillary Vistas' classes come "
            "from it"
        )
    try:
        labels = read_json(found[0])["labels"]
        evaluated = [bool(label["evaluate"]) for label in labels]
        classes = [
            {
                "id": id_,
                "name": label["readable"],
                "isthing": int(label["instances"]),
                "color": label["color"],
            }
            for id_, label in enumerate(labels[: sum(evaluated)], start=1)
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{found[0]}: not a configuration file of v1.2 ({error!r})") from error
    # The contiguous ids are the labels themselves, if those that are evaluated come first.
    if not all(evaluated[: len(classes)]) or not 0 < len(classes) < 255:
        raise DataError(
            f"{found[0]}: of its {len(labels)} labels those that are evaluated must come first"
        )
    return classes


def _metadata(
    task: str, root: Path, folder: str, read: Callable[[Path], _Classes]
) -> dict[str, Any]:
    classes = read(root)
    images, annotations = root / folder / "images", root / folder
    # Release 2.0 has the annotations of version 1.2 in a folder of their own.
    if (annotations / "v1.2").is_dir():
        annotations /= "v1.2"
    if task == "sem_seg":
        metadata = semantic_metadata(
            [class_["name"] for class_ in classes],
            image_root=images,
            mask_root=annotations / "labels",
            image_suffix=".jpg",
            colors=[class_["color"] for class_ in classes],
        )
    else:
        metadata = panoptic_metadata(
            classes,
            image_root=images,
            panoptic_root=annotations / "panoptic",
            panoptic_json=annotations / "panoptic" / "panoptic_2018.json",
            things_first=False,  # published weights keep the benchmark's order
        ) | {"evaluator_type": "mapillary_vistas_panoptic_seg"}
    return metadata | {"ignore_label": len(classes)}
