"""Elastic PRO-SCALE: a budget is the ordinary model of its layers, and all budgets learn."""

from itertools import product

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from proscale.checkpoint.adapt import slice_budget
from proscale.config.schema import check_values
from proscale.cost.encoder_cost import EncoderDesign, proscale_cost
from proscale.cost.flops import count_flops
from proscale.cost.shape_tracing import build_without_weights
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError, ExportError
from proscale.export.network import exportable
from proscale.modeling.elastic import draw_budgets
from proscale.modeling.pixel_decoders.budget_gate import BudgetGate

ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder.layers."


@pytest.fixture
def elastic_cfg(small_cfg):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 3, 2]
    small_cfg.MODEL.PROSCALE.ELASTIC = True
    return small_cfg


@pytest.fixture
def model(elastic_cfg, fill):
    model = build_model(elastic_cfg)
    fill.fill_state_dict(model)
    return model.eval()


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    instances = Instances((64, 96))
    instances.gt_classes = torch.tensor([1, 5])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :30, :40] = masks[1, 20:, 50:] = True
    instances.gt_masks = BitMasks(masks)
    return [{"image": torch.rand(3, 64, 96, generator=generator) * 255, "instances": instances}]


def predict(model):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.infer(image)
    return outputs["pred_logits"], outputs["pred_masks"]


def drawn(monkeypatch, *numbers):
    monkeypatch.setattr("proscale.modeling.elastic._shared_uniform", lambda _: list(numbers))


@pytest.mark.parametrize("budget", [(1, 1, 1), (2, 1, 2), (1, 3, 1), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_a_budget_is_the_ordinary_model_with_the_sliced_weights(
    elastic_cfg, model, budget, residual
):
    model.progressive_encoder.residual = residual
    model.set_budget(budget)
    elastic_cfg.MODEL.PROSCALE.merge_from_list(
        ["ELASTIC", False, "PROSCALE_NUM_LAYERS", list(budget), "RESIDUAL", residual]
    )
    ordinary = build_model(elastic_cfg).eval()
    ordinary.load_state_dict(slice_budget(model.state_dict(), budget, file="model.pth"))
    for ours, theirs in zip(predict(model), predict(ordinary), strict=True):
        assert torch.equal(ours, theirs)


def test_budgets_differ_and_all_layers_are_the_default(elastic_cfg, model):
    whole = predict(model)[1]
    model.set_budget([1, 1, 1])
    assert not torch.equal(predict(model)[1], whole)
    elastic_cfg.MODEL.PROSCALE.BUDGET = [1, 1, 1]
    configured = build_model(elastic_cfg).eval()
    configured.load_state_dict(model.state_dict())
    assert torch.equal(predict(configured)[1], predict(model)[1])
    model.set_budget([2, 3, 2])
    assert torch.equal(predict(model)[1], whole)


def test_unused_layers_get_no_gradient(model, samples):
    model.elastic = False
    model.train().set_budget([1, 2, 1])
    sum(model(samples).values()).backward()
    unused = {
        int(name.removeprefix(ENCODER).split(".")[0])
        for name, parameter in model.named_parameters()
        if name.startswith(ENCODER) and parameter.grad is None
    }
    assert unused == {1, 4, 6}


def test_multiply_adds_of_a_budget_are_those_of_the_closed_form(elastic_cfg):
    design = EncoderDesign.from_config(elastic_cfg, (64, 96))
    model = build_without_weights(elastic_cfg)
    for budget in [(1, 1, 1), (2, 1, 2), (2, 3, 2)]:
        model.set_budget(budget)
        assert count_flops(model, (64, 96)).encoder == pytest.approx(
            proscale_cost(design, budget), rel=5e-3
        )


def test_fewer_layers_of_the_decoder_predict_what_the_auxiliary_outputs_did(model):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.backbone(image)
        earlier = model.sem_seg_head(features, auxiliary=True)["aux_outputs"]
        for layers, expected in enumerate(earlier):
            model.set_budget(decoder_layers=layers)
            found = model.sem_seg_head(features)
            for name in ("pred_logits", "pred_masks"):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_a_step_without_smaller_budgets_is_an_ordinary_one(model, samples, monkeypatch):
    drawn(monkeypatch, 0.9, 0.9, 0.0)
    model.train()
    torch.manual_seed(0)
    elastic = model(samples)
    model.elastic = False
    torch.manual_seed(0)
    ordinary = model(samples)
    assert elastic.keys() == ordinary.keys()
    assert all(torch.equal(elastic[name], ordinary[name]) for name in ordinary)


def test_smaller_budgets_have_half_the_losses_and_learn_from_the_largest(
    model, samples, monkeypatch
):
    # The largest budget drawn once more: it is its own teacher, and matches itself.
    monkeypatch.setattr("proscale.modeling.elastic.draw_budgets", lambda *_: {"between": [2, 3, 2]})
    model.train()
    losses = model(samples)
    assert losses["loss_ce_distill_between"].item() == pytest.approx(0, abs=1e-6)
    classes = sum(
        loss
        for name, loss in losses.items()
        if name.startswith("loss_ce") and not name.endswith("between")
    )
    assert losses["loss_ce_between"].item() == pytest.approx(classes.item() / 2, rel=1e-5)


def test_distillation_moves_the_smaller_budget_alone(model, samples, monkeypatch):
    drawn(monkeypatch, 0.0, 0.9, 0.0)
    model.train()
    losses = model(samples)
    (losses["loss_ce_distill_smallest"] + losses["loss_mask_distill_smallest"]).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(ENCODER):
            layer = int(name.removeprefix(ENCODER).split(".")[0])
            assert (parameter.grad is not None) == (layer in (0, 2, 5)), name
    assert model.progressive_encoder.budget == [2, 3, 2]


def test_every_smaller_budget_is_drawn_alike(model):
    encoder = model.progressive_encoder
    assert draw_budgets(encoder, [0.5, 0.5, 0.0]) == {}
    smallest = [1, 1, 1]
    assert draw_budgets(encoder, [0.49, 0.49, 0.0]) == {"smallest": smallest, "between": smallest}
    numbers = [(index + 0.5) / 11 for index in range(11)]
    drawn = [tuple(draw_budgets(encoder, [0.9, 0.0, number])["between"]) for number in numbers]
    assert drawn == list(product((1, 2), (1, 2, 3), (1, 2)))[:-1]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BUDGET", [0, 1, 1], r"layers of each stage, from \[1, 1, 1\] to \[2, 3, 2\], or \[\]"),
        ("BUDGET", [1, 1], "layers of each stage, from"),
        ("BUDGET", [1, 4, 1], "layers of each stage, from"),
        ("GATE", [[1, 1, 1]], "GATE is .*: expected two or more of layers of each stage"),
        ("GATE", [[1, 1, 1], [1, 1, 9]], "GATE is .*: expected two or more of"),
        ("GATE", [1, 1, 1], "GATE is .*: expected two or more of"),
        ("PROSCALE_NUM_LAYERS", [1, 1, 1], "expected False where no stage has two layers"),
    ],
)
def test_wrong_keys_are_named(elastic_cfg, key, value, expected):
    elastic_cfg.MODEL.PROSCALE[key] = value
    with pytest.raises(ConfigError, match=expected):
        check_values(elastic_cfg)


def test_another_decoder_has_no_budgets(elastic_cfg):
    elastic_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    with pytest.raises(ConfigError, match=r"ELASTIC is True: expected False unless"):
        check_values(elastic_cfg)
    elastic_cfg.MODEL.PROSCALE.ELASTIC = False
    with pytest.raises(ValueError, match="expected PRO-SCALE's, whose stages have budgets"):
        build_model(elastic_cfg).set_budget([1, 1, 1])
    with pytest.raises(ValueError, match="expected a MixVisionTransformer, which merges tokens"):
        build_model(elastic_cfg).set_budget(token_merging="bsm_hq")


def test_a_budget_merges_tokens(elastic_cfg):
    elastic_cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    elastic_cfg.MODEL.MIT.VARIANT = "b0"
    torch.manual_seed(0)
    model = build_model(elastic_cfg).eval()
    model.set_budget([1, 2, 1], token_merging="n2d_2x2")
    found = predict(model)
    elastic_cfg.MODEL.MIT.TOKEN_MERGING = "n2d_2x2"
    elastic_cfg.MODEL.PROSCALE.BUDGET = [1, 2, 1]
    merged = build_model(elastic_cfg).eval()
    merged.load_state_dict(model.state_dict())
    for ours, theirs in zip(found, predict(merged), strict=True):
        assert torch.equal(ours, theirs)
    # Layers stay as they were chosen.
    model.set_budget(token_merging="none")
    assert model.progressive_encoder.budget == [1, 2, 1]
    assert not torch.equal(predict(model)[1], found[1])
    with pytest.raises(ValueError, match="expected none, bsm_hq"):
        model.set_budget(token_merging="bsm")


def test_budgets_are_listed_from_the_smallest(model):
    encoder = model.progressive_encoder
    assert encoder.num_budgets == len(encoder.budgets) == 12
    assert encoder.budgets[0] == (1, 1, 1)
    assert encoder.budgets[-1] == (2, 3, 2)


def test_a_gate_splits_a_batch_by_the_budgets_it_chooses(elastic_cfg, model, monkeypatch):
    elastic_cfg.MODEL.PROSCALE.merge_from_list(
        ["ELASTIC", False, "GATE", [[1, 1, 1], [2, 3, 2], [1, 2, 1]]]
    )
    gated = build_model(elastic_cfg).eval()
    incompatible = gated.load_state_dict(model.state_dict(), strict=False)
    gate = "sem_seg_head.pixel_decoder.gate.score."
    assert incompatible.missing_keys == [f"{gate}weight", f"{gate}bias"]
    # Scores that put images in three groups, out of order.
    scores = torch.eye(3)[[1, 0, 2, 0]]
    monkeypatch.setattr(BudgetGate, "forward", lambda self, feature: scores)
    images = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = gated.infer(images)
        for index, budget in enumerate(([2, 3, 2], [1, 1, 1], [1, 2, 1], [1, 1, 1])):
            model.set_budget(budget)
            expected = model.infer(images[index : index + 1])
            for name in ("pred_logits", "pred_masks"):
                torch.testing.assert_close(
                    found[name][index], expected[name][0], rtol=1e-4, atol=1e-4
                )
    # One budget for all images is the caller's word.
    gated.set_budget([1, 1, 1])
    with torch.no_grad():
        masks = gated.infer(images)["pred_masks"][3]
    torch.testing.assert_close(masks, expected["pred_masks"][0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportError, match=r"MODEL\.PROSCALE\.GATE chooses layers image by image"):
        exportable(build_model(elastic_cfg))
    with pytest.raises(ConfigError, match=r"GATE is .*: expected \[\] in a training"):
        Trainer(elastic_cfg)


def test_a_training_of_one_budget_alone_is_refused(elastic_cfg):
    elastic_cfg.MODEL.PROSCALE.merge_from_list(["ELASTIC", False, "BUDGET", [1, 1, 1]])
    with pytest.raises(ConfigError, match=r"BUDGET is \[1, 1, 1\]: expected \[\] in a training"):
        Trainer(elastic_cfg)


def test_queries_from_tokens_are_refused(elastic_cfg):
    elastic_cfg.MODEL.MASK_FORMER.SELECTED_QUERIES = 5
    with pytest.raises(ConfigError, match=r"PROSCALE\.ELASTIC is True: expected False"):
        build_model(elastic_cfg)
