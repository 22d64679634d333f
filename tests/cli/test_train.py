"""``proscale train`` and ``evaluate`` are ``train_net.py`` with a CONFIG, and print a few lines."""

import pytest
from detectron2.utils.events import EventStorage

from proscale.engine.console import ProgressLine, print_results
from proscale_cli import main


@pytest.fixture
def words(monkeypatch):
    """The words that the job was run with."""
    found = []
    for command in ("train", "evaluate"):
        monkeypatch.setattr(f"proscale.cli.{command}.run_job", found.extend, raising=False)
    return found


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "train a/b --resume SEED 1",
            "--config-file a/b --num-gpus 1 --resume SEED 1",
        ),
        (
            "train --config-file a/b SEED 1 --num-gpus 2",
            "--config-file a/b --num-gpus 2 SEED 1",
        ),
        (
            "evaluate model.pth SEED 1",
            "--config-file model.pth --num-gpus 1 --eval-only SEED 1",
        ),
    ],
)
def test_options_are_those_of_train_net(words, command, expected):
    main(command.split())
    assert words == expected.split()


def test_a_configuration_is_needed():
    with pytest.raises(SystemExit, match="--config-file is missing: expected a file, or a name"):
        main(["train"])


def test_nothing_is_printed_of_a_training_that_fails_at_once(capsys):
    lines = ProgressLine(0, 300)
    with EventStorage(0):
        lines.write()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 300), (100, 368750), (0, 368750)])
def test_lines_of_progress_are_few(start, end):
    period = ProgressLine(start, end).period
    assert period % 20 == 0
    assert (end - start) / period <= 30


def test_results_are_those_of_no_single_class(capsys):
    print_results({"a": {"toy": {"PQ": 51.234, "PQ-cat": 3.0}}, "b": {"toy": {"PQ": 1.0}}})
    assert capsys.readouterr().out == "a:\ntoy   PQ 51.23\nb:\ntoy   PQ 1.00\n"
