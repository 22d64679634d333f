"""``DATASETS.OWN``: blocks that are none, and folders that are not what a block says."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from proscale.config import setup_cfg
from tests.hostile.cases import Case, OwnData, Place, train
from tests.hostile.coco import EVERYWHERE, meet
from tests.hostile.material import SMALL, own_block

_WHERE = "DATASETS.OWN[0]"

# What becomes of the block of the panoptic data set, and words that are told.
_BLOCKS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "no block": (lambda b: "pets", (f"{_WHERE} is 'pets': expected a block with NAME, TASK",)),
    "nothing": (lambda b: None, (_WHERE, "expected a block")),
    "a list": (lambda b: [b], (_WHERE, "expected a block")),
    "empty": (lambda b: {}, (_WHERE, "NAME")),
    "misspelt key": (lambda b: {**b, "TRIAN": 1}, (f"{_WHERE}.TRIAN (did you mean TRAIN?)",)),
    "lower case": (lambda b: {**b, "name": "x"}, (f"{_WHERE}.name (did you mean NAME?)",)),
    "misspelt path": (
        lambda b: {**b, "VAL": {**b["VAL"], "MASK": "x"}},
        (f"{_WHERE}.VAL.MASK (did you mean MASKS?)",),
    ),
    "no name": (lambda b: {"TASK": "panoptic"}, (f"{_WHERE} has no NAME",)),
    "a name with a space": (lambda b: {**b, "NAME": "a b"}, ("NAME is 'a b': expected letters",)),
    "a name that leads out": (lambda b: {**b, "NAME": "../a"}, ("NAME is '../a'",)),
    "a name that ends with a newline": (lambda b: {**b, "NAME": "a\n"}, ("NAME is ",)),
    "a name of 300 letters": (lambda b: {**b, "NAME": "a" * 300}, ("NAME",)),
    "a name of Detectron2's": (
        lambda b: {**b, "NAME": "coco_2017"},
        ("coco_2017_train is already registered",),
    ),
    "a number as name": (lambda b: {**b, "NAME": 3}, ("NAME is 3: expected a text",)),
    "an unknown task": (lambda b: {**b, "TASK": "boxes"}, ("TASK is 'boxes': expected panoptic",)),
    "a task that is a list": (lambda b: {**b, "TASK": []}, ("TASK is []",)),
    "no split": (lambda b: {"NAME": "a", "TASK": "semantic"}, ("neither TRAIN nor VAL",)),
    "a split that is a text": (lambda b: {**b, "TRAIN": "x"}, ("TRAIN is 'x': expected a block",)),
    "no masks": (lambda b: {**b, "TRAIN": {"IMAGES": "train"}}, ("TRAIN has no ANNOTATIONS",)),
    "classes of a panoptic task": (lambda b: {**b, "CLASSES": ["a"]}, ("CLASSES is for TASK",)),
    "a root that is not set": (lambda b: {**b, "ROOT": "$NOT_SET/a"}, ("NOT_SET is not set",)),
    "a root of an unknown user": (lambda b: {**b, "ROOT": "~nosuchuser/a"}, ("nosuchuser",)),
    "a root with a zero byte": (lambda b: {**b, "ROOT": "a\0b"}, (_WHERE,)),
    "a root of 300 letters": (lambda b: {**b, "ROOT": "a" * 300}, (_WHERE,)),
    "a root on the web": (lambda b: {**b, "ROOT": "http://127.0.0.1:9"}, (_WHERE,)),
    "a root that is a number": (lambda b: {**b, "ROOT": 3}, ("ROOT is 3: expected a text",)),
    "a root that is empty": (lambda b: {**b, "ROOT": ""}, ("ROOT is ''",)),
}
for _key, _kind in (("IMAGES", "folder"), ("ANNOTATIONS", "file"), ("MASKS", "folder")):
    for _name, _value in {
        "that is not there": "nowhere",
        "of the other kind": "annotations/panoptic_val.json" if _kind == "folder" else "train",
        "with a zero byte": "a\0b",
        "of 300 letters": "a" * 300,
        "that is a number": 3,
        "that is empty": "",
        "that is a device": "/dev/null",
    }.items():
        _BLOCKS[f"{_key} {_name}"] = (
            lambda b, key=_key, value=_value: {**b, "VAL": {**b["VAL"], key: value}},
            (f"{_WHERE}.VAL.{_key}",),
        )

# Blocks of the semantic data set.
_CLASSES = {
    "class names twice": (["a", "a"], ("CLASSES has a name twice",)),
    "class names that are numbers": ([1, 2], ("CLASSES is [1, 2]",)),
    "a class name alone": ("a", ("CLASSES is 'a'",)),
    "no class names": ([], ("CLASSES is []",)),
}


def _configure(place: Place, blocks: list[Any]) -> object:
    content = {**SMALL, "DATASETS": {"OWN": blocks}}
    return setup_cfg(str(place.write("own.yaml", yaml.safe_dump(content))))


def _block(name: str, change: Callable[[dict[str, Any]], Any], words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        return _configure(place, [change(own_block(place.own.root, "panoptic"))])

    return Case(f"block: {name}", run, words)


def _classes(name: str, classes: Any, words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        return _configure(place, [{**own_block(place.own.root, "semantic"), "CLASSES": classes}])

    return Case(f"block: {name}", run, words)


def _twice(place: Place) -> object:
    return _configure(place, [own_block(place.own.root, "panoptic")] * 2)


def _tasks_together(place: Place) -> object:
    return _configure(place, [own_block(place.own.root, task) for task in ("panoptic", "semantic")])


def _save_labels(labels: Any, **options: Any) -> Callable[[OwnData], None]:
    return lambda f: Image.fromarray(np.asarray(labels)).save(f.labels, **options)


# What is done to the label image of the first image.
_LABELS = {
    "colours": (
        _save_labels(np.eye(3, dtype=np.uint8)[np.ones((64, 64), int)]),
        ("one channel", "mode RGB"),
    ),
    "of another size": (_save_labels(np.zeros((8, 8), np.uint8)), ("(8, 8)", "(64, 64)")),
    "a label too high": (_save_labels(np.full((64, 64), 9, np.uint8)), ("9", "0 to 8")),
    "a label of 16 bits": (_save_labels(np.full((64, 64), 999, np.uint16)), ("999", "0 to 8")),
    "a label of 32 bits": (
        _save_labels(np.full((64, 64), 2**30, np.int32), format="TIFF"),
        ("0 to 8",),
    ),
    "a negative label": (_save_labels(np.full((64, 64), -1, np.int32), format="TIFF"), ("0 to 8",)),
    "floats": (_save_labels(np.zeros((64, 64), np.float32), format="TIFF"), ("mode F",)),
    "text": (lambda f: f.labels.write_text("labels"), ("000001.png",)),
    "empty": (lambda f: f.labels.write_bytes(b""), ("000001.png",)),
    "cut short": (lambda f: f.labels.write_bytes(f.labels.read_bytes()[:-60]), ("000001.png",)),
}


def _labelled(name: str, spoil: Callable, words: tuple[str, ...], where: str) -> Case:
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, "semantic", where)

    return Case(f"labels: {name}, {where}", run, ("000001", *words))


def _semantic(spoil: Callable[[OwnData], object]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, "semantic", "train")

    return run


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _link_folder(f: OwnData) -> None:
    (f.root / "train").rename(f.root / "elsewhere")
    (f.root / "train").symlink_to(f.root / "elsewhere")


def _circle(f: OwnData) -> None:
    (f.root / "train" / "again").symlink_to(f.root / "train")


def _count_labels(place: Place) -> object:
    """Without names of classes the labels that are found are the classes."""
    _empty(place.own.root / "labels_train")
    _empty(place.own.root / "labels_val")
    block = own_block(place.own.root, "semantic")
    return _configure(place, [block])


def _train_without_images(place: Place) -> None:
    _empty(place.own.root / "train")
    place.copy("small.yaml")
    train("--config-file", "small.yaml")


def _has_three(place: Place, samples: Any) -> bool:
    return len(samples) == 3


CASES = [
    *(_block(name, *spec) for name, spec in _BLOCKS.items()),
    *(_classes(name, *spec) for name, spec in _CLASSES.items()),
    Case("block: a number in place of blocks", lambda place: _configure(place, 3), ("OWN",)),
    Case("block: the same name twice", _twice, ("own_panoptic twice",)),
    Case("block: two tasks together", _tasks_together, ("are in use together",)),
    *(
        _labelled(name, spoil, words, where)
        for name, (spoil, words) in _LABELS.items()
        for where in EVERYWHERE
    ),
    Case("no images", _semantic(lambda f: _empty(f.root / "train")), ("there are no images",)),
    Case("no labels", _count_labels, ("there are no labels",)),
    Case("training without images", _train_without_images, ("train",), is_light=False),
    Case("a folder that is a link", _semantic(_link_folder), (), False, _has_three),
    Case("a folder in itself", _semantic(_circle), (), False, _has_three),
    Case(
        "an image that is a pipe",
        _semantic(lambda f: (f.image.unlink(), os.mkfifo(f.image))),
        ("000001.jpg",),
    ),
    Case(
        "an image that is a device",
        _semantic(lambda f: (f.image.unlink(), f.image.symlink_to("/dev/zero"))),
        ("000001.jpg",),
    ),
]
