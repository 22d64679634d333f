"""Recorded training steps that are none, and that hold anything."""

import os
from collections.abc import Callable
from typing import Any

import torch

from proscale.checkpoint.files import save_archive
from tests.hostile.cases import Case, Place, command
from tests.hostile.checkpoints import Call

_FIELDS = ("config", "seed", "iteration", "rank", "weights", "batch")


def _replay(change: Callable[[dict[str, Any], Place], Any]) -> Callable[[Place], object]:
    """The recorded step with its content changed."""

    def run(place: Place) -> object:
        content = torch.load(place.material / "step.pth", weights_only=True)
        changed = change(content, place)
        content = changed if isinstance(changed, dict) else content
        try:
            save_archive(place / "step.pth", content)
        except Exception:
            torch.save(content, place / "step.pth")
        return command("replay", "step.pth")(place)

    return run


def _set(field: str, value: Any) -> Callable[[dict[str, Any], Place], object]:
    return lambda content, place: content.update({field: value})


def _sample(**values: Any) -> Callable[[dict[str, Any], Place], object]:
    """The one sample of the batch with other values; None takes one away."""

    def change(content: dict[str, Any], place: Place) -> None:
        sample = content["batch"][0]
        sample.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del sample[key]

    return change


def _instances(**values: Any) -> Callable[[dict[str, Any], Place], object]:
    def change(content: dict[str, Any], place: Place) -> None:
        content["batch"][0]["instances"].update(values)

    return change


def _fields(**values: Any) -> Callable[[dict[str, Any], Place], object]:
    def change(content: dict[str, Any], place: Place) -> None:
        content["batch"][0]["instances"]["fields"].update(values)

    return change


def _config(text: str, *, behind: bool = False) -> Callable[[dict[str, Any], Place], object]:
    def change(content: dict[str, Any], place: Place) -> None:
        filled = text.replace("{CANARY}", str(place.canary))
        filled = filled.replace("{OUTSIDE}", str(place.outside))
        content["config"] = content["config"] + filled if behind else filled

    return change


def _replaced(old: str, new: str) -> Callable[[dict[str, Any], Place], object]:
    return lambda content, place: content.update(config=content["config"].replace(old, new, 1))


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable:
    return lambda content, place: change(content["weights"])


def _first(change: Callable[[torch.Tensor], Any]) -> Callable:
    def replace(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if name.endswith("weight"))
        weights[name] = change(weights[name])

    return _weights(replace)


_MASKS = {"__kind__": "BitMasks", "tensor": torch.ones(1, 64, 64, dtype=torch.bool)}

# What is done to a recorded step, and words that are told beside the file.
_FAULTS: dict[str, tuple[Callable[[dict[str, Any], Place], Any], tuple[str, ...]]] = {
    **{
        f"without {field}": (
            lambda content, place, field=field: content.pop(field) and None,
            (field,),
        )
        for field in _FIELDS
    },
    **{f"{field} of nothing": (_set(field, None), (field,)) for field in _FIELDS},
    **{f"{field} of a list": (_set(field, [[]]), (field,)) for field in _FIELDS},
    "no step": (lambda content, place: {"model": {}}, ("recorded step",)),
    "an empty batch": (_set("batch", []), ("batch",)),
    "a batch of texts": (_set("batch", ["a"]), ("batch",)),
    "a batch of an empty sample": (_set("batch", [{}]), ("batch",)),
    "a seed of 2**80": (_set("seed", 2**80), ("seed",)),
    "a seed of a text": (_set("seed", "x"), ("seed",)),
    "a negative iteration": (_set("iteration", -1), ("iteration",)),
    "an iteration of 2**80": (_set("iteration", 2**80), ("iteration",)),
    "an iteration of 1.5": (_set("iteration", 1.5), ("iteration",)),
    "a negative rank": (_set("rank", -1), ("rank",)),
    "no weights": (_set("weights", {}), ("weights",)),
    "a weight missing": (_weights(lambda weights: weights.popitem()), ("weights",)),
    "a weight too many": (_weights(lambda weights: weights.update(x=torch.ones(1))), ("weights",)),
    "a weight of another shape": (_first(lambda tensor: tensor[:1]), ("weights",)),
    "a weight that is a text": (_first(lambda tensor: "x"), ("weights",)),
    "a weight of complex numbers": (_first(lambda tensor: tensor.to(torch.complex64)), ()),
    "a weight on the meta device": (_first(lambda tensor: tensor.to("meta")), ()),
    "a sparse weight": (_first(lambda tensor: tensor.flatten(1).to_sparse()), ()),
    "a view of 10**10 elements": (_first(lambda tensor: torch.zeros(1).expand(10**5, 10**5)), ()),
    "a sample without image": (_sample(image=None), ("image",)),
    "an image that is a text": (_sample(image="x"), ("image",)),
    "an image of one dimension": (_sample(image=torch.ones(64)), ("image",)),
    "an image of 7 channels": (_sample(image=torch.ones(7, 64, 64)), ("image",)),
    "an image without pixels": (_sample(image=torch.ones(3, 0, 64)), ("image",)),
    "an image of complex numbers": (
        _sample(image=torch.ones(3, 64, 64, dtype=torch.complex64)),
        ("image",),
    ),
    "an image of 10**10 pixels": (
        _sample(image=torch.zeros(1).expand(3, 10**5, 10**5)),
        ("image",),
    ),
    "instances that are a text": (_sample(instances="x"), ("instances",)),
    "an unknown kind": (_instances(__kind__="Subprocess"), ()),
    "a kind that is a list": (_instances(__kind__=[1]), ()),
    "a size of texts": (_instances(image_size=["a", "b"]), ()),
    "a size of three": (_instances(image_size=[64, 64, 64]), ()),
    "a size below zero": (_instances(image_size=[-1, -1]), ()),
    "fields that are a list": (_instances(fields=[1]), ()),
    "class 99": (_fields(gt_classes=torch.tensor([99])), ("gt_classes",)),
    "class -1": (_fields(gt_classes=torch.tensor([-1])), ("gt_classes",)),
    "classes of fractions": (_fields(gt_classes=torch.tensor([0.5])), ("gt_classes",)),
    "two classes for one mask": (_fields(gt_classes=torch.tensor([1, 2])), ("step.pth",)),
    "a class that is a text": (_fields(gt_classes="x"), ("step.pth",)),
    "masks of another size": (
        _fields(gt_masks={**_MASKS, "tensor": torch.ones(1, 9, 9, dtype=torch.bool)}),
        ("step.pth",),
    ),
    "masks of one dimension": (
        _fields(gt_masks={**_MASKS, "tensor": torch.ones(9, dtype=torch.bool)}),
        ("step.pth",),
    ),
    "masks that are a text": (_fields(gt_masks={**_MASKS, "tensor": "x"}), ("step.pth",)),
    "masks of an unknown kind": (_fields(gt_masks={**_MASKS, "__kind__": "os.system"}), ()),
    "a config that runs code": (
        _config("MODEL: !!python/object/apply:os.system ['touch {CANARY}']"),
        (),
    ),
    "a config on the web": (_config("_BASE_: http://127.0.0.1:9/a.yaml"), ("_BASE_",)),
    "a config on a secret": (_config("_BASE_: '{OUTSIDE}/secret.yaml'"), ()),
    "a config on the password file": (_config("_BASE_: /etc/passwd"), ()),
    "a config on a base": (_config("_BASE_: coco/panoptic/proscale_r50_333"), ()),
    "a config that is no YAML": (_config("]["), ()),
    "a config with an unknown key": (_config("\nMODELL: 3\n", behind=True), ("MODELL",)),
    "a config with a zero byte": (_config("MODEL:\0"), ()),
    "a config with a surrogate": (_config("MODEL: \ud800"), ()),
    "a config of an absurd model": (
        _replaced("DEC_LAYERS: 2", "DEC_LAYERS: 100000"),
        ("DEC_LAYERS",),
    ),
    "a config of another model": (_replaced("HIDDEN_DIM: 32", "HIDDEN_DIM: 64"), ("weights",)),
}

_FILES: dict[str, Callable[[Place], object]] = {
    "not there": lambda place: None,
    "empty": lambda place: place.write("step.pth", ""),
    "text": lambda place: place.write("step.pth", "step"),
    "a pipe": lambda place: os.mkfifo(place / "step.pth"),
    "a folder": lambda place: (place / "step.pth").mkdir(),
    "a device": lambda place: (place / "step.pth").symlink_to("/dev/zero"),
    "a checkpoint": lambda place: place.copy("weights.pth").rename(place / "step.pth"),
    "cut short": lambda place: place.write(
        "step.pth", (place.material / "step.pth").read_bytes()[:-99]
    ),
    "a call": lambda place: torch.save(
        {"config": Call(os.system, f"touch {place.canary}")}, place / "step.pth"
    ),
}


def _file(make: Callable[[Place], object]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        make(place)
        return command("replay", "step.pth")(place)

    return run


def _trusting(content: dict[str, Any], place: Place) -> None:
    """Weights of the step's configuration are trusted by it, and run code."""
    content["config"] = content["config"].replace("MODEL:\n", "MODEL:\n  TRUST_WEIGHTS: true\n", 1)
    content["weights"] = Call(os.system, f"touch {place.canary}")


CASES = [
    *(
        Case(name, _replay(change), ("step.pth", *words), is_light=False)
        for name, (change, words) in _FAULTS.items()
    ),
    *(Case(f"file: {name}", _file(make), ("step.pth",)) for name, make in _FILES.items()),
    Case("file: an address", command("replay", "http://127.0.0.1:9/a.pth"), ("127.0.0.1:9",)),
    Case("file: a zero byte", command("replay", "a\0b.pth"), ("b.pth",)),
    Case("trust of its own weights", _replay(_trusting), ("step.pth",), is_light=False),
    Case(
        "as it was recorded",
        _replay(lambda content, place: None),
        ("everything is finite", "total_loss"),
        is_refused=False,
        is_light=False,
    ),
]
