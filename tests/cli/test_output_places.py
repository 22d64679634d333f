"""Places for output that cannot be written are refused in one line, before the work.

Inputs of the commands are missing: a message about the output shows that it was tried first.
"""

import os
from functools import partial
from pathlib import Path

import pytest

from proscale.predict.outputs import try_output_folder
from proscale.utils import whole_files
from proscale_cli import main

ROOT = Path(__file__).parents[2]
MODEL = ("--config-file", "demo/proscale_r18_111")
WEIGHTS = (*MODEL, "--weights", "missing.pth")

# By the option in the message: arguments in front of the place, and behind it.
FILES = {
    "convert OUTPUT": (["convert", "missing.pth"], [".pth"]),
    "export --output": (["export", *WEIGHTS, "--format", "torch-export", "--output"], [".pt2"]),
    "export --json": (
        ["export", *WEIGHTS, "--format", "torch-export", "--output", "{}/a.pt2", "--json"],
        [".json"],
    ),
    "flops --json": (["flops", "--config-file", "missing.yaml", "--json"], [".json"]),
    "flops --markdown": (["flops", "--config-file", "missing.yaml", "--markdown"], [".md"]),
    "flops --plot": (["flops", "--config-file", "missing.yaml", "--plot"], [".svg"]),
    "benchmark --json": (["benchmark", "--config-file", "missing.yaml", "--json"], [".json"]),
    "check-dataset --json": (["check-dataset", "coco_2017_val", "--json"], [".json"]),
    "report --output": (["report", "{}/run", "--output"], [".html"]),
}
# By a place what it is called in the message.
PLACES = {
    "folder": ("{}/folder", "Is a directory"),
    "in a file": ("{}/file/a", "(File exists)"),
    "read-only": ("/proc/self/a", ""),
    "pipe": ("{}/pipe", "it is a pipe or device"),
    "long name": ("{}/" + "a" * 300, "File name too long"),
}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"iteration": 0, "total_loss": 1}\n')
    (tmp_path / "file").touch()
    for suffix in (".pth", ".pt2", ".json", ".md", ".svg", ".html"):
        (tmp_path / f"folder{suffix}").mkdir()
        os.mkfifo(tmp_path / f"pipe{suffix}")
    return tmp_path


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    message = str(stop.value.code)
    assert message.startswith("proscale: ") and "\n" not in message
    return message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", FILES)
def test_files_are_tried_before_the_work(case, place, places):
    if place == "pipe" and case.split("--")[-1] in ("json", "markdown"):
        pytest.skip("pipes take text, as /dev/stdout does")
    option, (words, (suffix,)) = case.split()[1], FILES[case]
    if (case, place) == ("report --output", "in a file"):
        pytest.skip("the folder of a report has to be there")
    text, reason = PLACES[place]
    path = text.format(places) + suffix
    message = refused(*(word.format(places) for word in words), path)
    assert message.startswith(f"proscale: {option} is {path}: expected a file that can be written")
    assert reason in message


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("name", ["", "overlays", "index.html", "predictions.json"])
def test_folders_of_predictions_are_tried_before_the_work(name, task, tmp_path):
    place = tmp_path / "out" / name
    place.parent.mkdir(exist_ok=True)
    if name.endswith(("html", "json")):
        place.mkdir()
    else:
        place.touch()
    image = tmp_path / "image.png"
    image.touch()
    arguments = ["predict", image, *WEIGHTS, "--output", tmp_path / "out", "--task", task]
    tests = ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON")
    message = refused(*arguments, *tests, "True")
    assert message.startswith("proscale: --output is ") and "that can be written" in message


def test_a_full_disk_is_noticed(tmp_path, monkeypatch):
    full = partial(open, "/dev/full", "wb", buffering=0)
    monkeypatch.setattr(whole_files.tempfile, "TemporaryFile", lambda **_: full())
    with pytest.raises(ValueError, match=r"--output is .* \(No space left on device\)"):
        try_output_folder(tmp_path, "panoptic")


def test_text_goes_to_a_device():
    whole_files.write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
