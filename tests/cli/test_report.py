"""The command: the place of the page, and messages."""

import pytest

from proscale_cli import main


@pytest.fixture
def run(tmp_path):
    """A folder of a training that has just begun."""
    (tmp_path / "metrics.json").write_text('{"iteration": 19, "total_loss": 3.0}\n')
    return tmp_path


def test_the_page_is_in_the_folder(run, capsys):
    main(["report", str(run)])
    assert "Total loss" in (run / "report.html").read_text("utf-8")
    printed = capsys.readouterr().out
    assert "There is no config.yaml" in printed
    assert f"Report: {run / 'report.html'}" in printed


def test_another_file(run):
    main(["report", str(run), "--output", str(run / "other.html"), "--images", "0"])
    assert (run / "other.html").is_file() and not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/none"], "expected the OUTPUT_DIR"),
        (["{run}", "--output", "{run}/none/page.html"], "there is no folder"),
        (["{run}", "--output", "{run}"], "Is a directory"),
    ],
)
def test_errors_are_a_sentence(run, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["report", *(argument.format(run=run) for argument in arguments)])


def test_images_are_counted_from_0(run, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(run), "--images", "-1"])
    assert "expected whole numbers from 0" in capsys.readouterr().err
