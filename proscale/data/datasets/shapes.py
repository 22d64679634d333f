"""The demo's data set: generated scenes of simple shapes in COCO's panoptic format.

A scene is a landscape of two or three textured stuff regions with wavy borders, and two to five
things lying on it, some of them in front of others. A class has its own shape or texture and its
own range of colours, with noise on top, so that a small model learns the task within minutes.

The layout is COCO's: ``{train,val}/*.jpg``, ``panoptic_{train,val}/*.png``, and in ``annotations/``
``panoptic_{train,val}.json`` and ``instances_{train,val}.json``. The same parameters give the same
bytes. A data set is complete or absent: it is written beside its place and moved there at the end.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from proscale.data.datasets.registration import panoptic_metadata, register
from proscale.data.formats.coco_format import load_coco_panoptic
from proscale.data.formats.image_file import write_panoptic_png
from proscale.data.formats.run_lengths import describe_segments
from proscale.errors import ConfigError

SPLITS = ("train", "val")
STAMP = "dataset.json"
# Below the current folder, like Detectron2's default for its data sets.
DEFAULT_ROOT = Path("output/shapes")
# The module's first name: data sets that carry it are kept.
_GENERATOR = "proscale.data.shapes"
# Raised whenever the same parameters give another data set than before.
_VERSION = 1

# Radius of a thing's circumscribed circle as a fraction of the image side, the fraction of its own
# pixels that a thing keeps when others are put in front of it, and the fraction of the image that
# is left of every stuff region. No segment is too small to be learned, so nothing becomes void.
RADIUS_RANGE = (0.13, 0.24)
MIN_VISIBLE_FRACTION = 0.55
MIN_STUFF_FRACTION = 0.04
THINGS_RANGE = (2, 5)
_PLACEMENT_TRIES = 100
_SUPERSAMPLING = 4

# As in COCO, the ids have gaps.
CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {"id": id_, "name": name, "supercategory": "thing" if isthing else "stuff"}
    | {"isthing": isthing, "color": color}
    for id_, name, isthing, color in (
        (1, "disc", 1, [220, 60, 50]),
        (2, "square", 1, [250, 200, 40]),
        (3, "triangle", 1, [170, 70, 200]),
        (4, "star", 1, [250, 130, 190]),
        (5, "ring", 1, [245, 245, 245]),
        (11, "sky", 0, [110, 170, 235]),
        (12, "grass", 0, [80, 150, 60]),
        (13, "field", 0, [165, 115, 65]),
        (14, "tiles", 0, [125, 125, 130]),
    )
)
"""The classes, as in ``categories`` of COCO's annotation files."""

_THINGS = [category for category in CATEGORIES if category["isthing"]]
_STUFF = [category for category in CATEGORIES if not category["isthing"]]


def draw_scene(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Draw a square scene with sides of ``size`` pixels (at least 64).

    Returns:
        the image (H, W, 3) uint8, RGB; the segment of every pixel (H, W), an index into the third;
        and the category of every segment, one per stuff class, one per thing. All have pixels.
    """
    if size < 64:
        raise ConfigError(f"image_size is {size}: expected 64 or more")
    segments, categories = _draw_regions(rng, size)
    image = np.zeros((size, size, 3))
    for index, category in enumerate(categories):
        region = segments == index
        image[region] = _texture(rng, category["name"], size)[region]

    wanted = rng.integers(THINGS_RANGE[0], THINGS_RANGE[1], endpoint=True)
    areas: list[int] = []  # of the things, unoccluded
    for _ in range(_PLACEMENT_TRIES):
        if len(areas) == wanted:
            break
        category = _THINGS[rng.integers(len(_THINGS))]
        coverage, rim = _draw_shape(rng, category["name"], size)
        mask = coverage >= 0.5
        # A thing that would leave too little of any other segment is drawn anew.
        left = np.bincount(segments[~mask], minlength=len(categories))
        needed = [MIN_STUFF_FRACTION * size**2] * (len(categories) - len(areas))
        needed += [MIN_VISIBLE_FRACTION * area for area in areas]
        if np.any(left < needed):
            continue
        areas.append(int(mask.sum()))
        segments[mask] = len(categories)
        categories.append(category)
        # Blended by coverage, so that the border is smooth; the rim is darker.
        paint = _thing_paint(rng, category["color"], size)
        image += coverage[..., None] * (paint - image)
        image += 0.6 * rim[..., None] * (0.3 * paint - image)

    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8), segments, categories


def _draw_regions(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Two or three regions: sky, if there is one, above the others; the rest split once more."""
    count = rng.integers(2, 3, endpoint=True)
    categories = [_STUFF[i] for i in rng.choice(len(_STUFF), size=count, replace=False)]
    categories.sort(key=lambda category: category["name"] != "sky")
    has_sky = categories[0]["name"] == "sky"
    # A level horizon below the sky, else a border of any direction.
    angle = rng.uniform(-0.2, 0.2) if has_sky else rng.uniform(-np.pi, np.pi)
    segments = (~_wavy_half_plane(rng, size, angle, rng.uniform(-0.18, 0.12))).astype(int)
    if count == 3:
        angle = np.pi / 2 + rng.uniform(-0.6, 0.6) + (0.0 if has_sky else angle)
        second = _wavy_half_plane(rng, size, angle, rng.uniform(-0.12, 0.12))
        segments[(segments == 1) & second] = 2
    return segments, categories


def _wavy_half_plane(
    rng: np.random.Generator, size: int, angle: float, offset: float
) -> np.ndarray:
    """The (size, size) bool mask of the part above (angle 0) a wavy line near the centre."""
    y, x = _unit_grid(size)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    # Two sines of different frequency, amplitude and phase.
    wave = sum(
        rng.uniform(0.01, 0.04) * np.sin(2 * np.pi * (f * along + rng.uniform()))
        for f in (0.8, 2.1)
    )
    return across < offset + wave


def _texture(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """(size, size, 3) RGB of a stuff class."""
    y, x = _unit_grid(size)
    if name == "sky":
        top, bottom = np.array([70, 130, 225]), np.array([185, 215, 245])
        # Clouds where smooth noise is high, on a gradient from top to bottom.
        clouds = np.clip(_smooth_noise(rng, size, 5) - 0.3, 0, 1)[..., None]
        color = top + (y[..., None] + 0.5) * (bottom - top) + rng.uniform(-15, 15)
        return color + clouds * (250 - color) * 0.6
    if name == "grass":
        color = np.array([75, 140, 55]) + rng.uniform(-15, 15, 3)
        # Fine blades and coarse patches.
        blades = _smooth_noise(rng, size, size // 2)
        light = 0.22 * blades + 0.12 * _smooth_noise(rng, size, 6)
    elif name == "field":
        angle, rows = rng.uniform(0, np.pi), rng.uniform(12, 18)
        # Parallel furrows in a random direction.
        furrows = np.sin(2 * np.pi * rows * (np.cos(angle) * x + np.sin(angle) * y))
        color = np.array([160, 112, 66]) + rng.uniform(-12, 12, 3)
        light = 0.2 * furrows + 0.06 * _smooth_noise(rng, size, size // 3)
    else:
        angle, rows = rng.uniform(-0.6, 0.6), rng.uniform(9, 13)
        # A rotated checkerboard of tiles.
        u = np.floor(rows * (np.cos(angle) * x + np.sin(angle) * y))
        v = np.floor(rows * (np.cos(angle) * y - np.sin(angle) * x))
        color = np.array([138, 138, 145]) + rng.uniform(-12, 12)
        light = 0.18 * (2 * ((u + v) % 2) - 1)
    return color * (1 + light)[..., None]


def _unit_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates of the pixel centres, in [-0.5, 0.5]."""
    centres = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return y, x


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size) noise of roughly unit variance with about ``cells`` bumps a side."""
    return cv2.resize(rng.normal(size=(cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)


def _polygon(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """(corners, 2) points on circles whose radii alternate."""
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


# Outlines within the unit circle. Where two contours of a shape enclose each other is a hole.
_CONTOURS: dict[str, list[np.ndarray]] = {
    "disc": [0.85 * _polygon(60)],
    "square": [_polygon(4)],
    "triangle": [1.05 * _polygon(3)],
    "star": [1.1 * _polygon(10, (1.0, 0.5))],
    "ring": [0.9 * _polygon(60), 0.45 * _polygon(60)],
}


def _draw_shape(rng: np.random.Generator, name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of every pixel covered by a thing, and by its rim: two (size, size) arrays."""
    radius = rng.uniform(*RADIUS_RANGE)
    # The centre stays inside, so that most of the shape is seen.
    centre = rng.uniform(0.6 * radius, 1 - 0.6 * radius, 2)
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [size * (radius * contour @ rotation + centre) for contour in _CONTOURS[name]]
    # Drawn larger, and averaged down to the fraction of every pixel.
    fine = [(contour * _SUPERSAMPLING).round().astype(np.int32) for contour in contours]
    body = np.zeros((size * _SUPERSAMPLING,) * 2, np.uint8)
    rim = np.zeros_like(body)
    cv2.fillPoly(body, fine, 255)
    cv2.polylines(rim, fine, isClosed=True, color=255, thickness=max(size // 24, 2))
    rim &= body  # the rim belongs to the thing, so it lies inside
    body_fraction, rim_fraction = (
        cv2.resize(layer, (size, size), interpolation=cv2.INTER_AREA) / 255.0
        for layer in (body, rim)
    )
    return body_fraction, rim_fraction


def _thing_paint(rng: np.random.Generator, class_color: list[int], size: int) -> np.ndarray:
    """(size, size, 3) RGB: the class's colour, varied, with a soft light from one side."""
    color = np.array(class_color) * rng.uniform(0.75, 1.0) + rng.uniform(-25, 25, 3)
    y, x = _unit_grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    return color * (1 + 0.25 * (np.cos(angle) * x + np.sin(angle) * y))[..., None]


def generate(
    root: Path, *, num_train: int = 400, num_val: int = 100, image_size: int = 128, seed: int = 0
) -> Path:
    """Write the data set to ``root``, or keep the one that is there if its parameters are the same.

    One that this function wrote with other parameters is replaced. Returns ``root``.

    Args:
        root: folder of the data set.
        num_train, num_val: numbers of images.
        image_size: side of the square images in pixels, at least 64.
        seed: of all randomness. An image depends on the seed, its split and its number only.

    Raises:
        FileExistsError: ``root`` exists and was not written by this function.
    """
    root = Path(root)
    parameters = {"generator": _GENERATOR, "version": _VERSION, "num_train": num_train}
    parameters |= {"num_val": num_val, "image_size": image_size, "seed": seed}
    if root.exists():
        stamp = json.loads((root / STAMP).read_text()) if (root / STAMP).is_file() else {}
        if stamp == parameters:
            return root
        if stamp.get("generator") != _GENERATOR:
            raise FileExistsError(
                f"{root} exists and is not a generated shapes data set (no such {STAMP} in it); "
                "give a folder that does not exist yet"
            )

    # Complete or absent: written beside its place, and moved there at the end.
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
    """
    for split in SPLITS:
        metadata = panoptic_metadata(
            CATEGORIES,
            image_root=root / split,
            panoptic_root=root / f"panoptic_{split}",
            panoptic_json=root / "annotations" / f"panoptic_{split}.json",
            instances_json=root / "annotations" / f"instances_{split}.json",
        )
        register(f"shapes_{split}", load_coco_panoptic, metadata)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n")


def _write_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    (root / split).mkdir()
    (root / f"panoptic_{split}").mkdir()
    images, panoptic = [], []
    instances: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.default_rng((*seed, number))
        image, segments, categories = draw_scene(rng, size)
        # Distinct 24-bit ids, random as COCO's are; 0 is void.
        ids = rng.choice(2**24 - 1, size=len(categories), replace=False) + 1
        image_id, name = number + 1, f"{number + 1:06d}"
        Image.fromarray(image).save(root / split / f"{name}.jpg", quality=95)
        write_panoptic_png(root / f"panoptic_{split}" / f"{name}.png", ids[segments])
        described = describe_segments(segments)
        infos = []
        for index, category in enumerate(categories):
            area, bbox, code = described[index]
            info = {"id": int(ids[index]), "category_id": category["id"], "iscrowd": 0}
            info |= {"bbox": bbox, "area": area}
            infos.append(info)
            if category["isthing"]:
                keys = {"id": len(instances) + 1, "image_id": image_id, "segmentation": code}
                instances.append(info | keys)
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
    for name, annotations, classes in (
        ("panoptic", panoptic, CATEGORIES),
        ("instances", instances, _THINGS),
    ):
        content = {"images": images, "annotations": annotations, "categories": classes}
        _write_json(root / "annotations" / f"{name}_{split}.json", content)
