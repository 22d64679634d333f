"""Steps in which something is not finite: told, recorded, and skipped, but not too often."""

import copy
import json
import logging
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from proscale.engine.recorded_step import RecordedStep, record_fault
from proscale.engine.train_loop import TrainLoop
from proscale.errors import CheckpointError
from proscale.utils.whole_files import partial_path

ITERATION = 7


class Model(nn.Module):
    """A loss that is what the image says, and a running statistic."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch])
        if any(sample.get("cost") for sample in batch):
            raise FloatingPointError("matching the last output: class cost of image 0 of the batch")
        return {"loss": (self.norm(images) * self.weight).pow(2).sum() + images.sum()}


def make_batch(value: float = 1.0, **extra) -> list[dict]:
    images = torch.tensor([[1.0, 2.0], [3.0, value]])
    return [{"image": image, "file_name": f"{i}.jpg", **extra} for i, image in enumerate(images)]


GOOD, NAN, COST = make_batch(), make_batch(float("nan")), make_batch(cost=True)


def make_loop(batches, **arguments) -> TrainLoop:
    model = Model()
    loop = TrainLoop(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    loop.iter = ITERATION
    return loop


def run(loop: TrainLoop, steps: int) -> dict[str, float]:
    with EventStorage(ITERATION) as storage:
        for _ in range(steps):
            loop.run_step()
            loop.iter += 1
    return {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (NAN, "loss = nan"),
        (COST, "matching the last output: class cost of image 0 of the batch"),
    ],
    ids=["loss", "cost"],
)
@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
def test_step_is_left_out_and_told(batch, told, amp_dtype, caplog):
    loop = make_loop([batch, GOOD], max_skipped_steps=1, amp_dtype=amp_dtype)
    before = copy.deepcopy(loop.model.state_dict())
    with caplog.at_level(logging.WARNING):
        run(loop, 1)
    assert [record.message for record in caplog.records] == [
        f"not finite at iteration 7: {told}; images of this process: 0.jpg, 1.jpg; skipped, step "
        "1 of at most 1 (SOLVER.MAX_SKIPPED_STEPS)"
    ]
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    figures = run(loop, 1)
    assert not torch.equal(loop.model.weight, before["weight"])
    assert torch.isfinite(loop.model.norm.running_mean).all()
    assert figures["skipped_steps"] == 1
    assert math.isfinite(figures["total_loss"])
    assert "grad_norm" in figures


def test_one_step_more_ends_the_training():
    loop = make_loop([NAN, GOOD, COST, NAN], max_skipped_steps=2)
    with pytest.raises(FloatingPointError, match="not finite at iteration 10: loss = nan"):
        run(loop, 4)
    assert loop.skipped_steps == 2


def test_count_survives_saving():
    loop = make_loop([NAN], max_skipped_steps=1)
    run(loop, 1)
    resumed = make_loop([NAN], max_skipped_steps=1)
    resumed.load_state_dict(loop.state_dict())
    with pytest.raises(FloatingPointError):
        run(resumed, 1)


def test_overflow_of_the_loss_scale_is_counted_apart():
    loop = make_loop([GOOD, GOOD], amp_dtype=torch.float16)
    loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    figures = run(loop, 1)
    assert (figures["overflowed_steps"], figures["skipped_steps"]) == (1, 0)


def test_recorded_are_the_first_step_and_the_last(tmp_path):
    recorded = []

    def record(loop, batch, weights):
        recorded.append((loop.iter, batch is NAN))
        return "recorded"

    loop = make_loop([NAN] * 4, max_skipped_steps=3, record_fault=record)
    with pytest.raises(FloatingPointError, match=r"; recorded$"):
        run(loop, 4)
    assert recorded == [(7, True), (10, True)]


@pytest.fixture
def recorded(cfg, tmp_path):
    """A loop that ended, the path of its last step, and what the error said."""
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SEED = 3
    instances = Instances((4, 5))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = BitMasks(torch.ones(1, 4, 5, dtype=torch.bool))
    instances.gt_boxes = Boxes(torch.ones(1, 4))
    batch = make_batch(float("nan"), instances=instances, height=4, point=(1.5, None))
    loop = make_loop([batch], record_fault=partial(record_fault, cfg))
    loop.seed, loop.rank = 3, 1
    with pytest.raises(FloatingPointError) as error:
        run(loop, 1)
    return loop, tmp_path / "fault_0000007_rank1.pth", str(error.value)


def test_recorded_step_has_all_that_the_step_depends_on(recorded):
    loop, path, message = recorded
    assert message.endswith(f"; to see it again: proscale replay {path}")
    torch.load(path, weights_only=True)
    step = RecordedStep.read(path)
    assert (step.seed, step.iteration, step.rank) == (3, 7, 1)
    assert "SEED: 3\n" in step.config
    loop.model.load_state_dict(step.weights)
    first = step.batch[0]
    assert (first["file_name"], first["height"], first["point"]) == ("0.jpg", 4, [1.5, None])
    assert torch.equal(first["image"], torch.tensor([1.0, 2.0]))
    instances = first["instances"]
    assert instances.image_size == (4, 5)
    assert instances.gt_classes.tolist() == [2]
    assert instances.gt_masks.tensor.all() and isinstance(instances.gt_masks, BitMasks)
    assert isinstance(instances.gt_boxes, Boxes)


def test_what_cannot_be_recorded_is_told(cfg, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path)
    record = partial(record_fault, cfg)
    loop = make_loop([make_batch(float("nan"), other=object())], record_fault=record)
    with pytest.raises(
        FloatingPointError, match=r"loss = nan.*not recorded: a sample has a object"
    ):
        run(loop, 1)
    partial_path(tmp_path / "fault_0000007_rank0.pth").symlink_to("/dev/full")
    loop = make_loop([NAN], record_fault=record)
    with pytest.raises(FloatingPointError, match=r"loss = nan.*No space left on device"):
        run(loop, 1)


def test_other_files_are_no_recorded_steps(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: it is no recorded step: it has no con"):
        RecordedStep.read(tmp_path / "model.pth")


def test_training_goes_on_without_bad_images_and_logs_how_many(toy_cfg, toy_trainer):
    cfg = toy_cfg("SOLVER.MAX_SKIPPED_STEPS", 2, "DATASETS.TEST", ())
    trainer = toy_trainer(cfg)
    forward = trainer.model.forward

    def forward_with_faults(batch, target_counts=None):
        losses = forward(batch, target_counts)
        if trainer.iter in (1, 4):
            losses["loss_mask"] = losses["loss_mask"] * float("inf")
        return losses

    trainer.model.forward = forward_with_faults
    trainer.train()
    last = json.loads(Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()[-1])
    assert last["skipped_steps"] == 2
    assert Path(cfg.OUTPUT_DIR, "fault_0000001_rank0.pth").is_file()
