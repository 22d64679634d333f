"""The same seed gives the same curve, in one go or in parts, with any number of loader workers."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from proscale.engine import trainer as trainer_module

NUM_IMAGES = 7


class Curve(HookBase):
    """Notes every loss; stops training before ``end``, as a machine that fails."""

    def __init__(self, end: int | None = None):
        self.losses: dict[int, float] = {}
        self.end = end

    def before_step(self):
        if self.trainer.iter == self.end:
            raise InterruptedError

    def after_step(self):
        self.losses[self.trainer.iter] = get_event_storage().latest()["total_loss"][0]


def map_entry(entry: dict) -> dict:
    """Augmentation by NumPy's generator, which Detectron2's transforms use."""
    image = torch.full((3, 4, 4), entry["image_id"] / 7) + torch.from_numpy(
        np.random.rand(3, 4, 4).astype(np.float32)
    )
    return {**entry, "image": image, "instances": [0] * (1 + entry["image_id"] % 3)}


@pytest.fixture
def train(toy_cfg, toy_trainer, monkeypatch, tmp_path):
    """Returns a function: folder, KEY VALUE overrides → (losses, trainer) of a run to the end.

    ``end`` is the step before which it fails; ``resume`` goes on from a checkpoint.
    """
    entries = [
        {"file_name": f"{i}.jpg", "image_id": i, "width": 4 + i % 2, "height": 4}
        for i in range(NUM_IMAGES)
    ]
    monkeypatch.setattr(trainer_module, "build_mapper", lambda cfg, is_train: map_entry)
    DatasetCatalog.remove("engine_toy")
    DatasetCatalog.register("engine_toy", lambda: entries)

    def train(folder, *overrides, end=None, resume=False):
        cfg = toy_cfg(
            *("OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_ITER", 30, "SOLVER.STEPS", (20,)),
            *("SOLVER.CHECKPOINT_PERIOD", 4, "DATASETS.TEST", ()),
            *overrides,
        )
        run, curve = toy_trainer(cfg), Curve(end)
        # Random numbers in the forward pass, as of dropout and of points in masks.
        run.model.head.register_forward_hook(
            lambda module, inputs, output: output + torch.randn_like(output) + np.random.rand()
        )
        run.register_hooks([curve])
        run.resume_or_load(resume=resume)
        try:
            run.train()
        except InterruptedError:
            assert end is not None
        return curve.losses, run

    return train


def same_weights(first, second) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_two_runs_of_a_seed_are_the_same_and_of_two_seeds_are_not(train):
    torch.manual_seed(1)
    first, run = train("first")
    torch.manual_seed(2)
    np.random.seed(2)
    second, other = train("second")
    assert first == second
    assert same_weights(run, other)
    assert set(train("third", "SEED", 3)[0].values()).isdisjoint(first.values())


@pytest.mark.parametrize("grouping", [False, True])
def test_loader_workers_make_no_difference(train, grouping):
    overrides = ("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    alone, run = train("alone", *overrides)
    helped, other = train("helped", *overrides, "DATALOADER.NUM_WORKERS", 2)
    assert alone == helped
    assert same_weights(run, other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("DATALOADER.ASPECT_RATIO_GROUPING", False, "SOLVER.ACCUMULATION_STEPS", 2),
        ("SOLVER.AMP.ENABLED", True),
    ],
    ids=["grouped", "accumulated", "bfloat16"],
)
def test_resumed_run_is_the_uninterrupted_one(train, workers, overrides):
    straight, run = train("straight", *overrides)
    before, _ = train("parts", *overrides, end=14)
    after, other = train("parts", *overrides, "DATALOADER.NUM_WORKERS", workers, resume=True)
    assert sorted(after) == list(range(12, 30))  # the last checkpoint is of step 11
    assert before == {i: straight[i] for i in before}
    assert after == {i: straight[i] for i in after}
    assert same_weights(run, other)


def test_logged_figures_of_a_resumed_run_are_those_of_the_uninterrupted_one(train, tmp_path):
    def logged(folder):
        lines = (tmp_path / folder / "metrics.json").read_text().splitlines()
        entries = {entry["iteration"]: entry for entry in map(json.loads, lines)}
        return [
            {k: v for k, v in entries[i].items() if not k.endswith(("time", "eta_seconds"))}
            for i in (19, 29)
        ]

    train("straight")
    train("parts", end=14)
    train("parts", resume=True)
    assert logged("straight") == logged("parts")
    assert {"total_loss", "grad_norm", "skipped_steps", "lr"} <= logged("parts")[1].keys()


def test_drawn_seed_is_told_and_kept(train, caplog):
    with caplog.at_level(logging.INFO):
        straight, run = train("straight", "SEED", -1)
    assert f"SEED {run.seed} gives this run again" in caplog.text
    assert train("again", "SEED", run.seed)[0] == straight

    before, first = train("parts", "SEED", -1, end=14)
    after, second = train("parts", "SEED", -1, resume=True)
    assert first.seed == second.seed != run.seed
    assert train("whole", "SEED", first.seed)[0] == before | after


def test_another_seed_than_the_checkpoints_is_told(train, caplog):
    train("parts", end=14)
    with caplog.at_level(logging.WARNING):
        _, run = train("parts", "SEED", 3, resume=True)
    assert run.seed == 3
    assert "SEED is 3, but the checkpoint is of a run with 0" in caplog.text


@pytest.mark.parametrize("schedule", ["WarmupPolyLR", "WarmupCosineLR"])
def test_training_may_be_made_longer(train, schedule):
    settings = ("SOLVER.LR_SCHEDULER_NAME", schedule, "SOLVER.STEPS", ())
    _, long = train("long", *settings)
    train("parts", *settings, "SOLVER.MAX_ITER", 12)
    losses, run = train("parts", *settings, resume=True)
    assert sorted(losses) == list(range(12, 30))
    assert run.optimizer.param_groups[0]["lr"] == long.optimizer.param_groups[0]["lr"]


def test_checkpoints_without_a_seed_are_resumed(train, tmp_path):
    train("parts", end=14)
    path = Path(tmp_path, "parts", "model_0000011.pth")
    content = torch.load(path, weights_only=True)
    del content["trainer"]["seed"], content["trainer"]["_trainer"]["skipped_steps"]
    torch.save(content, path)
    losses, _ = train("parts", resume=True)
    assert sorted(losses) == list(range(12, 30))
