"""Inputs at random: sound files with some of their values or bytes changed.

A number makes the input, so that one that fails can be had again. Whatever it is, the program may
accept it or refuse it in one line. ``python benchmarks/hostile_inputs.py --fuzz N`` gives N of
them to the program.
"""

import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from PIL import Image

from proscale.checkpoint.files import read_checkpoint
from proscale.config import setup_cfg
from proscale.data.formats.image_file import read_image, read_label_image
from tests.hostile.cases import Case, Place, command
from tests.hostile.coco import meet

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**70, 10**400, 0.5, 1e300, "", "1", "..", "../x", "/x"),
    *("a\0", "\ud800", "é/ü", "http://127.0.0.1:9/a", [], {}, [0], {"a": 1}, [[0, 0, 3, 0, 3, 3]]),
    *([[1, 1, 1e9, 1, 1, 1e9]], [16], [-1, 17], "PPP", "o" * 20, "9" * 5000, float("inf")),
)
"""What may stand anywhere in a changed document."""


def mutate_document(chance: random.Random, content: Any) -> Any:
    """A copy of JSON-like content with up to four of its values replaced or left out."""
    root = [copy.deepcopy(content)]
    for _ in range(chance.randint(1, 4)):
        node: Any = root
        key: Any = 0
        # Down to a random place; shallow ones are likelier.
        while isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.8:
            node = node[key]
            key = chance.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        if chance.random() < 0.85:
            node[key] = copy.deepcopy(chance.choice(VALUES))
        elif node is not root:
            del node[key]
    return root[0]


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """``data`` with some bytes changed, taken out, put in or cut off at the end."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        if not content:
            break
        place = chance.randrange(len(content))
        match chance.randrange(6):
            case 0:
                content[place] ^= 1 << chance.randrange(8)
            case 1:
                content[place : place + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80")
                )
            case 2:
                del content[place : place + chance.randint(1, 64)]
            case 3:
                content[place:place] = content[: chance.randint(1, 64)]
            case 4:
                content[place:place] = chance.randbytes(chance.randint(1, 16))
            case _ if chance.random() < 0.2:
                del content[place:]
    return bytes(content)


def _dump(content: Any) -> str:
    # JSON's infinity and surrogates are part of the trial.
    return json.dumps(content)


def _config(chance: random.Random, place: Place) -> object:
    content = yaml.safe_load((place.material / "small.yaml").read_text())
    text = _dump(mutate_document(chance, content)) if chance.random() < 0.7 else yaml.dump(content)
    data = text.encode("utf-8", "replace")
    if chance.random() < 0.5:
        data = mutate_bytes(chance, data)
    assert place.own
    return setup_cfg(str(place.write("config.yaml", data)), ["MODEL.DEVICE", "cpu"])


def _coco(task: str) -> Callable[[random.Random, Place], object]:
    def run(chance: random.Random, place: Place) -> object:
        own = place.own
        path = own.panoptic_json if task == "panoptic" else own.instances_json
        path.write_text(_dump(mutate_document(chance, json.loads(path.read_text()))))
        return meet(place, task, chance.choice(("train", "evaluate", "check")))

    return run


def _panoptic_png(chance: random.Random, place: Place) -> object:
    path = place.own.panoptic
    path.write_bytes(mutate_bytes(chance, path.read_bytes()))
    return meet(place, "panoptic", chance.choice(("train", "evaluate", "check")))


def _image(chance: random.Random, place: Place) -> object:
    format = chance.choice(("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"))
    buffer = io.BytesIO()
    Image.open(place.material / "image.png").save(buffer, format)
    path = place.write("image.jpg", mutate_bytes(chance, buffer.getvalue()))
    read_image(path, "RGB")
    return read_label_image(path)


def _checkpoint(chance: random.Random, place: Place) -> object:
    data = (place.material / "weights.pth").read_bytes()
    # The pickle is at the beginning, the directory at the end; between them are the tensors.
    start = chance.choice((0, max(0, len(data) - 20_000)))
    part = mutate_bytes(chance, data[start : start + 20_000])
    path = place.write("weights.pth", data[:start] + part + data[start + 20_000 :])
    return read_checkpoint(path)


def _run_folder(chance: random.Random, place: Place) -> object:
    run = place.copy("run")
    files = [path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".yaml", ".txt")]
    path = chance.choice(files)
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError:
        path.write_bytes(mutate_bytes(chance, data))
    else:
        path.write_text(_dump(mutate_document(chance, content)))
    return command("report", "run", "--images", chance.choice(("0", "1")))(place)


TARGETS: dict[str, Callable[[random.Random, Place], object]] = {
    "YAML": _config,
    "COCO panoptic": _coco("panoptic"),
    "COCO instances": _coco("instance"),
    "panoptic PNG": _panoptic_png,
    "images": _image,
    "checkpoints": _checkpoint,
    "run folders": _run_folder,
}


def cases(count: int, first: int = 0) -> Iterator[tuple[str, Case]]:
    """Cases of all targets in turn, of the numbers from ``first``."""
    names = list(TARGETS)
    for number in range(first, first + count):
        target = names[number % len(names)]

        def run(place: Place, target: str = target, number: int = number) -> object:
            return TARGETS[target](random.Random(number), place)

        yield target, Case(f"number {number}", run, is_refused=None)
