"""Damaged checkpoints, a full disk, and how many stay."""

import logging
from pathlib import Path

import pytest
from detectron2.engine import HookBase

from proscale.errors import CheckpointError
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
