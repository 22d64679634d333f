"""Places to write to that are files, folders, full, read-only, or no places; and awkward names.

The tests may run as root, for whom nothing is read-only: ``/proc/self`` stands for it, and a limit
of the size of files for a full disk.
"""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.cases import Case, Place, command, train

_CHECK = ("check-dataset", "--config-file", "small.yaml", "--workers", "1")
_FLOPS = ("flops", "--config-file", "small.yaml", "--size", "64x64")
_PREDICT = ("predict", "--config-file", "small.yaml", "--weights", "weights.pth")


def _prepare(place: Place) -> None:
    for name in ("own", "small.yaml", "weights.pth", "image.png", "run"):
        place.copy(name)
    place.write("file", "precious")
    (place / "folder.yaml").mkdir()
    for suffix in (".json", ".md", ".svg", ".pth", ".safetensors", ".html", ".onnx", ".pt2"):
        (place / f"folder{suffix}").mkdir()


def _run(words: tuple[str, ...]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        _prepare(place)
        return command(*words)(place)

    return run


def _keeps(run: Callable[[Place], object]) -> Callable[[Place], object]:
    """The same, and the file that is in the way is as it was."""

    def checked(place: Place) -> object:
        try:
            return run(place)
        finally:
            assert (place / "file").read_text() == "precious"

    return checked


# Commands that write a file, without its name, and its suffix.
_WRITERS: dict[str, tuple[tuple[str, ...], str]] = {
    "check-dataset --json": ((*_CHECK, "--json"), ".json"),
    "flops --json": ((*_FLOPS, "--json"), ".json"),
    "flops --markdown": ((*_FLOPS, "--markdown"), ".md"),
    "flops --plot": ((*_FLOPS, "--plot"), ".svg"),
    "flops --write": (
        (
            *("flops", "--config-file", "coco/panoptic/mask2former_r50", "--budget", "55%"),
            *("--choose", "1,1,1", "--write"),
        ),
        ".yaml",
    ),
    "convert": (("convert", "weights.pth"), ".pth"),
    "convert, safetensors": (("convert", "weights.pth"), ".safetensors"),
    "report --output": (("report", "run", "--images", "0", "--output"), ".html"),
    "export": (
        (
            *("export", "--config-file", "small.yaml", "--weights", "weights.pth"),
            *("--format", "torch-export", "--check-size", "96x96", "96x128", "--output"),
        ),
        ".pt2",
    ),
}

# Names of files that cannot be written.
_PLACES = {
    "a folder": "folder{suffix}",
    "below a file": "file/out{suffix}",
    "below a device": "/dev/null/out{suffix}",
    "read-only": "/proc/self/out{suffix}",
    "a zero byte": "a\0b{suffix}",
    "300 letters": "a" * 300 + "{suffix}",
}

# Folders that cannot be written.
_FOLDERS = {
    "a file": "file",
    "below a file": "file/out",
    "a device": "/dev/null",
    "read-only": "/proc/self/out",
    "a zero byte": "a\0b",
    "300 letters": "a" * 300,
    "an unknown user": "~nosuchuser/out",
}


def _full_disk(place: Place) -> None:
    """No file may have more than 4 KB: writing fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def _when_full(words: tuple[str, ...]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        _prepare(place)
        _full_disk(place)
        try:
            return command(*words)(place)
        finally:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    return run


def _train(*words: str, full: bool = False, spoil: Callable[[Place], object] | None = None) -> Any:
    def run(place: Place) -> None:
        _prepare(place)
        if spoil is not None:
            spoil(place)
        if full:
            _full_disk(place)
        try:
            train("--config-file", "small.yaml", *words)
        finally:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    return run


def _file_in_output(name: str, make: Callable[[Path], object]) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        path = place / "trained" / name
        path.parent.mkdir(parents=True)
        make(path)

    return spoil


def _run_with_folder(name: str) -> Callable[[Place], object]:
    """Predictions into a folder that has another folder in a file's place."""

    def run(place: Place) -> object:
        (place / "out" / name / "below").mkdir(parents=True)
        return _run((*_PREDICT, "--output", "out", "image.png"))(place)

    return run


def _awkward(*names: bytes) -> tuple[Callable[[Place], object], Callable[[Place, Any], bool]]:
    """Images of these names, predicted together with a sound one."""

    def run(place: Place) -> object:
        _prepare(place)
        (place / "images").mkdir()
        for name in names:
            shutil.copy(place / "image.png", os.fsencode(place / "images") + b"/" + name)
        return command(*_PREDICT, "--output", "out", "images", "image.png")(place)

    def is_right(place: Place, value: object) -> bool:
        content = json.loads((place / "out" / "predictions.json").read_text())
        pictures = list((place / "out" / "overlays").iterdir())
        listed = {record["name"] for record in content["images"]}
        return len(pictures) == len(listed) == len(content["images"]) == len(names) + 1

    return run, is_right


_NAMES: dict[str, tuple[bytes, ...]] = {
    "of 250 bytes": (b"a" * 246 + b".png",),
    "of 250 bytes that differ at the end": (b"a" * 245 + b"1.png", b"a" * 245 + b"2.png"),
    "of 250 bytes in other letters": ("ü".encode() * 123 + b".png",),
    "not UTF-8": (b"\xff\xfe.png",),
    "two that are not UTF-8": (b"\xff.png", b"\xfe.png"),
    "with a newline": (b"a\nb.png",),
    "with escapes": (b"\x1b[31m.png",),
    "with markup": (b"<script>alert(1)<script>.png",),
    "with quotes": (b"a'b\"c.png",),
    "with a backslash": (b"a\\b.png",),
    "of spaces": (b"  .png",),
    "of dots": (b"...png",),
    "of a percent sign": (b"%s%d%n.png",),
    "of a hash": (b"a#1.png", b"a?b.png"),
    "upper and lower": (b"A.png", b"a.png"),
    "numbers": (b"1.png", b"01.png", "\u0661.png".encode()),
    "a number of 200 digits": (b"9" * 200 + b".png",),
    "as a device of Windows": (b"CON.png",),
}


def _named(name: str, files: tuple[bytes, ...]) -> Case:
    run, is_right = _awkward(*files)
    return Case(f"predict: names {name}", run, (), False, is_right, is_light=False)


_OUTPUT = ("OUTPUT_DIR", "trained")

CASES = [
    *(
        Case(
            f"{writer}: {name}",
            _keeps(_run((*words, place.format(suffix=suffix)))),
            (place.format(suffix="").split("\0")[0][:100],),
            is_light=False,
        )
        for writer, (words, suffix) in _WRITERS.items()
        for name, place in _PLACES.items()
    ),
    *(
        Case(
            f"predict --output: {name}",
            _keeps(_run((*_PREDICT, "--output", folder, "image.png"))),
            (folder.split("\0")[0][:100],),
            is_light=False,
        )
        for name, folder in _FOLDERS.items()
        if name != "an unknown user"  # for a shell that is a name as any
    ),
    *(
        Case(
            f"training, OUTPUT_DIR: {name}",
            _keeps(_train("OUTPUT_DIR", folder)),
            ("OUTPUT_DIR", folder.split("\0")[0][:100]),
            is_light=False,
        )
        for name, folder in _FOLDERS.items()
    ),
    *(
        Case(
            f"evaluation, OUTPUT_DIR: {name}",
            _keeps(_train("--eval-only", "MODEL.WEIGHTS", "weights.pth", "OUTPUT_DIR", folder)),
            ("OUTPUT_DIR", folder.split("\0")[0][:100]),
            is_light=False,
        )
        for name, folder in (("a file", "file"), ("below a file", "file/out"))
    ),
    *(
        Case(f"{writer}: full", _when_full((*words, f"out{suffix}")), ("out",), is_light=False)
        for writer, (words, suffix) in _WRITERS.items()
        if writer
        not in ("flops --json", "flops --markdown", "flops --write", "check-dataset --json")
    ),
    Case(
        "predict --output: full",
        _when_full((*_PREDICT, "--output", "out", "image.png")),
        ("out",),
        is_light=False,
    ),
    Case("training: full", _train(*_OUTPUT, full=True), ("trained",), is_light=False),
    *(
        Case(
            f"training: {file} is a folder",
            _train(*_OUTPUT, spoil=_file_in_output(file, Path.mkdir)),
            (file,),
            is_light=False,
        )
        for file in ("log.txt", "metrics.json", "config.yaml", "model_final.pth", "last_checkpoint")
    ),
    Case(
        "training into a used folder",
        _train(
            *_OUTPUT,
            spoil=_file_in_output("model_0000009.pth", lambda path: path.write_text("precious")),
        ),
        ("trained", "--resume"),
        is_light=False,
    ),
    *(
        Case(
            f"predict: {name} in the output is in the way",
            _run_with_folder(name),
            (name,),
            is_light=False,
        )
        for name in ("overlays/image.jpg", "index.html", "predictions.json")
    ),
    *(_named(name, files) for name, files in _NAMES.items()),
]
