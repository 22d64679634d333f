"""Folders of runs: what ``proscale report`` makes of a stranger's files, and ``--resume`` of ours.

A report shows what is sound and names the rest; it runs no code, asks for nothing from the network
and shows no file from outside of the run and its data.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.cases import Case, Place, command, train
from tests.hostile.checkpoints import Call

_PAGE = "run/report.html"


def _has_page(place: Place, value: object) -> bool:
    """There is a page without markup of the files."""
    page = (place / _PAGE).read_text()
    asks = re.search(r"""(src|href)=["']?(https?|ftp|file):""", page)
    return "</html>" in page and "<script>alert" not in page and not asks


def _report(spoil: Callable[[Path, Place], object], *words: str) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        spoil(place.copy("run"), place)
        return command("report", "run", *words)(place)

    return run


def _edit(file: str, change: Callable[[Any], object]) -> Callable[[Path, Place], None]:
    """A JSON file of the run with its content changed."""

    def spoil(run: Path, place: Place) -> None:
        path = _find(run, file)
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return spoil


def _find(run: Path, name: str) -> Path:
    return run / name if (run / name).exists() else next(run.rglob(name), run / name)


def _text(file: str, content: str | bytes) -> Callable[[Path, Place], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda run, place: _find(run, file).write_bytes(data)


def _instead(file: str, make: Callable[[Path], object]) -> Callable[[Path, Place], None]:
    def spoil(run: Path, place: Place) -> None:
        path = _find(run, file)
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def _config(old: str, new: str) -> Callable[[Path, Place], object]:
    """The saved configuration with a text replaced, and names of places filled in."""

    def spoil(run: Path, place: Place) -> None:
        path = run / "config.yaml"
        replacement = new.replace("{CANARY}", str(place.canary))
        replacement = replacement.replace("{OUTSIDE}", str(place.outside))
        path.write_text(path.read_text().replace(old, replacement, 1))

    return spoil


def _base(text: str) -> Callable[[Path, Place], object]:
    return lambda run, place: (run / "config.yaml").write_text(
        f"_BASE_: {text}\n".replace("{OUTSIDE}", str(place.outside))
    )


def _pickled_weights(run: Path, place: Place) -> None:
    torch.save({"model": Call(os.system, f"touch {place.canary}")}, run / "model_final.pth")


def _trusted_weights(run: Path, place: Place) -> None:
    _pickled_weights(run, place)
    _config("MODEL:\n", "MODEL:\n  TRUST_WEIGHTS: true\n")(run, place)


def _all_images(name: str) -> Callable[[Path, Place], object]:
    """The metrics of images, all for this file."""

    def spoil(run: Path, place: Place) -> None:
        file = name.replace("{OUTSIDE}", str(place.outside))
        path = _find(run, "panoptic_seg_images.json")
        content = json.loads(path.read_text())
        for record in content["images"]:
            record["file_name"] = file
        path.write_text(json.dumps(content))

    return spoil


_RESULTS = "results.json"
_NAMES = {"a zero byte": "a\0b", "a surrogate": "\ud800", "markup": "<script>alert(1)</script>"}

# The page is made; words that are told beside it.
_ACCEPTED: dict[str, tuple[Callable[[Path, Place], object], tuple[str, ...]]] = {
    "as it was written": (lambda run, place: None, ()),
    "moved elsewhere": (lambda run, place: None, ()),
    # The configuration.
    "config: binary": (_text("config.yaml", bytes(range(256))), ("config.yaml",)),
    "config: not there": (lambda run, place: (run / "config.yaml").unlink(), ("config.yaml",)),
    "config: a pipe": (_instead("config.yaml", os.mkfifo), ("config.yaml",)),
    "config: a folder": (_instead("config.yaml", Path.mkdir), ("config.yaml",)),
    "config: a device": (
        _instead("config.yaml", lambda path: path.symlink_to("/dev/zero")),
        ("config.yaml",),
    ),
    "config: a base on the web": (_base("http://127.0.0.1:9/a.yaml"), ("config.yaml",)),
    "config: a base on the web, https": (_base("https://127.0.0.1:9/a.yaml"), ("config.yaml",)),
    "config: a base on S3": (_base("s3://bucket/a.yaml"), ("config.yaml",)),
    "config: a base that is secret": (_base("'{OUTSIDE}/secret.txt'"), ("config.yaml",)),
    "config: a base that is secret YAML": (_base("'{OUTSIDE}/secret.yaml'"), ("config.yaml",)),
    "config: a base that is the password file": (_base("/etc/passwd"), ("config.yaml",)),
    "config: a tag": (
        _config(
            "OUTPUT_DIR:", "!!python/object/apply:os.system ['touch {CANARY}']: 1\nOUTPUT_DIR:"
        ),
        ("config.yaml",),
    ),
    "config: weights that run code": (_pickled_weights, ("model_final.pth",)),
    "config: weights that run code, and trust": (_trusted_weights, ("model_final.pth",)),
    "config: weights on the web": (
        lambda run, place: (
            _config("WEIGHTS: ''", "WEIGHTS: http://127.0.0.1:9/a.pth")(run, place),
            (run / "last_checkpoint").unlink(),
            (run / "metrics.json").unlink(),
        ),
        (),
    ),
    "config: an absurd model": (_config("DEC_LAYERS: 2", "DEC_LAYERS: 100000"), ("DEC_LAYERS",)),
    "config: an absurd size": (
        _config("MIN_SIZE_TEST: 64", "MIN_SIZE_TEST: 10000000"),
        (),
    ),
    "config: own data on the web": (
        lambda run, place: _config("ROOT: ", "ROOT: http://127.0.0.1:9/ #")(run, place),
        (),
    ),
    "config: own data outside": (
        lambda run, place: _config("ROOT: ", "ROOT: '{OUTSIDE}' #")(run, place),
        (),
    ),
    # Curves.
    "metrics: binary": (_text("metrics.json", bytes(range(256)) * 9), ("metrics.json",)),
    "metrics: empty": (_text("metrics.json", ""), ("metrics.json",)),
    "metrics: a pipe": (_instead("metrics.json", os.mkfifo), ("metrics.json",)),
    "metrics: a device": (
        _instead("metrics.json", lambda path: path.symlink_to("/dev/zero")),
        ("metrics.json",),
    ),
    "metrics: a link outside": (
        lambda run, place: _instead(
            "metrics.json", lambda path: path.symlink_to(place.outside / "secret.txt")
        )(run, place),
        ("metrics.json",),
    ),
    "metrics: nested absurdly": (_text("metrics.json", "[" * 10**5 + "\n"), ("metrics.json",)),
    "metrics: a line of 64 MB": (_text("metrics.json", "9" * 2**26 + "\n"), ("metrics.json",)),
    "metrics: a number of 5000 digits": (
        _text("metrics.json", '{"iteration": 0, "a": ' + "9" * 5000 + "}\n"),
        ("metrics.json",),
    ),
    "metrics: a number of 400 digits": (
        _text("metrics.json", '{"iteration": 0, "a": ' + "9" * 400 + "}\n"),
        ("metrics.json",),
    ),
    "metrics: an iteration of 2**80": (
        _text("metrics.json", json.dumps({"iteration": 2**80, "a": 1}) + "\n"),
        ("metrics.json",),
    ),
    "metrics: a negative iteration": (
        _text("metrics.json", json.dumps({"iteration": -1, "a": 1}) + "\n"),
        ("metrics.json",),
    ),
    "metrics: infinity and NaN": (
        _text("metrics.json", '{"iteration": 0, "total_loss": NaN, "lr": Infinity}\n'),
        (),
    ),
    "metrics: extremes": (
        _text(
            "metrics.json",
            '{"iteration": 0, "total_loss": 1e308}\n{"iteration": 1, "total_loss": -1e308}\n',
        ),
        (),
    ),
    "metrics: a step of 5e-324 s": (
        _text("metrics.json", '{"iteration": 0, "total_loss": 1, "time": 5e-324}\n' * 2),
        (),
    ),
    "metrics: a step of -1 s": (
        _text("metrics.json", '{"iteration": 0, "total_loss": 1, "time": -1}\n'),
        (),
    ),
    "metrics: 50000 names": (
        _text("metrics.json", json.dumps({"iteration": 0} | {f"m{i}": i for i in range(50000)})),
        (),
    ),
    # Results.
    "results: binary": (_text(_RESULTS, b"\xff\xfe"), (_RESULTS,)),
    "results: a list": (_text(_RESULTS, "[]"), (_RESULTS,)),
    "results: nested absurdly": (_text(_RESULTS, "[" * 10**5), (_RESULTS,)),
    "results: a pipe": (_instead(_RESULTS, os.mkfifo), (_RESULTS,)),
    "results: a PQ of 400 digits": (
        _edit(_RESULTS, lambda c: {"panoptic_seg": {"PQ": 10**400}}),
        (),
    ),
    "results: a PQ of 4000 digits": (
        _edit(_RESULTS, lambda c: {"panoptic_seg": {"PQ": 10**4000}}),
        (),
    ),
    "results: a PQ that is a text": (_edit(_RESULTS, lambda c: {"panoptic_seg": {"PQ": "x"}}), ()),
    "results: a PQ of 1e308": (_edit(_RESULTS, lambda c: {"panoptic_seg": {"PQ": 1e308}}), ()),
    "results: another task": (_edit(_RESULTS, lambda c: {"x" * 5000: {"PQ": 1.0}}), ()),
    "results: a data set that leads out": (
        _edit(_RESULTS, lambda c: {"../../outside": {"panoptic_seg": {"PQ": 1.0}}}),
        (),
    ),
    "results: a data set at an absolute path": (
        _edit(_RESULTS, lambda c: {"/etc": {"panoptic_seg": {"PQ": 1.0}}}),
        (),
    ),
    "results: a data set with a zero byte": (
        _edit(_RESULTS, lambda c: {"a\0b": {"panoptic_seg": {"PQ": 1.0}}}),
        (),
    ),
    # Names of classes and images.
    **{
        f"a metric's name with {kind}": (
            _text(
                "metrics.json", json.dumps({"iteration": 0, "total_loss": 1.0, name: 2.0}) + "\n"
            ),
            (),
        )
        for kind, name in _NAMES.items()
    },
    **{
        f"a data set's name with {kind}": (
            _edit(_RESULTS, lambda c, name=name: {name: {"panoptic_seg": {"PQ": 1.0}}}),
            (),
        )
        for kind, name in _NAMES.items()
    },
    **{
        f"a result's name with {kind}": (
            _edit(_RESULTS, lambda c, name=name: {"panoptic_seg": {name: 1.0}}),
            (),
        )
        for kind, name in _NAMES.items()
    },
    **{
        f"all images are {kind}": (_all_images(name), ())
        for kind, name in {
            "a picture outside": "{OUTSIDE}/secret.png",
            "a text outside": "{OUTSIDE}/secret.txt",
            "the password file": "/etc/passwd",
            "an endless device": "/dev/zero",
            "above the folder": "../../../secret.png",
            "on the web": "http://127.0.0.1:9/a.png",
            "a zero byte": "a\0b.png",
            "a surrogate": "\ud800.png",
            "of 5000 letters": "a" * 5000,
            "markup": "<script>alert(1)</script>.png",
        }.items()
    },
    # The log.
    "log: binary": (_text("log.txt", bytes(range(256)) * 9), ()),
    "log: a pipe": (_instead("log.txt", os.mkfifo), ("log.txt",)),
    "log: a folder": (_instead("log.txt", Path.mkdir), ("log.txt",)),
    "log: memory of 400 digits": (_text("log.txt", f"max_mem: {'9' * 400}M\n"), ()),
    "log: memory of 5000 digits": (_text("log.txt", f"max_mem: {'9' * 5000}M\n"), ()),
    "log: markup": (
        _text("log.txt", "Command line arguments: <script>alert(1)</script>\n"),
        (),
    ),
    "log: escapes": (_text("log.txt", "\x1b[31mCommand line arguments: \x1b]0;x\x07\0\n"), ()),
    "log: a line of 64 MB": (_text("log.txt", " " * 2**26), ()),
    # The pointer to the latest checkpoint.
    "last_checkpoint: binary": (_text("last_checkpoint", bytes(range(256))), ()),
    "last_checkpoint: empty": (_text("last_checkpoint", ""), ()),
    "last_checkpoint: 5000 letters": (_text("last_checkpoint", "a" * 5000), ()),
    "last_checkpoint: a file outside": (
        lambda run, place: (run / "last_checkpoint").write_text(str(place.outside / "secret.txt")),
        (),
    ),
    "last_checkpoint: a pipe": (_instead("last_checkpoint", os.mkfifo), ()),
    "last_checkpoint: a folder": (_instead("last_checkpoint", Path.mkdir), ()),
    "weights: text": (_text("model_final.pth", "weights"), ("model_final.pth",)),
    "weights: a pipe": (_instead("model_final.pth", os.mkfifo), ()),
    "weights: of another model": (
        lambda run, place: torch.save({"model": {"a": torch.ones(1)}}, run / "model_final.pth"),
        ("model_final.pth",),
    ),
}

_REFUSED: dict[str, tuple[tuple[str, ...], Callable[[Place], object], tuple[str, ...]]] = {
    "no folder": (("nowhere",), lambda place: None, ("RUN_DIR is nowhere",)),
    "an empty folder": ((".",), lambda place: None, ("RUN_DIR is .",)),
    "a file": (("run",), lambda place: place.write("run", ""), ("RUN_DIR is run",)),
    "a pipe": (("run",), lambda place: os.mkfifo(place / "run"), ("RUN_DIR is run",)),
    "a zero byte": (("a\0b",), lambda place: None, ("RUN_DIR is a",)),
    "300 letters": (("a" * 300,), lambda place: None, ("aaa",)),
    "an address": (("http://127.0.0.1:9/",), lambda place: None, ("RUN_DIR is http:",)),
    "minus one image": (("run", "--images", "-1"), lambda place: place.copy("run"), ("-1",)),
}


def _refused(
    name: str, words: tuple[str, ...], make: Callable[[Place], object], told: tuple[str, ...]
) -> Case:
    def run(place: Place) -> object:
        make(place)
        return command("report", *words)(place)

    return Case(f"RUN_DIR: {name}", run, told)


# What is done to a folder with a checkpoint of a training, before ``--resume``.
def _pointer(content: str | bytes) -> Callable[[Path, Place], object]:
    return _text("last_checkpoint", content)


def _last_is(make: Callable[[Path], object]) -> Callable[[Path, Place], object]:
    def spoil(run: Path, place: Place) -> None:
        make(run / "model_0000099.pth")
        (run / "last_checkpoint").write_text("model_0000099.pth")

    return spoil


def _poisoned(key: str, value: Any) -> Callable[[Path, Place], object]:
    """The newest checkpoint with a part replaced."""

    def spoil(run: Path, place: Place) -> None:
        name = (run / "last_checkpoint").read_text()
        content = torch.load(run / name, weights_only=True)
        content[key] = value(place) if callable(value) else value
        torch.save(content, run / name)

    return spoil


_RESUMED: dict[str, Callable[[Path, Place], object]] = {
    "last_checkpoint: binary": _pointer(bytes(range(256))),
    "last_checkpoint: 5000 letters": _pointer("a" * 5000),
    "last_checkpoint: a pipe": _instead("last_checkpoint", os.mkfifo),
    "last_checkpoint: a folder": _instead("last_checkpoint", Path.mkdir),
    "last_checkpoint: outside": lambda run, place: (run / "last_checkpoint").write_text(
        "../../outside/secret.txt"
    ),
    "checkpoint: text": _last_is(lambda path: path.write_text("x")),
    "checkpoint: a pipe": _last_is(os.mkfifo),
    "checkpoint: runs code": lambda run, place: _poisoned(
        "trainer", Call(os.system, f"touch {place.canary}")
    )(run, place),
    "trainer: a number": _poisoned("trainer", 7),
    "trainer: a list": _poisoned("trainer", []),
    "iteration: a text": _poisoned("iteration", "x"),
    "iteration: negative": _poisoned("iteration", -5),
    "iteration: 2**80": _poisoned("iteration", 2**80),
    "optimizer: empty": _poisoned("trainer", {"optimizer": {}, "iteration": 0}),
}


def _resumed(name: str, spoil: Callable[[Path, Place], object]) -> Case:
    """Resuming tells the file, whether it goes on from an older one or ends."""

    def run(place: Place) -> str:
        for file in ("own", "small.yaml"):
            place.copy(file)
        words = ("--config-file", "small.yaml", "OUTPUT_DIR", "trained")
        try:
            train(*words)
        except SystemExit as error:
            assert not error.code, error.code
        spoil(place / "trained", place)
        try:
            train("--resume", *words, "SOLVER.MAX_ITER", "2")
        except SystemExit as error:
            return str(error.code)
        return ""

    def is_right(place: Place, message: Any) -> bool:
        # A message of one line, or a finished training.
        finished = any((place / "trained").glob("model_final.pth"))
        return ("\n" not in message and len(message) > 3) or finished

    return Case(f"resume, {name}", run, (), False, is_right, is_light=False)


def _moved(place: Place) -> object:
    shutil.copytree(place.material / "run", place / "elsewhere" / "run")
    return command("report", str(place / "elsewhere" / "run"), "--output", "report.html")(place)


CASES = [
    *(
        Case(name, _report(spoil), words, is_refused=False, is_right=_has_page, is_light=False)
        for name, (spoil, words) in _ACCEPTED.items()
        if name != "moved elsewhere"
    ),
    Case(
        "moved elsewhere",
        _moved,
        (),
        is_refused=False,
        is_right=lambda place, _: (place / "report.html").is_file(),
        is_light=False,
    ),
    *(_refused(name, *spec) for name, spec in _REFUSED.items()),
    *(_resumed(name, spoil) for name, spoil in _RESUMED.items()),
]
