import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from proscale.engine.trainer import RESULTS_FILE
from proscale.errors import ConfigError


class Stop(Exception):
    pass


class StopAfter(HookBase):
    """Stops training after the hooks of ``iteration``, as a machine that fails."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise Stop


def metrics(cfg) -> list[dict]:
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_training_lowers_the_loss_and_logs(toy_cfg, toy_trainer):
    cfg = toy_cfg("SOLVER.MAX_ITER", 40, "SOLVER.STEPS", ())
    toy_trainer(cfg).train()
    first, last = [entry for entry in metrics(cfg) if "total_loss" in entry][:2]
    assert {"loss_ce", "loss_mask", "grad_norm", "lr", "data_time", "time"} <= first.keys()
    assert last["total_loss"] < first["total_loss"]
    assert list(Path(cfg.OUTPUT_DIR).glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.ACCUMULATION_STEPS", 2),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01),
    ],
    ids=["adamw", "sgd_poly", "cosine_accumulated", "clipped"],
)
def test_resumed_training_equals_uninterrupted(toy_cfg, toy_trainer, tmp_path, overrides):
    straight = toy_trainer(toy_cfg(*overrides, "OUTPUT_DIR", str(tmp_path / "straight")))
    straight.train()

    cfg = toy_cfg(*overrides, "OUTPUT_DIR", str(tmp_path / "resumed"))
    interrupted = toy_trainer(cfg)
    interrupted.register_hooks([StopAfter(3)])  # one step past the checkpoint
    with pytest.raises(Stop):
        interrupted.train()
    resumed = toy_trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()

    expected, actual = straight.state_dict(), resumed.state_dict()
    assert actual["iteration"] == expected["iteration"] == 6
    assert actual["hooks"] == expected["hooks"]
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for index, moments in expected["_trainer"]["optimizer"]["state"].items():
        for name, value in moments.items():
            other = actual["_trainer"]["optimizer"]["state"][index][name]
            assert torch.equal(torch.as_tensor(other), torch.as_tensor(value)), name


def test_without_resume_training_starts_from_the_weights(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg())
    trainer.train()
    final = Path(trainer.cfg.OUTPUT_DIR, "model_final.pth")
    fresh = toy_trainer(toy_cfg("MODEL.WEIGHTS", str(final)))
    fresh.resume_or_load(resume=False)
    assert fresh.start_iter == 0
    assert not fresh.optimizer.state
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], value), name


def test_checkpoint_without_optimizer_is_refused(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg())
    with pytest.raises(ValueError, match=r"no optimiser state .*MODEL\.WEIGHTS"):
        trainer.load_state_dict({"iteration": 2, "hooks": {}})


def test_checkpoints_are_written_periodically(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 5))
    trainer.train()
    names = {path.name for path in Path(trainer.cfg.OUTPUT_DIR).glob("*.pth")}
    assert names == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}


@pytest.mark.parametrize(("period", "expected"), [(0, 1), (2, 3), (3, 2), (4, 2), (10, 1)])
def test_evaluation_is_periodic_and_once_at_the_end(
    toy_cfg, toy_trainer, evaluations, period, expected
):
    toy_trainer(toy_cfg("TEST.EVAL_PERIOD", period)).train()
    assert evaluations() == expected


def test_results_are_written(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg())
    results = trainer.test(trainer.cfg, trainer.model)
    assert results["toy"]["images"] == 1.0
    written = json.loads(Path(trainer.cfg.OUTPUT_DIR, RESULTS_FILE).read_text())
    assert written == {"engine_toy": {"toy": {"images": 1.0, "PQ-cat": None}}}


def test_no_test_data_no_results(toy_cfg, toy_trainer):
    cfg = toy_cfg("DATASETS.TEST", ())
    toy_trainer(cfg).train()
    assert not Path(cfg.OUTPUT_DIR, RESULTS_FILE).exists()


def test_settings_reach_the_training_step(toy_cfg, toy_trainer):
    cfg = toy_cfg(
        *("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATION_STEPS", 2),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", 1.0),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01),
    )
    loop = toy_trainer(cfg)._trainer
    assert loop.amp_dtype is torch.bfloat16
    assert (loop.accumulation_steps, loop.clip_norm, loop.norm_type) == (2, 0.01, 1.0)


def test_more_parts_than_images_are_refused(toy_cfg, toy_trainer):
    with pytest.raises(
        ConfigError, match=r"SOLVER\.ACCUMULATION_STEPS is 3.* 1 to 2.*IMS_PER_BATCH 2"
    ):
        toy_trainer(toy_cfg("SOLVER.ACCUMULATION_STEPS", 3))


def test_values_are_checked_before_anything_is_built(toy_cfg, toy_trainer):
    cfg = toy_cfg().clone()
    cfg.defrost()
    cfg.SOLVER.OPTIMIZER = "ADAM"
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER is 'ADAM': expected ADAMW or SGD"):
        toy_trainer(cfg)


def test_batch_may_be_larger_than_the_data_set(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg("SOLVER.IMS_PER_BATCH", 5, "SOLVER.MAX_ITER", 2))
    trainer.train()
    assert trainer.iter == 2


def test_a_full_disk_ends_training_without_a_traceback(toy_cfg, toy_trainer, caplog):
    class Full(HookBase):
        def after_step(self):
            raise OSError(28, "No space left on device")

    trainer = toy_trainer(toy_cfg())
    trainer.register_hooks([Full()])
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    (record,) = (r for r in caplog.records if r.getMessage().startswith("Exception during"))
    assert record.getMessage() == "Exception during training: No space left on device"
    assert record.exc_info is None
