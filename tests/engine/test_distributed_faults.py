"""A process that dies takes the job down, with its reason; torchrun starts it again if told to."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

STANDALONE = ("--standalone", "--nproc_per_node", "2")


def root_cause(output: str) -> str:
    """What torchrun says of the process that failed first."""
    return output.rpartition("Root Cause (first observed failure):")[2]


@pytest.mark.parametrize(
    ("fault", "workers", "reason"),
    [
        ("kill", 0, r"exitcode  : -9 .*\n(.*\n)*.*Signal 9 \(SIGKILL\)"),
        pytest.param("raise", 0, "KeyError: 'the reason of process 1'", marks=pytest.mark.slow),
        pytest.param(
            *(
                "kill loader worker",
                1,
                r"ProcessFailed: DataLoader worker .*is killed by signal: Killed.*NUM_WORKERS",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param("hang", 0, "(?i)timed out", marks=pytest.mark.slow),
    ],
)
def test_job_ends_with_the_reason(start_training, tmp_path, fault, workers, reason):
    job = start_training(
        "broken",
        *("SOLVER.MAX_ITER", 100, "DATALOADER.NUM_WORKERS", workers, "DISTRIBUTED.TIMEOUT", 15),
        orders={"fault": {"kind": fault, "rank": 1, "iteration": 1}},
        torchrun=STANDALONE,
    )
    assert job.wait(timeout=240) == 1
    lasted = time.time() - (tmp_path / "broken" / "fault").stat().st_mtime
    assert lasted < 60
    cause = root_cause(start_training.output("broken"))
    assert re.search(reason, cause), cause
    assert re.search(rf"rank +: {0 if fault == 'hang' else 1} ", cause)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_restarted_job_has_the_curve_of_an_uninterrupted_one(start_training, tmp_path, sharded):
    steps = 12
    overrides = ("SOLVER.MAX_ITER", steps, "SOLVER.CHECKPOINT_PERIOD", 2)
    overrides += ("DISTRIBUTED.SHARDED", sharded)
    straight = start_training("straight", *overrides, torchrun=STANDALONE)
    assert straight.wait(timeout=240) == 0
    killed = start_training(
        "killed",
        *overrides,
        orders={"fault": {"kind": "kill soon", "rank": 1, "iteration": 6}},
        flags=["--resume"],
        torchrun=(*STANDALONE, "--max-restarts", "1"),
    )
    assert killed.wait(timeout=240) == 0, start_training.output("killed")
    assert (tmp_path / "killed" / "fault").exists()
    losses = start_training.losses("straight")
    assert [int(step) for step, _ in losses] == list(range(steps))
    seen = start_training.losses("killed")
    assert len(seen) >= steps
    assert {tuple(note) for note in seen} == {tuple(note) for note in losses}
    restarts = [i for i, (step, _) in enumerate(seen) if i and int(step) != int(seen[i - 1][0]) + 1]
    assert len(restarts) <= 1  # none where the last step before was saved
    assert start_training.results("killed") == start_training.results("straight")


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_sigterm_to_torchrun_saves_in_all_processes(start_training, tmp_path, to_all):
    job = start_training("stopped", "SOLVER.MAX_ITER", 10000, torchrun=STANDALONE)
    notes = tmp_path / "stopped" / "losses_0.txt"
    deadline = time.time() + 120
    while not notes.exists():
        assert time.time() < deadline and job.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for pid in map(int, children if to_all else []):  # first, as SLURM may
        os.kill(pid, signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) != 0
    assert "stopped and saved after iteration" in start_training.output("stopped")
    iteration = len(start_training.losses("stopped")) - 1
    assert (tmp_path / "stopped" / "output" / f"model_{iteration:07d}.pth").is_file()
