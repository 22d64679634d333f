"""Cityscapes under Detectron2's names, read from its PNG files alone.

Detectron2 reads instances from polygons, with a geometry library and for minutes, and asserts
that files are there. Here instances are those of the ``instanceIds`` images, the ground truth of
the benchmark's evaluation, and all entries have the size of their image.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pycocotools.mask
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import BoxMode

from proscale.data.datasets.registration import data_root, detectron2_metadata, register_builtin
from proscale.data.formats.coco_format import Entries, load_coco_panoptic
from proscale.data.formats.image_file import read_label_image, stored_size
from proscale.data.formats.run_lengths import encode_segments
from proscale.data.formats.semantic_folders import load_semantic_folders
from proscale.errors import MissingFileError
from proscale.utils.untrusted import inside

IMAGE_SUFFIX = "_leftImg8bit.png"
INSTANCES_SUFFIX = "_gtFine_instanceIds.png"
LABELS_SUFFIX = "_gtFine_labelTrainIds.png"
SPLITS = ("train", "val")
# Pixels of an object have its label times this plus its number; others have their label.
INSTANCES_PER_CLASS = 1000

_THINGS = [category["id"] for category in CITYSCAPES_CATEGORIES if category["isthing"]]
_INSTANCE_CLASSES = {id_: index for index, id_ in enumerate(_THINGS)}


def register_cityscapes(root: Path | None = None) -> None:
    """Register ``cityscapes_fine_{sem_seg,instance_seg,panoptic}_{train,val}``.

    ``root``, ``data_root()`` when None, has the folder ``cityscapes``.
    """
    root = (root or data_root()) / "cityscapes"
    for split in SPLITS:
        images, labels = str(root / "leftImg8bit" / split), str(root / "gtFine" / split)
        panoptic = root / "gtFine" / f"cityscapes_panoptic_{split}"
        # Detectron2's evaluators look for the ground truth in gt_dir.
        common = {"image_root": images, "image_dir": images, "gt_dir": labels}
        folders = common | {
            "sem_seg_root": labels,
            "image_suffix": IMAGE_SUFFIX,
            "stuff_colors": [category["color"] for category in CITYSCAPES_CATEGORIES],
            "thing_colors": [c["color"] for c in CITYSCAPES_CATEGORIES if c["isthing"]],
        }
        semantic = folders | {"mask_suffix": LABELS_SUFFIX}
        instances = folders | {"mask_suffix": INSTANCES_SUFFIX}
        files = common | {"panoptic_root": str(panoptic), "panoptic_json": f"{panoptic}.json"}
        for task, load, metadata, preparation in (
            ("sem_seg", _load_semantic, semantic, "cityscapes"),
            ("instance_seg", load_cityscapes_instances, instances, ""),  # as downloaded
            ("panoptic", load_cityscapes_panoptic, files, "cityscapes"),
        ):
            name = f"cityscapes_fine_{task}_{split}"
            metadata = detectron2_metadata(name) | metadata
            register_builtin(name, load, metadata, preparation=preparation)


def load_cityscapes_instances(metadata: Mapping[str, Any]) -> Entries:
    """The entries of an instance data set in Detectron2's format, ordered by name.

    ``image_id`` is the file's name, as Detectron2 has it, and ``annotations`` are run lengths.
    Groups of objects that could not be separated are crowds.
    """
    entries = load_semantic_folders(metadata)
    # Threads: decoding and encoding release Python's lock.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_instances, entries))


def load_cityscapes_panoptic(metadata: Mapping[str, Any]) -> Entries:
    """The entries of a panoptic data set, see ``load_coco_panoptic``.

    ``cityscapesscripts`` writes file names of images that do not exist; they follow from the ids.
    """
    entries = load_coco_panoptic(metadata)
    for entry in entries:
        image_id = str(entry["image_id"])
        where = f"{metadata['panoptic_json']}: the path of image {image_id}"
        # Images lie in a folder for each city, which the id begins with.
        path = f"{image_id.split('_')[0]}/{image_id}"
        entry["file_name"] = inside(metadata["image_root"], path + IMAGE_SUFFIX, where)
        entry["sem_seg_file_name"] = inside(metadata["gt_dir"], path + LABELS_SUFFIX, where)
        if not Path(entry["sem_seg_file_name"]).is_file():
            raise MissingFileError(f"there is no {entry['sem_seg_file_name']}")
    return entries


def _load_semantic(metadata: Mapping[str, Any]) -> Entries:
    entries = load_semantic_folders(metadata)
    for entry in entries:
        # Evaluation and grouping by aspect ratio need sizes, which folders do not state.
        entry["height"], entry["width"] = stored_size(entry["file_name"])
    return entries


def _instances(entry: Mapping[str, Any]) -> dict[str, Any]:
    ids = read_label_image(entry["sem_seg_file_name"])
    annotations = []
    for id_, code in encode_segments(ids).items():
        # A thing's label without a number is a group of objects that could not be separated.
        is_crowd = id_ < INSTANCES_PER_CLASS
        label = id_ if is_crowd else id_ // INSTANCES_PER_CLASS
        if label in _INSTANCE_CLASSES:
            annotations.append(
                {
                    "bbox": pycocotools.mask.toBbox(code).tolist(),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "iscrowd": int(is_crowd),
                    "category_id": _INSTANCE_CLASSES[label],
                    "segmentation": code,
                }
            )
    names = {"file_name": entry["file_name"], "image_id": Path(entry["file_name"]).name}
    height, width = ids.shape
    return names | {"height": height, "width": width, "annotations": annotations}
