"""One process writes to the folder of a training, and nothing in it is overwritten unasked."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from proscale.engine.output_dir import LOCK_FILE, check_unused, remove_training, writing_to
from proscale.errors import ConfigError

ROOT = Path(__file__).parents[2]
HOLD = """
import os, sys, time
from proscale.engine.output_dir import writing_to
with writing_to(sys.argv[1]):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)  # as a data loader's worker does when the main process is killed
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Returns a function: starts a process that writes to ``tmp_path``, with arguments."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path), *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_second_process_is_refused_and_told_of_the_first(hold, tmp_path):
    partial = tmp_path / ".model_0000001.pth.1.partial.pth"
    first = hold()
    partial.touch()  # the first one is writing it
    with pytest.raises(ConfigError) as error, writing_to(str(tmp_path)):
        pass
    told = f"OUTPUT_DIR is {tmp_path}: another process writes to it (process {first.pid} on "
    assert str(error.value).startswith(told)
    assert partial.exists()
    first.communicate("")
    with writing_to(str(tmp_path)):
        assert not partial.exists()


def test_lock_goes_with_the_process(hold, tmp_path):
    first = hold("fork")
    first.kill()
    first.wait()
    with writing_to(str(tmp_path)), writing_to(f"{tmp_path}/../{tmp_path.name}"):
        pass
    with writing_to(str(tmp_path)):
        pass


def test_partial_files_of_users_stay(tmp_path):
    mine = tmp_path / "thesis.partial"
    mine.touch()
    with writing_to(str(tmp_path)):
        assert mine.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("elsewhere"),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/full"),
    ],
)
def test_what_is_no_lock_file_is_refused(tmp_path, make):
    make(tmp_path / LOCK_FILE)
    with (
        pytest.raises(ConfigError, match=r"\.proscale\.lock: cannot be written: "),
        writing_to(str(tmp_path)),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["last_checkpoint", "model_0000009.pth", "model_final.pth"])
def test_folder_with_a_training_is_refused(tmp_path, name):
    (tmp_path / "weights.pth").touch()
    (tmp_path / "metrics.json").touch()  # of a training that failed at once
    check_unused(str(tmp_path))
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"has {name} of a training: expected --resume"):
        check_unused(str(tmp_path))
    remove_training(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "weights.pth"]


def test_metrics_are_of_a_training(tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"has metrics\.json of a training"):
        check_unused(str(tmp_path))
    with metrics.open("a") as file:
        remove_training(str(tmp_path))
        file.write("new")
    assert metrics.read_text() == "new"
