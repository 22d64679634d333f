"""Generates the demo's data set: scenes of simple shapes in COCO's panoptic format.

The layout is COCO's: ``{train,val}/*.jpg``, ``panoptic_{train,val}/*.png``, and in ``annotations/``
``panoptic_{train,val}.json`` and ``instances_{train,val}.json``. The same parameters give the same
bytes. A data set is complete or absent: it is written beside its place and moved there at the end.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image

from proscale.data.datasets.coco_panoptic import panoptic_metadata, register
from proscale.data.datasets.shapes_scene import CATEGORIES, Scene, draw_scene
from proscale.data.formats.panoptic_png import write_panoptic_png

SPLITS = ("train", "val")
STAMP = "dataset.json"
# Below the current folder, like Detectron2's default for its data sets.
DEFAULT_ROOT = Path("output/shapes")
# Raised whenever the same parameters give another data set than before.
_VERSION = 1


def generate(
    root: Path, *, num_train: int = 400, num_val: int = 100, image_size: int = 128, seed: int = 0
) -> Path:
    """Write the data set to ``root``, or keep the one that is there if its parameters are the same.

    Args:
        root: folder of the data set. One that this function wrote with other parameters is
            replaced.
        num_train: number of training images.
        num_val: number of held-out images.
        image_size: side of the square images in pixels, at least 64.
        seed: of all randomness. An image depends on the seed, its split and its number only.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` exists and was not written by this function.
    """
    root = Path(root)
    parameters = {
        "generator": "proscale.data.datasets.shapes",
        "version": _VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "seed": seed,
    }
    if root.exists():
        stamp = _read_stamp(root)
        if stamp == parameters:
            return root
        if stamp.get("generator") != parameters["generator"]:
            raise FileExistsError(
                f"{root} exists and is not a generated shapes data set (no such {STAMP} in it); "
                "give a folder that does not exist yet"
            )

    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "annotations").mkdir(parents=True)
    for index, (split, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True)):
        _write_split(partial, split, count, image_size, (seed, index))
    _write_json(partial / STAMP, parameters)
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return root


def register_shapes(root: Path = DEFAULT_ROOT) -> None:
    """Register ``shapes_train`` and ``shapes_val``, the splits of the data set in ``root``.

    The data set need not be there yet. Registering again has no effect.

    Raises:
        ValueError: the names are registered with another ``root``.
    """
    for split in SPLITS:
        register(
            f"shapes_{split}",
            panoptic_metadata(
                coco_categories(),
                image_root=root / split,
                panoptic_root=root / f"panoptic_{split}",
                panoptic_json=root / "annotations" / f"panoptic_{split}.json",
                instances_json=root / "annotations" / f"instances_{split}.json",
            ),
        )


def coco_categories() -> list[dict]:
    """The classes, as in ``categories`` of the annotation files."""
    return [
        {
            "id": c.id,
            "name": c.name,
            "supercategory": "thing" if c.isthing else "stuff",
            "isthing": int(c.isthing),
            "color": list(c.color),
        }
        for c in CATEGORIES
    ]


def _read_stamp(root: Path) -> dict:
    path = root / STAMP
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n")


def _write_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    image_dir, panoptic_dir = root / split, root / f"panoptic_{split}"
    image_dir.mkdir()
    panoptic_dir.mkdir()
    images, panoptic, instances = [], [], []
    for number in range(count):
        rng = np.random.default_rng((*seed, number))
        scene = draw_scene(rng, size)
        image_id, name = number + 1, f"{number + 1:06d}"
        ids = _segment_ids(rng, len(scene.categories))
        _save_image(scene, image_dir / f"{name}.jpg")
        write_panoptic_png(panoptic_dir / f"{name}.png", ids[scene.segments])
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size})
        segments = _describe(scene, ids)
        panoptic.append(
            {
                "image_id": image_id,
                "file_name": f"{name}.png",
                "segments_info": [info for info, _ in segments],
            }
        )
        for info, rle in segments:
            if rle is not None:
                instances.append(
                    {**info, "id": len(instances) + 1, "image_id": image_id, "segmentation": rle}
                )

    categories = coco_categories()
    things = [category for category in categories if category["isthing"]]
    annotations = root / "annotations"
    _write_json(
        annotations / f"panoptic_{split}.json",
        {"images": images, "annotations": panoptic, "categories": categories},
    )
    _write_json(
        annotations / f"instances_{split}.json",
        {"images": images, "annotations": instances, "categories": things},
    )


def _segment_ids(rng: np.random.Generator, count: int) -> np.ndarray:
    """Distinct 24-bit ids, random as COCO's are; 0 is void."""
    return rng.choice(2**24 - 1, size=count, replace=False) + 1


def _describe(scene: Scene, ids: np.ndarray) -> list[tuple[dict, dict | None]]:
    """For every segment its entry of ``segments_info``, and its run lengths if it is a thing."""
    described = []
    for index, category in enumerate(scene.categories):
        rle = pycocotools.mask.encode(np.asfortranarray(scene.segments == index, np.uint8))
        info = {
            "id": int(ids[index]),
            "category_id": category.id,
            "iscrowd": 0,
            "bbox": [int(value) for value in pycocotools.mask.toBbox(rle)],
            "area": int(pycocotools.mask.area(rle)),
        }
        rle["counts"] = rle["counts"].decode("ascii")
        described.append((info, rle if category.isthing else None))
    return described


def _save_image(scene: Scene, path: Path) -> None:
    Image.fromarray(scene.image).save(path, quality=95)
