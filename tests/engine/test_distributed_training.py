"""Several processes compute what one does: gradients, losses, and the figures of an evaluation."""

import json
import math

import pytest
import torch

STEPS = 3


@pytest.fixture
def compare(start_training, tmp_path):
    """Returns a function: name of a job → compares its notes with those of job ``one``."""
    # Without a learning rate, what is different in one step is not in the next; and the model that
    # is evaluated has the same weights to the last bit.
    orders = {"gradients": True, "fixed_points": True}
    overrides = ("SOLVER.MAX_ITER", STEPS, "SOLVER.BASE_LR", 0.0)
    one = start_training("one", *overrides, orders=orders)

    def start(name: str, *more, **options):
        return start_training(name, *overrides, *more, orders=orders, **options)

    def compare(name: str, ranks: int) -> None:
        assert one.wait(timeout=240) == 0, start_training.output("one")
        expected = torch.load(tmp_path / "one" / "gradients_0.pt")
        assert len(expected) == STEPS
        for rank in range(ranks):
            gradients = torch.load(tmp_path / name / f"gradients_{rank}.pt")
            differences = sorted(map(difference, gradients, expected))
            # Where a number is next to a threshold, as of the attention's masks, rounding may tip
            # it. What is wrong is so by percents, and in every step.
            assert len(differences) == STEPS
            assert differences[STEPS // 2] <= 1e-5
            assert differences[-1] <= 1e-3
        for (_, ours), (_, theirs) in zip(
            start_training.losses(name), start_training.losses("one"), strict=True
        ):
            assert float.fromhex(ours) == pytest.approx(float.fromhex(theirs), rel=1e-5)
        ours = start_training.results(name)
        assert ours == start_training.results("one")
        assert json.loads(ours)["own_panoptic_val"]["sem_seg"]["mIoU"] > 0

    return start, compare


def difference(ours: dict, theirs: dict) -> float:
    """The largest of all parameters' gradients, relative to their norm."""
    assert ours.keys() == theirs.keys()
    whole = math.sqrt(sum(float(gradient.square().sum()) for gradient in theirs.values()))
    # Some are zero but for rounding, such as that of a bias before a norm.
    return max(
        float((ours[name] - gradient).norm()) / max(float(gradient.norm()), 0.01 * whole)
        for name, gradient in theirs.items()
    )


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(start_training, compare, processes, sharded):
    start, assert_equals_one = compare
    options = ("--standalone", "--nproc_per_node", str(processes))
    several = start("several", "DISTRIBUTED.SHARDED", sharded, torchrun=options)
    assert several.wait(timeout=240) == 0, start_training.output("several")
    assert_equals_one("several", processes)


@pytest.mark.slow
def test_eval_only_gives_the_figures_of_one_process(start_training, tmp_path):
    training = start_training("trained", "SOLVER.MAX_ITER", 40)
    assert training.wait(timeout=280) == 0, start_training.output("trained")
    weights = ("MODEL.WEIGHTS", tmp_path / "trained" / "output" / "model_final.pth")
    torchrun = ("--standalone", "--nproc_per_node", "2")
    jobs = {
        "one": start_training("one", *weights, flags=["--eval-only"]),
        "two": start_training("two", *weights, flags=["--eval-only"], torchrun=torchrun),
    }
    for name, job in jobs.items():
        assert job.wait(timeout=120) == 0, start_training.output(name)
        assert start_training.results(name) == start_training.results("trained")
    assert json.loads(start_training.results("two"))["own_panoptic_val"]["sem_seg"]["mIoU"] > 0
