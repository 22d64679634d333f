"""The largest budget within a limit, with a clock that the test winds."""

import pytest

from proscale import Predictor
from proscale.errors import ConfigError


@pytest.fixture
def elastic(mask_cfg, make_predictor):
    """The predictor of an elastic model with twelve budgets."""
    mask_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 3, 2]
    return make_predictor(mask_cfg)


@pytest.fixture
def seconds(elastic, monkeypatch):
    """A clock by which a call takes a second for each layer; and the budgets that were called."""
    encoder, called, now = elastic._network.progressive_encoder, [], [0.0]

    def call(self, image):
        called.append(tuple(encoder.budget))
        now[0] += sum(encoder.budget)

    monkeypatch.setattr(type(elastic), "__call__", call)
    monkeypatch.setattr("proscale.predict.budget.device_clock", lambda device: lambda: now[0])
    return called


@pytest.mark.parametrize("limit", range(3, 9))
def test_the_largest_that_was_fast_enough(elastic, seconds, pixels, limit):
    chosen = elastic.choose_budget(pixels(), latency=limit)
    assert chosen.time.median == sum(chosen.layers) <= limit
    assert elastic._network.progressive_encoder.budget == list(chosen.layers)
    # A search by halves: few of all twelve.
    assert len(set(seconds)) <= 4
    assert f"{1000 * sum(chosen.layers)} ms an image" in str(chosen)


def test_everything_is_affordable(elastic, seconds, pixels):
    assert elastic.choose_budget(pixels(), latency=7).layers == (2, 3, 2)


def test_by_multiply_adds_nothing_is_measured(elastic, seconds, pixels):
    everything = elastic.choose_budget(pixels(), share=2.0)
    assert everything.layers == (2, 3, 2)
    assert everything.time is None
    less = elastic.choose_budget(pixels(), share=0.9 * everything.share)
    assert less.share <= 0.9 * everything.share
    assert not seconds


def test_both_limits(elastic, seconds, pixels):
    chosen = elastic.choose_budget(pixels(), latency=7, share=0.9)
    assert chosen.share <= 0.9
    assert chosen.time is not None


def test_nothing_is_affordable(elastic, seconds, pixels):
    with pytest.raises(ConfigError, match=r"--latency is 2000ms: expected at least 3000ms"):
        elastic.choose_budget(pixels(), latency=2)
    with pytest.raises(ConfigError, match=r"--budget is 1\.0%: expected at least \d+\.\d%"):
        elastic.choose_budget(pixels(), share=0.01)


def test_results_are_those_of_the_budget(mask_cfg, random_weights, pixels):
    mask_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 3, 2]
    weights = random_weights(mask_cfg)
    predictor = Predictor(mask_cfg, weights)
    chosen = predictor.choose_budget(pixels(), share=0.9)
    mask_cfg.MODEL.PROSCALE.BUDGET = list(chosen.layers)
    expected = Predictor(mask_cfg, weights)(pixels())
    assert (predictor(pixels()).id_map == expected.id_map).all()


@pytest.mark.parametrize("model", ["mask_cfg", "segformer_cfg"])
def test_other_models_have_no_budgets(model, make_predictor, pixels, request):
    cfg = request.getfixturevalue(model)
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    predictor = make_predictor(cfg)
    with pytest.raises(ConfigError, match="expected MaskFormer and PROSCALE, whose layers"):
        predictor.choose_budget(pixels(), latency=1)


def test_too_many_to_look_through(mask_cfg, make_predictor, pixels, monkeypatch):
    monkeypatch.setattr("proscale.predict.budget.MOST", 11)
    mask_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 3, 2]
    with pytest.raises(ConfigError, match=r"PROSCALE_NUM_LAYERS is \[2, 3, 2\]: expected at most"):
        make_predictor(mask_cfg).choose_budget(pixels(), share=1.0)
