"""Resuming with other settings: refused, or told and obeyed."""

import logging

import pytest

from proscale.errors import UserError


@pytest.fixture
def train(toy_cfg, toy_trainer):
    """Returns a function: KEY VALUE overrides → trainer that has gone on from three steps."""

    def resume(*overrides, first=()):
        cfg = toy_cfg("SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (), "DATASETS.TEST", (), *first)
        toy_trainer(cfg).train()
        trainer = toy_trainer(toy_cfg("SOLVER.STEPS", (), "DATASETS.TEST", (), *overrides))
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer

    return resume


ADAMW, SGD = ("SOLVER.OPTIMIZER", "ADAMW"), ("SOLVER.OPTIMIZER", "SGD")


@pytest.mark.parametrize(
    ("first", "overrides", "told"),
    [
        (ADAMW, SGD, r"SOLVER\.OPTIMIZER is SGD: expected ADAMW, whose state the checkpoint has"),
        (SGD, ADAMW, r"SOLVER\.OPTIMIZER is ADAMW: expected SGD"),
        ((), ("SOLVER.MAX_ITER", 2), r"SOLVER\.MAX_ITER is 2: expected 3 or more"),
        ((), ("SOLVER.BACKBONE_MULTIPLIER", 1.0), r"has groups of \[.*\] parameters"),
        ((), ("SOLVER.WEIGHT_DECAY_NORM", 0.0001), r"has groups of \[.*\] parameters"),
    ],
)
def test_what_the_optimizer_cannot_go_on_with_is_refused(train, first, overrides, told):
    with pytest.raises(UserError, match=told) as error:
        train(*overrides, first=first)
    assert "\n" not in str(error.value)


SCHEDULES = ("WarmupMultiStepLR", "WarmupPolyLR", "WarmupCosineLR")


@pytest.mark.parametrize(
    ("first", "overrides", "told"),
    [
        ((), ("SOLVER.MAX_ITER", 5), ["SOLVER.MAX_ITER 5, was 3"]),
        (("SOLVER.MAX_ITER", 9), ("SOLVER.MAX_ITER", 9), []),
        ((), ("SOLVER.IMS_PER_BATCH", 4), ["SOLVER.IMS_PER_BATCH 4, was 2"]),
        ((), ("SOLVER.STEPS", (5,)), ["SOLVER.STEPS [5], was []"]),
        ((), ("INPUT.MIN_SIZE_TRAIN", (64,)), ["INPUT.MIN_SIZE_TRAIN [64], was [800]"]),
        ((), ("DATALOADER.NUM_WORKERS", 1, "SOLVER.CHECKPOINT_PERIOD", 2), []),
        *(
            (
                ("SOLVER.LR_SCHEDULER_NAME", before),
                ("SOLVER.LR_SCHEDULER_NAME", after),
                [f'SOLVER.LR_SCHEDULER_NAME "{after}", was "{before}"'],
            )
            for before in SCHEDULES
            for after in SCHEDULES
            if before != after
        ),
        (
            (),
            ("SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.5),
            ["SOLVER.BASE_LR 0.05, not 0.01", "SOLVER.WEIGHT_DECAY 0.0001, not 0.5"],
        ),
    ],
)
def test_other_settings_are_told_and_trained_with(train, caplog, first, overrides, told):
    with caplog.at_level(logging.WARNING, logger="proscale.engine.resuming"):
        trainer = train(*overrides, first=first)
    assert trainer.iter >= trainer.cfg.SOLVER.MAX_ITER
    lines = [r.message for r in caplog.records if r.name == "proscale.engine.resuming"]
    assert all(text in "\n".join(lines) for text in told)
    assert len(lines) <= 2
    if not told:
        assert all("SOLVER.MAX_ITER 6, was 3" in line for line in lines)


def test_finished_training_may_be_resumed(train):
    assert train("SOLVER.MAX_ITER", 3).start_iter == 3
