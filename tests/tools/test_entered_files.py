"""Files that a training and a prediction enter, in processes of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "entered"),
    [
        ("train", {"train_net.py", "proscale/modeling/segmenter.py"}),
        ("predict", {"proscale_cli.py", "proscale/cli/predict.py"}),
    ],
)
def test_files_on_the_way_are_counted(run, entered):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tools" / "entered_files.py", run, "--list"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, count = done.stdout.splitlines()
    files = [line for line in lines if line.endswith(".py")]
    assert entered <= set(files)
    # Other commands are not even imported for their parsers.
    assert [file for file in files if file.startswith("proscale/cli/")] in (
        [],
        ["proscale/cli/arguments.py", "proscale/cli/predict.py"],
    )
    found = re.fullmatch(rf"{run}: (\d+) files, (\d+) functions", count)
    assert found
    assert int(found[1]) == len(files) < int(found[2])
