"""A hostile input as a value, and its verdict.

A case makes its files in an empty folder, gives them to a command or function as a user would, and
states the outcome: a refusal in one line that has certain words, or an accepted input with a
certain result. Families are the modules beside this one; each has a list ``CASES``.
"""

import contextlib
import io
import json
import logging
import os
import runpy
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from proscale.errors import UserError, one_sentence
from proscale_cli import main

ROOT = Path(__file__).parents[2]
SECRET = "the-content-of-a-file-outside"
LONGEST_LINE = 2000

# Verdicts, which are the columns of the table besides HELD.
HELD = "held"
EXECUTED = "executions"
WRONG = "silent wrong"
HANG = "hangs"
TRACEBACK = "bare tracebacks"
OVER_BUDGET = "over budget"
VERDICTS = (EXECUTED, WRONG, HANG, TRACEBACK, OVER_BUDGET)


class Place:
    """The folder of a case, and what it may copy from.

    Args:
        root: an empty folder.
        material: as :func:`material.make` left it; read only.
    """

    def __init__(self, root: Path, material: Path):
        self.material = material
        self.canary = root / "executed"
        self.outside = root / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "secret.txt").write_text(SECRET)
        (self.outside / "secret.yaml").write_text(f"{SECRET}: [")
        shutil.copy(material / "secret.png", self.outside)
        self.folder = root / "case"
        self.folder.mkdir()
        self.before = self.contents_outside()

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def contents_outside(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.outside.iterdir())}

    def write(self, name: str, content: str | bytes | Any) -> Path:
        """A file of the text, bytes, or of the JSON of anything else."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def copy(self, name: str) -> Path:
        """A file or folder of the material, in this folder."""
        source, target = self.material / name, self.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return target

    @cached_property
    def own(self) -> "OwnData":
        """The user's own data, to be spoilt."""
        return OwnData(self.copy("own"))


class OwnData:
    """Generated data of a user: 3 images of 64×64 pixels to train with, 2 to evaluate on."""

    def __init__(self, root: Path):
        self.root = root
        self.image = root / "train" / "000001.jpg"
        self.panoptic = root / "panoptic_train" / "000001.png"
        self.labels = root / "labels_train" / "000001.png"
        self.panoptic_json = root / "annotations" / "panoptic_train.json"
        self.instances_json = root / "annotations" / "instances_train.json"
        self.keypoints_json = root / "annotations" / "keypoints_train.json"

    def edit_panoptic(self, change: Callable[[Any], object]) -> None:
        self.edit(self.panoptic_json, change)

    def edit_instances(self, change: Callable[[Any], object]) -> None:
        self.edit(self.instances_json, change)

    def edit(self, path: Path, change: Callable[[Any], object]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def edit_text(self, path: Path, old: str, new: str) -> None:
        path.write_text(path.read_text().replace(old, new, 1))


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        name: unique within its family.
        run: makes the files and gives them to the program; the result is for ``is_right``.
        words: all of them are in what is told: the error, or output and warnings.
        is_refused: an error is expected, or the input is to be accepted; None takes both.
        is_right: of an accepted input, whether the result is as it should be.
        is_light: takes a fraction of a second and little memory.
        may_connect: the user asked for something from the network.
    """

    name: str
    run: Callable[[Place], object]
    words: tuple[str, ...] = ()
    is_refused: bool | None = True
    is_right: Callable[[Place, Any], bool] | None = None
    is_light: bool = True
    may_connect: bool = False


@dataclass(frozen=True)
class Outcome:
    """A verdict with its reason, or the message."""

    verdict: str
    text: str


def attempt(case: Case, place: Place) -> Outcome:
    """Run a case in this process, in its folder, and judge what it did."""
    told, output = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setLevel(logging.WARNING)
    # Commands print, and Detectron2's loggers do not propagate.
    loggers = [logging.getLogger(name) for name in (None, "detectron2", "fvcore", "proscale")]
    for logger in loggers:
        logger.addHandler(handler)
    message, value, crash = "", None, ""
    cwd = Path.cwd()
    os.chdir(place.folder)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(told),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            value = case.run(place)
    except UserError as error:
        message = one_sentence(error)
    except SystemExit as error:
        if isinstance(error.code, str):
            message = error.code
        elif error.code:
            # argparse and commands have printed the reason.
            lines = (told.getvalue() or output.getvalue()).strip().splitlines()
            message = lines[-1] if lines else f"exit status {error.code}"
    except BaseException:
        crash = traceback.format_exc()
    finally:
        os.chdir(cwd)
        for logger in loggers:
            logger.removeHandler(handler)
    everything = "\n".join((message, told.getvalue(), output.getvalue()))
    return _judge(case, place, message, everything, value, crash)


def _judge(
    case: Case, place: Place, message: str, everything: str, value: object, crash: str
) -> Outcome:
    if place.canary.exists():
        return Outcome(EXECUTED, place.canary.read_text() or "code of the input was run")
    if place.contents_outside() != place.before:
        return Outcome(WRONG, "files outside of the case's folder have changed")
    if SECRET in everything + crash or _holds_secret(place):
        return Outcome(WRONG, f"the content of a file outside is told: {message}")
    if crash or "Traceback (most recent call last)" in everything:
        return Outcome(TRACEBACK, (crash or everything).strip())
    if case.is_refused is not None and case.is_refused != bool(message):
        return Outcome(WRONG, f"refused: {message}" if message else f"accepted: {everything}")
    if "\n" in message.strip() or len(message) > LONGEST_LINE:
        return Outcome(TRACEBACK, f"more than one line: {message[:3000]}")
    if missing := [word for word in case.words if word not in everything]:
        return Outcome(WRONG, f"does not tell {missing}: {everything[-3000:]}")
    if case.is_right is not None and not case.is_right(place, value):
        return Outcome(WRONG, f"another result than expected: {value!r} {everything[-1000:]}")
    return Outcome(HELD, message)


def _holds_secret(place: Place) -> bool:
    """Whether the program has copied the secret to a file of its own."""
    pages = [path for path in place.folder.rglob("*.html") if path.is_file()]
    return any(SECRET.encode() in path.read_bytes() for path in pages)


def command(*words: str) -> Callable[[Place], object]:
    """A run of ``proscale`` with these words, in the case's folder."""
    return lambda place: main(list(words))


def train(*words: str) -> None:
    """A run of ``train_net.py`` in the current folder."""
    sys.argv = [str(ROOT / "train_net.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def all_cases() -> dict[str, Sequence[Case]]:
    """Every case by the name of its family."""
    from tests.hostile import (
        boxes,
        checkpoints,
        coco,
        descriptions,
        images,
        objects,
        outputs,
        own_data,
        replay_files,
        run_folders,
        values,
        yaml_files,
    )

    families = {
        "YAML": yaml_files,
        "values": values,
        "own data": own_data,
        "COCO": coco,
        "boxes and keypoints": objects,
        "checkpoints": checkpoints,
        "descriptions": descriptions,
        "images and videos": images,
        "run folders": run_folders,
        "replay files": replay_files,
        "output places": outputs,
        "boxes of persons": boxes,
    }
    return {name: module.CASES for name, module in families.items()}
