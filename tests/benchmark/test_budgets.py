"""Choosing among budgets, and their quality against that of ordinary evaluations."""

import pytest
import torch
import yaml
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from proscale.benchmark.budgets import (
    BudgetResult,
    choose_budget,
    evaluate_budgets,
    pareto_front,
)
from proscale.benchmark.latency import Timing
from proscale.checkpoint import load_weights
from proscale.config import setup_cfg
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.evaluation import build_evaluator


def result(cost, seconds, metric=None):
    return BudgetResult(cost, cost / 100, cost, Timing((seconds,)), metric)


def test_front_and_choice_by_quality():
    results = {
        (1,): result(10, 1.0, 30.0),
        (2,): result(20, 2.0, 29.0),  # slower and worse
        (3,): result(30, 3.0, 40.0),
        (4,): result(40, 4.0, 40.0),  # slower and no better
    }
    assert pareto_front(results) == [(1,), (3,)]
    assert choose_budget(results, latency=2.5, share=None) == (1,)
    assert choose_budget(results, latency=9.0, share=None) == (3,)
    assert choose_budget(results, latency=9.0, share=0.2) == (1,)
    with pytest.raises(ConfigError, match=r"expected --latency from 1000ms or --budget from 10.0%"):
        choose_budget(results, latency=0.5, share=None)


def test_choice_without_evaluation_is_the_costliest():
    results = {(1,): result(10, 1.0), (2,): result(20, 2.0), (3,): result(30, 2.5)}
    assert choose_budget(results, latency=2.0, share=None) == (2,)
    assert pareto_front(results) == [(1,), (2,), (3,)]


@pytest.fixture
def elastic(small_cfg, own_block, fill, tmp_path):
    """Configuration file of a small elastic model on own images, and its weights."""
    cfg = small_cfg.clone()
    cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 1, 2]
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    file, weights = tmp_path / "elastic.yaml", tmp_path / "elastic.pth"
    document = yaml.safe_load(cfg.dump()) | {"DATASETS": {"OWN": [own_block("semantic")]}}
    del document["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]
    file.write_text(yaml.safe_dump(document))
    model = build_model(setup_cfg(str(file)))
    fill.fill_state_dict(model)
    torch.save({"model": model.state_dict()}, weights)
    return file, weights


def test_quality_is_that_of_an_ordinary_evaluation(elastic):
    file, weights = elastic
    overrides = ["MODEL.WEIGHTS", str(weights)]
    found = {}
    for budget in ([1, 1, 1], [2, 1, 2]):
        cfg = setup_cfg(str(file), [*overrides, "MODEL.PROSCALE.BUDGET", str(budget)])
        model = build_model(cfg).eval()
        load_weights(model, cfg)
        evaluator = build_evaluator(cfg, cfg.DATASETS.TEST[0])
        loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        found[tuple(budget)] = inference_on_dataset(model, loader, evaluator)["sem_seg"]["mIoU"]
    metric, quality = evaluate_budgets(cfg, model, list(found), loader, cfg.DATASETS.TEST[0])
    assert metric == "mIoU"
    assert quality == found
    assert len(set(found.values())) == 2, "the budgets predict the same"
