"""Descriptions in checkpoints: what a foreign file says of its model is checked as YAML is."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from proscale.checkpoint import DESCRIPTION, ModelDescription
from proscale.checkpoint.files import write_checkpoint
from proscale.config import setup_cfg
from tests.hostile.cases import Case, Place, command
from tests.hostile.checkpoints import Call, _model, _shell


def _sound(place: Place) -> dict[str, Any]:
    return asdict(ModelDescription.of(setup_cfg(str(place.material / "absolute.yaml"))))


def _write(place: Place, text: Any, suffix: str = ".pth") -> str:
    """The model's weights with ``text`` as description."""
    path = place / f"weights{suffix}"
    write_checkpoint(path, _model(place), container="model", texts={DESCRIPTION: text})
    return str(path)


def _field(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | {key: value}


def _class_field(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | {"classes": (content["classes"] or {}) | {key: value}}


def _config(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A key of the configuration set."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(content["config"])
        *blocks, name = key.split(".")
        node = config
        for block in blocks:
            node = node[block]
        node[name] = value
        return content | {"config": yaml.safe_dump(config)}

    return change


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


_Change = Callable[[dict[str, Any]], Any]

# What is changed in a sound description, and words of the refusal.
_REFUSED: dict[str, tuple[_Change, tuple[str, ...]]] = {
    # Wrong types.
    "a number": (lambda content: 3, ()),
    "a list": (lambda content: [content], ()),
    "a text": (lambda content: "text", ()),
    "nothing": (lambda content: None, ()),
    **{
        f"{key} is {value!r}": (_field(key, value), ())
        for key, values in {
            "config": (None, 3, ["MODEL"], {"MODEL": {}}, True),
            "dataset": (None, 3, [], {}),
            "version": (None, 3, []),
            "classes": (3, "names", ["thing_classes"], True, [["thing_classes", ["a"]]], 0.5),
        }.items()
        for value in values
    },
    **{f"without {key}": (_without(key), (key,)) for key in ("config", "dataset", "classes")},
    **{
        f"classes: {key} is {json.dumps(value)[:40]}": (_class_field(key, value), (key,))
        for key, values in {
            "thing_classes": (None, 3, "shapes", {"a": 1}, [None], [["a"]], [1.5]),
            "stuff_classes": ([{"name": "a"}], ["a\x1b[31mb"], ["a\nb"], ["a\0b"], ["\ud800"]),
            "thing_colors": ([1], [[1, 2]], [[1, 2, 256]], [[-1, 2, 3]], [[1.5, 2, 3]], [None]),
            "stuff_colors": ([["1", "2", "3"]], [[True, 2, 3]], [[1, 2, 2**40]]),
            "thing_dataset_id_to_contiguous_id": ({"1": 0}, [[1]], [[1, -2]], [[2**40, 1]]),
            "ignore_label": ("255", 2.5, [255], True, None),
            "keypoint_names": ([1], "nose", [["nose"]]),
            "keypoint_flip_map": ([["a"]], [["a", 1]], {"a": "b"}),
            "keypoint_connection_rules": ([["a", "b"]], [["a", "b", [1, 2]]], [[1, 2, [1, 2, 3]]]),
            "keypoint_oks_sigmas": ([0], [-1.0], [float("nan")], [float("inf")], ["0.1"], [11]),
        }.items()
        for value in values
    },
    # Huge and nested.
    "a list of 10**5 names": (_class_field("thing_classes", ["a"] * 10**5), ("thing_classes",)),
    "classes nested absurdly": (_class_field("thing_classes", _nested(500)), ("thing_classes",)),
    "a configuration of 2 MB": (_field("config", "#" * 2**21), ("characters",)),
    "a configuration of aliases of aliases": (
        _field(
            "config",
            "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)),
        ),
        ("aliases",),
    ),
    "a configuration nested absurdly": (_field("config", "[" * 10**5), ()),
    "a configuration that is a list": (_field("config", "- 1"), ()),
    "a configuration that is no YAML": (_field("config", "a: ["), ()),
    # Foreign keys.
    "classes: a file": (_class_field("json_file", "/etc/passwd"), ("json_file",)),
    "classes: a folder of images": (_class_field("image_root", "../outside"), ("image_root",)),
    "classes: an evaluator": (_class_field("evaluator_type", "coco"), ("evaluator_type",)),
    "classes: a key with escapes": (_class_field("\x1b[31m\n", []), ()),
    "classes: a key of a megabyte": (_class_field("a" * 2**20, []), ()),
    "a key that there is not": (_config("MODEL.NO_SUCH_KEY", 1), ("MODEL.NO_SUCH_KEY",)),
    "a block that is a value": (_config("MODEL.PROSCALE", 3), ("MODEL.PROSCALE",)),
    "a key with escapes": (_config("MODEL.\x1b[31m", 1), ()),
    # Paths, bases and code.
    "_BASE_ of a secret": (_config("_BASE_", "../outside/secret.yaml"), ("_BASE_",)),
    "_BASE_ of an address": (_config("_BASE_", "http://127.0.0.1:9/a.yaml"), ("_BASE_",)),
    "_BASE_ of a sound file": (_config("_BASE_", "demo/proscale_r18_111"), ("_BASE_",)),
    "a tag that runs code": (
        _field("config", "MODEL: !!python/object/apply:os.system [touch ../executed]"),
        ("refused",),
    ),
    "values out of range": (_config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", -1), ("NUM_CLASSES",)),
    "10**12 queries": (_config("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 10**12), ()),
    "a version of tomorrow": (_config("VERSION", 99), ("VERSION",)),
    "the data set's name: control characters": (_field("dataset", "a\x1b[31m"), ()),
    "the data set's name: lines": (_field("dataset", "a\nb"), ()),
    "the data set's name: half a character": (_field("dataset", "\ud800"), ()),
}


def _refused(name: str, change: _Change, words: tuple[str, ...], suffix: str) -> Case:
    def run(place: Place) -> object:
        return setup_cfg(_write(place, json.dumps(change(_sound(place))), suffix))

    return Case(f"{name}, {suffix}", run, words)


# As it stands in the file.
_TEXTS: dict[str, Any] = {
    "empty": "",
    "cut short": '{"config": "MO',
    "nested absurdly": "[" * 10**5,
    "a number of 5000 digits": "1" * 5000,
    "8 MB": '"' + "a" * 2**23 + '"',
    "zeros": "\0" * 100,
    "a dictionary": {"config": "MODEL: {}"},
    "bytes": b"{}",
    "a whole number": 3,
    "a list": ["{}"] * 100,
}


def _as_it_stands(name: str, text: Any) -> Case:
    def run(place: Place) -> object:
        return setup_cfg(_write(place, text))

    return Case(f"text: {name}", run, ("weights.pth",))


# What is accepted, and what must come of it.
def _obeys_nothing(place: Place, cfg: Any) -> bool:
    return (
        not cfg.MODEL.TRUST_WEIGHTS
        and str(place / "weights.pth") == cfg.MODEL.WEIGHTS
        and cfg.OUTPUT_DIR == "./output"
        and cfg.MODEL.DEVICE == "cpu"
    )


_HARMLESS: dict[str, _Change] = {
    "sound": lambda content: content,
    "trust in weights": _config("MODEL.TRUST_WEIGHTS", True),
    "other weights": _config("MODEL.WEIGHTS", "../outside/secret.txt"),
    "weights at an address": _config("MODEL.WEIGHTS", "http://127.0.0.1:9/model.pth"),
    "a folder for results": _config("OUTPUT_DIR", "../outside"),
    "a device": _config("MODEL.DEVICE", "cuda:99"),
    "foreign keys beside its own": lambda content: content | {"weights": "/etc/passwd"},
    "data that are not there": lambda content: (
        content | {"config": content["config"].replace("ROOT: /", "ROOT: /no/such/")}
    ),
}


def _harmless(name: str, change: _Change) -> Case:
    def run(place: Place) -> object:
        return setup_cfg(_write(place, json.dumps(change(_sound(place)))))

    return Case(f"accepted: {name}", run, is_refused=False, is_right=_obeys_nothing)


def _predicted(name: str, change: _Change, is_right: Callable[[Place, Any], bool]) -> Case:
    """A prediction, whose files tell the classes."""

    def run(place: Place) -> object:
        weights = _write(place, json.dumps(change(_sound(place))))
        place.copy("image.png")
        return command("predict", "--model", weights, "--output", "out", "image.png")(place)

    return Case(f"predicted: {name}", run, is_refused=None, is_right=is_right, is_light=False)


def _fewer(content: dict[str, Any]) -> dict[str, Any]:
    """Names of fewer classes than the model has."""
    fields = {key: value[:1] for key, value in content["classes"].items() if key != "ignore_label"}
    return content | {"classes": fields}


def _calling(place: Place) -> object:
    """A call where the description should be."""
    torch.save(
        {"model": _model(place), DESCRIPTION: Call(os.system, _shell(place))}, place / "weights.pth"
    )
    return setup_cfg(str(place / "weights.pth"))


CASES = [
    *(
        _refused(name, *spec, suffix)
        for name, spec in _REFUSED.items()
        for suffix in (".pth", ".safetensors")
    ),
    *(_as_it_stands(name, text) for name, text in _TEXTS.items()),
    *(_harmless(name, change) for name, change in _HARMLESS.items()),
    Case("a call in place of it", _calling, ("weights.pth",)),
    _predicted("sound", lambda content: content, lambda place, _: (place / "out").is_dir()),
    _predicted("names of fewer classes", _fewer, lambda place, _: True),
    _predicted("no classes", _field("classes", None), lambda place, _: True),
    _predicted(
        "a page in a name",
        _class_field("stuff_classes", [f"<script>alert({i})</script>" for i in range(9)]),
        lambda place, _: (
            not any(
                b"<script>alert" in page.read_bytes() for page in Path(place.folder).rglob("*.html")
            )
        ),
    ),
]
