"""Damaged checkpoints, values that are not finite, a full disk, and how many files stay."""

import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from proscale.checkpoint.files import save_archive, stored_iteration
from proscale.errors import CheckpointError, UserError
from proscale.utils.whole_files import partial_path


@pytest.fixture
def trained(toy_cfg, toy_trainer):
    """Returns a function: KEY VALUE overrides → configuration of a run with a checkpoint a step."""

    def train(*overrides):
        cfg = toy_cfg("SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", (), *overrides)
        toy_trainer(cfg).train()
        return cfg

    return train


def checkpoints(cfg) -> list[str]:
    return sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resume(toy_trainer, cfg):
    trainer = toy_trainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


@pytest.mark.parametrize(
    "damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_damaged_checkpoint_is_told_and_the_one_before_used(trained, toy_trainer, caplog, damage):
    cfg = trained()
    folder = Path(cfg.OUTPUT_DIR)
    damage(folder / "model_final.pth")
    damage(folder / "model_0000005.pth")
    with caplog.at_level(logging.ERROR):
        trainer = resume(toy_trainer, cfg)
    assert trainer.start_iter == 5  # behind model_0000004.pth
    told = [record.message for record in caplog.records]
    assert len(told) == 1 + (folder / "model_0000005.pth").exists()
    assert "Damaged checkpoint" in told[0] and "model_final.pth: " in told[0]


def test_mark_that_was_not_completed(trained, toy_trainer):
    cfg = trained()
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("")
    assert resume(toy_trainer, cfg).start_iter == 6


@pytest.mark.parametrize(
    "mark",
    [
        b"\xff\xfe\x00",
        b"a" * 5000,
        b"../model_0000001.pth",
        b"model_\x00.pth",
        b"/etc/passwd",
        b".",
    ],
)
def test_mark_that_names_no_checkpoint(trained, toy_trainer, mark, caplog):
    cfg = trained()
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_bytes(mark)
    assert resume(toy_trainer, cfg).start_iter == 6
    assert "Resuming from" in caplog.text


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ([1], r"model_final\.pth: trainer is \[1\]: expected a dictionary"),
        ("x", r"trainer is \"x\": expected a dictionary"),
        ({"_trainer": 1}, "trainer cannot be restored"),
        ({"_trainer": {}, "iteration": 2}, "trainer cannot be restored: KeyError"),
        ({"_trainer": {"iteration": 2, "optimizer": {}}, "iteration": 2}, "cannot be restored"),
        ({"_trainer": {}, "iteration": "x", "hooks": 4}, "trainer cannot be restored"),
        ({"_trainer": {}, "iteration": 2, "hooks": {"MetricHistory": 1}}, "cannot be restored"),
    ],
)
def test_state_of_a_training_that_is_none(trained, toy_trainer, trainer, told):
    cfg = trained()
    path = Path(cfg.OUTPUT_DIR, "model_final.pth")
    torch.save(torch.load(path, weights_only=True) | {"trainer": trainer}, path)
    with pytest.raises(UserError, match=told) as error:
        resume(toy_trainer, cfg)
    assert "\n" not in str(error.value)


# Each puts a NaN where a training keeps values.
def spoil_parameter(trainer):
    trainer.model.head.weight.data[0, 0] = float("nan")


def spoil_buffer(trainer):
    trainer.model.register_buffer("running", torch.tensor([1.0, float("inf")]))


def spoil_moment(trainer):
    next(iter(trainer.optimizer.state.values()))["exp_avg"][0] = float("nan")


def spoil_decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = float("nan")


def spoil_schedule(trainer):
    trainer.scheduler.base_lrs[0] = float("nan")


def spoil_scaler(trainer):
    trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=float("nan"))


SPOILS = {
    spoil_parameter: "model.head.weight",
    spoil_buffer: "model.running",
    spoil_moment: "trainer._trainer.optimizer.state.0.exp_avg",
    spoil_decay: "trainer._trainer.optimizer.param_groups.0.weight_decay",
    spoil_schedule: "trainer.hooks.LRScheduler.base_lrs.0",
    spoil_scaler: "trainer._trainer.grad_scaler.scale",
}


@pytest.mark.parametrize(("spoil", "name"), SPOILS.items())
@pytest.mark.parametrize("keep", [0, 1])
def test_nothing_that_is_not_finite_becomes_the_last(toy_cfg, toy_trainer, spoil, name, keep):
    class Spoil(HookBase):
        def after_step(self):
            if self.trainer.iter == 3:
                spoil(self.trainer)

    overrides = ("DATASETS.TEST", (), "SOLVER.CHECKPOINTS_TO_KEEP", keep)
    cfg = toy_cfg("SOLVER.CHECKPOINT_PERIOD", 1, *overrides)
    trainer = toy_trainer(cfg)
    trainer.register_hooks([Spoil()])
    trainer._hooks.insert(0, trainer._hooks.pop())
    with pytest.raises(CheckpointError, match=r"model_0000003\.pth: not written: ") as error:
        trainer.train()
    assert name in str(error.value)
    assert checkpoints(cfg)[-1] == "model_0000002.pth"
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000002.pth"
    assert resume(toy_trainer, cfg).start_iter == 3


def test_metrics_of_a_user_may_be_nan(toy_cfg, toy_trainer):
    class Metric(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("mine", float("nan"))

    cfg = toy_cfg("DATASETS.TEST", ())
    trainer = toy_trainer(cfg)
    trainer.register_hooks([Metric()])
    trainer.train()
    assert resume(toy_trainer, cfg).start_iter == 6


@pytest.mark.parametrize("in_optimizer", [False, True])
def test_resuming_goes_back_to_finite_values(trained, toy_trainer, caplog, in_optimizer):
    """Files of earlier versions, which did not look before they wrote."""
    cfg = trained()
    for name in ("model_final.pth", "model_0000005.pth"):
        path = Path(cfg.OUTPUT_DIR, name)
        content = torch.load(path, weights_only=True)
        moments = content["trainer"]["_trainer"]["optimizer"]["state"][1]["exp_avg"]
        (moments if in_optimizer else content["model"]["head.bias"])[0] = float("nan")
        save_archive(path, content, iteration=5)
    with caplog.at_level(logging.WARNING):
        assert resume(toy_trainer, cfg).start_iter == 5
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert "model_final.pth: 1 values are no finite numbers: " in told[0]
    assert told[2].endswith("model_0000004.pth")


def redate(path: Path, year: int) -> None:
    seconds = (year - 1970) * 365 * 24 * 3600
    os.utime(path, (seconds, seconds))


def forget_digest(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True), path)


@pytest.mark.parametrize("rewrite", [lambda path: None, forget_digest], ids=["own", "other"])
def test_newest_is_by_iteration_not_by_date(trained, toy_trainer, rewrite):
    cfg = trained()
    folder = Path(cfg.OUTPUT_DIR)
    for path in folder.glob("*.pth"):
        rewrite(path)
    # Names and dates that would have the first one win.
    (folder / "model_0000000.pth").rename(folder / "model_9999999.pth")
    redate(folder / "model_9999999.pth", 2033)
    (folder / "model_final.pth").unlink()
    truncate(folder / "model_0000005.pth")
    assert stored_iteration(folder / "model_9999999.pth") == 0
    assert resume(toy_trainer, cfg).start_iter == 5


def test_pruning_is_by_iteration_and_leaves_what_is_later(trained, toy_trainer):
    cfg = trained("SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ())
    folder = Path(cfg.OUTPUT_DIR)
    redate(folder / "model_0000000.pth", 2033)
    save_archive(folder / "model_0000100.pth", {}, iteration=100)
    cfg = cfg.clone()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINTS_TO_KEEP", 2])
    resume(toy_trainer, cfg).train()
    assert checkpoints(cfg) == [
        *("model_0000003.pth", "model_0000004.pth", "model_0000100.pth", "model_final.pth")
    ]


def test_no_checkpoint_left_names_the_folder(trained, toy_trainer):
    cfg = trained("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    for name in checkpoints(cfg):
        truncate(Path(cfg.OUTPUT_DIR, name))
    with pytest.raises(CheckpointError) as error:
        resume(toy_trainer, cfg)
    message = str(error.value)
    assert message.startswith(f"{cfg.OUTPUT_DIR}: no checkpoint to resume from that is not damaged")
    assert all(name in message for name in checkpoints(cfg))


@pytest.mark.parametrize(
    ("keep", "numbers"), [(0, [0, 1, 2, 3, 4, 5]), (1, [5]), (2, [4, 5]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_newest_checkpoints_are_kept(trained, keep, numbers):
    cfg = trained("SOLVER.CHECKPOINTS_TO_KEEP", keep)
    assert checkpoints(cfg) == [*(f"model_{i:07d}.pth" for i in numbers), "model_final.pth"]


def test_pruning_goes_on_after_resuming(trained, toy_trainer):
    cfg = trained("SOLVER.CHECKPOINTS_TO_KEEP", 2, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", ())
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 6
    resume(toy_trainer, cfg).train()
    assert checkpoints(cfg) == ["model_0000004.pth", "model_0000005.pth", "model_final.pth"]


def test_left_over_files_are_removed_when_training_starts(trained, toy_trainer, caplog):
    cfg = trained("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    left_over = partial_path(Path(cfg.OUTPUT_DIR, "model_0000002.pth"))
    left_over.write_bytes(b"half")
    trainer = resume(toy_trainer, cfg)
    assert left_over.exists()  # another process, an evaluation say, leaves it alone
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert not left_over.exists()
    assert f"Removed {left_over.name}" in caplog.text


def test_full_disk_ends_training_and_leaves_the_checkpoint_before(toy_cfg, toy_trainer):
    class FillDisk(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                path = Path(cfg.OUTPUT_DIR, "model_0000003.pth")
                partial_path(path).symlink_to("/dev/full")

    cfg = toy_cfg("SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", ())
    trainer = toy_trainer(cfg)
    trainer.register_hooks([FillDisk()])
    with pytest.raises(CheckpointError, match=r"model_0000003\.pth: .*No space left on device"):
        trainer.train()
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000002.pth"
    assert resume(toy_trainer, cfg).start_iter == 3
