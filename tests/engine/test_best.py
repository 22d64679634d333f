"""The best weights of a training, the end of one that gets no better, and resuming."""

import math

import pytest

from proscale.checkpoint import read_checkpoint
from proscale.errors import ConfigError

METRIC = ("TEST.BEST_METRIC", "toy/images", "TEST.EVAL_PERIOD", 1)


@pytest.fixture
def run(toy_cfg, toy_trainer, monkeypatch):
    """Returns a function: values of the evaluations, KEY VALUE overrides → a finished training."""

    def run(values, *overrides, resume=False):
        remaining = iter(values)

        def test(cfg, model):
            return {"toy": {"images": next(remaining), "other-cat": 1.0}}

        monkeypatch.setattr(toy_trainer, "test", staticmethod(test))
        trainer = toy_trainer(toy_cfg(*METRIC, *overrides))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


def best(folder):
    content = read_checkpoint(folder / "model_best.pth")
    assert "trainer" not in content
    return content["iteration"], content["toy/images"]


def test_best_of_all_evaluations(run, tmp_path):
    run([1.0, 5.0, 3.0, 5.0, math.nan, 4.0])
    assert best(tmp_path / "output") == (1, 5.0)
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_final.pth"


def test_the_last_evaluation_counts(run, tmp_path):
    run([math.nan, 1.0, 3.0, 2.0, 2.0, 4.0])
    assert best(tmp_path / "output") == (5, 4.0)


def test_early_stop(run, tmp_path, caplog):
    trainer = run([1.0, 5.0, 3.0, 4.0, 9.0, 9.0], "SOLVER.EARLY_STOPPING", 2)
    assert trainer.iter == 3 and best(tmp_path / "output") == (1, 5.0)
    final = read_checkpoint(tmp_path / "output" / "model_final.pth")
    assert final["iteration"] == 3 and "trainer" in final
    assert "not been better than 5, of iteration 1, in 2 evaluations" in caplog.text


def test_resumed_from_before_the_evaluation(run, tmp_path, toy_cfg):
    """The checkpoint of a step is written before the step's evaluation."""
    output = tmp_path / "output"
    run([1.0, 5.0, 9.0], "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (4,))
    trainer = run([2.0, 3.0, 4.0], resume=True)
    assert trainer.start_iter == 3 and best(output) == (2, 9.0)


def test_of_another_metric_nothing_is_resumed(run, tmp_path):
    run([1.0, 5.0, 9.0], "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (4,))
    run([2.0, 3.0, 4.0], "TEST.BEST_METRIC", "toy/other-cat", resume=True)
    assert read_checkpoint(tmp_path / "output" / "model_best.pth")["iteration"] == 3


def test_unknown_metric(run):
    with pytest.raises(ConfigError, match=r"TEST.BEST_METRIC is toy/PQ, .* one of toy/images$"):
        run([1.0], "TEST.BEST_METRIC", "toy/PQ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("TEST.EVAL_PERIOD", 0), "TEST.BEST_METRIC is toy/images: expected TEST.EVAL_PERIOD"),
        (("TEST.BEST_METRIC", "", "SOLVER.EARLY_STOPPING", 3), "SOLVER.EARLY_STOPPING is 3"),
    ],
)
def test_keys_that_need_each_other(overrides, message, run):
    with pytest.raises(ConfigError, match=message):
        run([1.0], *overrides)
