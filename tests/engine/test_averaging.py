"""The average of a training's weights: its numbers, evaluation, files and resuming."""

import pytest
import torch
from torch import nn

from proscale.checkpoint import read_checkpoint
from proscale.engine.averaging import AveragedWeights

DECAY = ("SOLVER.EMA_DECAY", 0.9)


def test_numbers_equal_the_formula():
    model = nn.BatchNorm1d(2)
    averaged = AveragedWeights(model, 0.5)
    averaged.start()
    expected = 1.0
    for step, value in enumerate((3.0, 5.0, -2.0, 4.0, 6.0, 1.0, 2.0, 2.0, 8.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        model.num_batches_tracked.fill_(step)
        averaged.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with averaged.in_place():
        torch.testing.assert_close(model.weight.data, torch.full((2,), expected))
        assert averaged.state_dict()["weight"].tolist() == [8.0, 8.0]
        assert model.num_batches_tracked == 8
    assert model.weight.tolist() == [8.0, 8.0]
    torch.testing.assert_close(averaged.state_dict()["weight"], torch.full((2,), expected))


def test_without_decay_nothing_is_kept():
    model = nn.Linear(2, 2)
    averaged = AveragedWeights(model, 0.0)
    averaged.start()
    before = model.weight.clone()
    averaged.update(0)
    with averaged.in_place():
        assert torch.equal(model.weight, before)
    assert averaged.state_dict() == {}


def run(toy_cfg, toy_trainer, *overrides, resume=False):
    trainer = toy_trainer(toy_cfg(*overrides))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_average_is_evaluated_and_saved(toy_cfg, toy_trainer, tmp_path, monkeypatch):
    evaluated = []
    test = toy_trainer.test

    def noted(cfg, model):
        evaluated.append(model.head.weight.clone())
        return test(cfg, model)

    monkeypatch.setattr(toy_trainer, "test", staticmethod(noted))
    trainer = run(toy_cfg, toy_trainer, *DECAY)
    saved = read_checkpoint(tmp_path / "output" / "model_final.pth")
    assert torch.equal(saved["model"]["head.weight"], evaluated[-1])
    own = saved["trainer"]["own_weights"]["head.weight"]
    assert torch.equal(own, trainer.model.head.weight) and not torch.equal(own, evaluated[-1])


def test_resuming_is_bitwise(toy_cfg, toy_trainer, tmp_path):
    whole = run(toy_cfg, toy_trainer, *DECAY)
    folder = ("OUTPUT_DIR", str(tmp_path / "parts"))
    run(toy_cfg, toy_trainer, *DECAY, *folder, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (4,))
    parts = run(toy_cfg, toy_trainer, *DECAY, *folder, resume=True)
    assert parts.start_iter == 3
    files = [tmp_path / folder / "model_final.pth" for folder in ("output", "parts")]
    first, second = map(read_checkpoint, files)
    for name, average in first["model"].items():
        own = first["trainer"]["own_weights"][name]
        assert torch.equal(average, second["model"][name])
        assert torch.equal(own, second["trainer"]["own_weights"][name])
    assert torch.equal(whole.model.head.weight, parts.model.head.weight)


@pytest.mark.parametrize("first", [0.0, 0.9])
def test_the_average_may_be_switched_when_resuming(first, toy_cfg, toy_trainer, tmp_path):
    folder = ("OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.STEPS", (4,))
    key = "SOLVER.EMA_DECAY"
    before = run(toy_cfg, toy_trainer, *folder, key, first, "SOLVER.MAX_ITER", 3)
    weights = before.model.head.weight.clone()
    trainer = toy_trainer(toy_cfg(*folder, key, 0.9 - first))
    trainer.resume_or_load(resume=True)
    # The training goes on from its own weights in both cases.
    assert torch.equal(trainer.model.head.weight, weights)
    trainer.train()
