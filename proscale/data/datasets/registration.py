"""Registration of data sets with Detectron2's catalogs, and their metadata.

As with Detectron2's own, the files of built-in names are looked up below the folder that
``$DETECTRON2_DATASETS`` names when the package is imported, ``datasets`` by default, and nothing is
read before it is asked for.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap

from proscale.data.formats.coco_format import (
    PANOPTIC_CATEGORIES,
    load_coco_panoptic,
    read_categories,
)
from proscale.data.formats.label_table import IGNORE_LABEL, LabelTable
from proscale.data.formats.semantic_folders import MASK_SUFFIX
from proscale.errors import DataError, MissingFileError

# Colours of a skeleton's links, RGB.
LEFT_COLOR, RIGHT_COLOR, MIDDLE_COLOR = (0, 170, 255), (255, 128, 0), (0, 200, 80)

# From a data set's metadata to its entries, in Detectron2's format.
Load = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


def register(
    name: str, load: Load, metadata: Mapping[str, Any] | Metadata, *, missing_hint: str = ""
) -> None:
    """Register a data set with Detectron2's catalogs; doing so again has no effect.

    ``load`` is called when entries are asked for; ``missing_hint`` is added to its message when a
    file is missing.

    Raises:
        DataError: ``name`` is registered with other metadata.
    """
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name).as_dict()
        # Evaluators may add keys of their own: only those that are set here are compared.
        if any(known.get(key) != metadata.get(key) for key in (*metadata, "image_ids")):
            raise DataError(f"data set {name} is already registered: expected a name that is free")
        return

    # Read when asked for; an error names the data set, too.
    def load_entries() -> list[dict[str, Any]]:
        try:
            return load(MetadataCatalog.get(name).as_dict())
        except MissingFileError as error:
            raise MissingFileError(f"data set {name}: {error}{missing_hint}") from error
        except DataError as error:
            raise DataError(f"data set {name}: {error}") from error

    DatasetCatalog.register(name, load_entries)
    # Lazy metadata are put in as they are: reading them here would read files.
    if isinstance(metadata, Metadata):
        MetadataCatalog[name] = metadata
    else:
        MetadataCatalog.get(name).set(**metadata)


def register_builtin(
    name: str, load: Load, metadata: Mapping[str, Any] | Metadata, *, preparation: str = ""
) -> None:
    """Register a name in place of Detectron2's data set of that name, if it has one.

    ``preparation`` is the argument of ``proscale prepare`` that writes missing files.
    """
    # Detectron2 registers some of the names on import.
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    command = f"; `proscale prepare {preparation} --root {data_root()}` writes it"
    hint = f"{command if preparation else ''}; the layout is in datasets/README.md"
    register(name, load, metadata, missing_hint=hint)


def register_coco_panoptic(
    name: str,
    *,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    instances_json: str | Path | None = None,
) -> None:
    """Register a data set in COCO's panoptic format, with the categories of its annotation file.

    Contiguous class ids are positions in the file's ``categories``, things first. As in
    Detectron2's COCO panoptic data sets, ``thing_classes`` and ``stuff_classes`` both list all
    classes, so that a contiguous id indexes either. Registering the same files again has no effect.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root, panoptic_root: folders of the images, and of the PNG files with segment ids.
        panoptic_json: annotations in COCO's panoptic format.
        instances_json: annotations in COCO's instance format; instance AP needs them.

    Raises:
        DataError: there is no ``panoptic_json``, it has no categories or lists an id twice, or
            ``name`` is taken by other files.
    """
    metadata = panoptic_metadata(
        read_categories(panoptic_json, PANOPTIC_CATEGORIES),
        image_root=image_root,
        panoptic_root=panoptic_root,
        panoptic_json=panoptic_json,
        instances_json=instances_json,
    )
    register(name, load_coco_panoptic, metadata)


def panoptic_metadata(
    categories: Sequence[Mapping[str, Any]],
    *,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    instances_json: str | Path | None = None,
    things_first: bool = True,
) -> dict[str, Any]:
    """Detectron2's metadata of a panoptic data set: files, classes, and how to evaluate it.

    Args:
        categories: COCO's, with ``id``, ``name``, ``isthing`` and, if colours are given, ``color``.
        image_root, panoptic_root, panoptic_json, instances_json: see ``register_coco_panoptic``.
        things_first: give things the first contiguous ids, else keep the order of ``categories``.
    """
    # sorted is stable: within things and stuff the file's order stays.
    ordered = sorted(categories, key=lambda category: things_first and not category["isthing"])
    names = [category["name"] for category in ordered]
    things, stuff = (
        {c["id"]: index for index, c in enumerate(ordered) if bool(c["isthing"]) == isthing}
        for isthing in (True, False)
    )
    metadata: dict[str, Any] = {
        "image_root": str(image_root),
        "panoptic_root": str(panoptic_root),
        "panoptic_json": str(panoptic_json),
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": things,
        "stuff_dataset_id_to_contiguous_id": stuff,
    }
    if instances_json is not None:
        metadata["json_file"] = str(instances_json)
    if colors := _colors(ordered):
        metadata |= {"thing_colors": colors, "stuff_colors": colors}
    return metadata


def instance_metadata(
    categories: Sequence[Mapping[str, Any]], *, image_root: str | Path, json_file: str | Path
) -> dict[str, Any]:
    """Detectron2's metadata of an instance data set: contiguous class ids in the order of COCO's.

    ``categories`` are COCO's, with ``id``, ``name`` and, if colours are given, ``color``.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    metadata: dict[str, Any] = {
        "image_root": str(image_root),
        "json_file": str(json_file),
        "evaluator_type": "coco",
        "thing_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(ordered)},
    }
    if colors := _colors(ordered):
        metadata["thing_colors"] = colors
    return metadata


def keypoint_metadata(
    category: Mapping[str, Any],
    names: Sequence[str],
    *,
    flip_pairs: Sequence[tuple[str, str]],
    links: Sequence[tuple[int, int]],
    sigmas: Sequence[float],
    upper_body: Sequence[str] = (),
    image_root: str | Path,
    json_file: str | Path,
) -> dict[str, Any]:
    """Detectron2's metadata of a data set of poses, all of one category.

    Args:
        category: COCO's, with ``id`` and ``name``.
        names: of the K keypoints.
        flip_pairs: (left, right), by name, which a mirrored image exchanges.
        links: of the skeleton, places 0 to K - 1.
        sigmas: (K,) of object keypoint similarity.
        upper_body: keypoints of the upper half of the body; the half-body augmentation needs them.
    """
    left, right = ({pair[side] for pair in flip_pairs} for side in (0, 1))

    def color(link: tuple[int, int]) -> tuple[int, int, int]:
        # A link is of the side that one of its ends is on; across the body it is of none.
        ends = {names[place] for place in link}
        sides = bool(ends & left), bool(ends & right)
        return {(True, False): LEFT_COLOR, (False, True): RIGHT_COLOR}.get(sides, MIDDLE_COLOR)

    return {
        **instance_metadata([category], image_root=image_root, json_file=json_file),
        "keypoint_names": list(names),
        "keypoint_flip_map": [tuple(pair) for pair in flip_pairs],
        "keypoint_connection_rules": [
            (names[link[0]], names[link[1]], color(link)) for link in links
        ],
        "keypoint_oks_sigmas": list(sigmas),
        "keypoint_upper_body": list(upper_body),
    }


def _colors(categories: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The categories' colours; none where one has none, or in another form than [R, G, B]."""
    colors = [category.get("color") for category in categories]
    # Some annotation tools write "#b92d2d".
    are_rgb = all(
        isinstance(color, (list, tuple))
        and len(color) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in color)
        for color in colors
    )
    return [list(color) for color in colors if color] if are_rgb else []


def semantic_metadata(
    class_names: Sequence[str],
    *,
    image_root: str | Path,
    mask_root: str | Path,
    image_suffix: str | None = None,
    mask_suffix: str = MASK_SUFFIX,
    colors: Sequence[Sequence[int]] = (),
    label_table: LabelTable | None = None,
) -> dict[str, Any]:
    """Detectron2's metadata of a semantic data set.

    Args:
        class_names: by class id.
        image_root, mask_root: folders of the images and label images, with the same sub-folders.
        image_suffix: ending of the images' names; None takes all of ``IMAGE_SUFFIXES``.
        mask_suffix: ending of the label images' names, which replaces ``image_suffix``.
        colors: RGB of the classes. Missing ones repeat Detectron2's palette.
        label_table: class ids of the labels; without it they are the labels.
    """
    table = {} if label_table is None else {"label_table": label_table}
    chosen = colormap(rgb=True).astype(int).tolist()
    return {
        "image_root": str(image_root),
        "sem_seg_root": str(mask_root),
        "image_suffix": image_suffix,
        "mask_suffix": mask_suffix,
        "stuff_classes": list(class_names),
        "stuff_colors": [
            list(colors[i]) if i < len(colors) else chosen[i % len(chosen)]
            for i in range(len(class_names))
        ],
        "ignore_label": IGNORE_LABEL,
        "evaluator_type": "sem_seg",
        **table,
    }


class LazyMetadata(Metadata):
    """Metadata of which ``lazy_keys`` are read by ``read`` when one of them is first asked for."""

    def __init__(
        self,
        name: str,
        *,
        known: Mapping[str, Any],
        lazy_keys: Collection[str],
        read: Callable[[], Mapping[str, Any]],
    ) -> None:
        # Not by attribute: setting one asks for the old value.
        self.__dict__.update(known, name=name, _unread=(frozenset(lazy_keys), read))

    def __getattr__(self, key: str) -> Any:
        if key in self.__dict__.get("_unread", ((), None))[0]:
            return self.as_dict()[key]
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        if "_unread" in self.__dict__:
            lazy_keys, read = self.__dict__["_unread"]
            self.__dict__.update({key: value for key, value in read().items() if key in lazy_keys})
            del self.__dict__["_unread"]
        return super().as_dict()


def data_root() -> Path:
    """The folder of all data sets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def detectron2_metadata(name: str) -> dict[str, Any]:
    """A copy of Detectron2's metadata of a data set."""
    metadata = MetadataCatalog.get(name).as_dict()
    del metadata["name"]
    return metadata
