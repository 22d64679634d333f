"""Choosing among budgets, and their quality against that of ordinary evaluations."""

import pytest
import torch
import yaml
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from proscale.benchmark.budgets import (
    Budget,
    BudgetResult,
    choose_budget,
    count_budgets,
    evaluate_budgets,
    measure_budgets,
    pareto_front,
)
from proscale.benchmark.latency import Timing
from proscale.benchmark.models import ModelRun, ModelSettings, multiply_adds_by_part
from proscale.checkpoint import load_weights
from proscale.config import setup_cfg
from proscale.cost.flops import count_flops
from proscale.cost.model_cost import NETWORK
from proscale.cost.shape_tracing import build_without_weights
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.evaluation import build_evaluator
from proscale.modeling.backbones.token_merging import AveragePooling, Unmerged


def result(cost, seconds, metric=None):
    return BudgetResult(cost, cost / 100, cost, Timing((seconds,)), metric)


ONE, TWO, THREE, FOUR = (Budget((layers,)) for layers in range(1, 5))


def test_front_and_choice_by_quality():
    results = {
        ONE: result(10, 1.0, 30.0),
        TWO: result(20, 2.0, 29.0),  # slower and worse
        THREE: result(30, 3.0, 40.0),
        FOUR: result(40, 4.0, 40.0),  # slower and no better
    }
    assert pareto_front(results) == [ONE, THREE]
    assert choose_budget(results, latency=2.5, share=None) == ONE
    assert choose_budget(results, latency=9.0, share=None) == THREE
    assert choose_budget(results, latency=9.0, share=0.2) == ONE
    with pytest.raises(ConfigError, match=r"expected --latency from 1000ms or --budget from 10.0%"):
        choose_budget(results, latency=0.5, share=None)


def test_choice_without_evaluation_is_the_costliest():
    results = {ONE: result(10, 1.0), TWO: result(20, 2.0), THREE: result(30, 2.5)}
    assert choose_budget(results, latency=2.0, share=None) == TWO
    assert pareto_front(results) == [ONE, TWO, THREE]


def test_names_and_sizes():
    budget = Budget((1, 2, 2), "bsm_fast", 0.5)
    assert str(budget) == "1,2,2 bsm_fast ×0.5"
    assert str(Budget((1, 2, 2))) == "1,2,2"
    assert budget.size((65, 1)) == (32, 1)


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


@pytest.fixture
def evaluated(elastic):
    """mIoU by an ordinary evaluation with the keys of a budget, and that of its comparison."""
    file, weights = elastic
    base = setup_cfg(str(file), ["MODEL.WEIGHTS", str(weights)])

    def evaluated(*budgets, cfg=base):
        expected = {}
        for budget in budgets:
            own = budget.configure(cfg)
            model = build_model(own).eval()
            load_weights(model, own)
            evaluator = build_evaluator(own, own.DATASETS.TEST[0])
            loader = Trainer.build_test_loader(own, own.DATASETS.TEST[0])
            results = inference_on_dataset(model, loader, evaluator)
            expected[budget] = results["sem_seg"]["mIoU"]
        model = build_model(cfg).eval()
        load_weights(model, cfg)
        metric, found = evaluate_budgets(
            cfg, model, budgets, Trainer.build_test_loader, cfg.DATASETS.TEST[0]
        )
        assert metric == "mIoU"
        return expected, found

    return evaluated


def test_quality_is_that_of_an_ordinary_evaluation(evaluated):
    expected, found = evaluated(
        Budget((1, 1, 1)), Budget((2, 1, 2)), Budget((2, 1, 2), None, 0.5), Budget((1, 1, 2))
    )
    assert found == expected
    assert len(set(found.values())) > 1, "the budgets predict the same"


def test_scales_need_images_that_are_resized(small_cfg):
    small_cfg.INPUT.MIN_SIZE_TEST = 0
    with pytest.raises(ConfigError, match=r"INPUT\.MIN_SIZE_TEST is 0: expected pixels"):
        Budget((1, 1, 1), None, 0.5).configure(small_cfg)


@pytest.fixture
def merging_cfg(small_cfg):
    """A small elastic model on a Mix Transformer."""
    small_cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    small_cfg.MODEL.MIT.VARIANT = "b0"
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 1, 2]
    return small_cfg


def test_costs_are_those_of_the_counted_models(merging_cfg):
    budgets = [
        Budget((1, 1, 1)),
        Budget((2, 1, 1), "bsm_fast"),
        Budget((2, 1, 2), "none", 0.5),
    ]
    model = build_model(merging_cfg)
    costs = count_budgets(merging_cfg, model, (256, 512), budgets)
    for budget, (encoder, share, network) in costs.items():
        cfg = budget.configure(merging_cfg)
        cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = cfg.MODEL.PROSCALE.BUDGET
        counted = multiply_adds_by_part(cfg, budget.size((256, 512)))
        assert network == counted[NETWORK]
        assert encoder == count_flops(build_without_weights(cfg), budget.size((256, 512))).encoder
        assert 0 < share < 1
    # Merging leaves the encoder's cost, a smaller image does not.
    assert costs[budgets[2]][0] < costs[budgets[0]][0]


def test_times_are_those_of_the_budget(merging_cfg, monkeypatch):
    monkeypatch.setattr("proscale.benchmark.budgets.WARMUP", 0)
    run = ModelRun(merging_cfg, ModelSettings((64, 96), 1))
    called = []

    def record(self, watch):
        image = self.batch[0]["image"]
        merging = type(self.model.backbone.token_merging[0].query)
        called.append((self.model.progressive_encoder.budget, merging, tuple(image.shape[1:])))
        watch.lap("call")

    monkeypatch.setattr(ModelRun, "__call__", record)
    budgets = [Budget((1, 1, 1), "none"), Budget((2, 1, 2), "n2d_2x2", 0.5)]
    times = measure_budgets(run, budgets, repeats=2)
    assert [len(times[budget].samples) for budget in budgets] == [2, 2]
    expected = [([1, 1, 1], Unmerged, (64, 96)), ([2, 1, 2], AveragePooling, (32, 48))]
    assert called == expected * 2
