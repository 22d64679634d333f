"""The head against its plain form: up-sample, concatenate, fuse."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch.nn import functional as F

from proscale.ops import fused

sum_of_maps = fused._sum_of_maps

CHANNELS = {"res2": 8, "res3": 12, "res4": 20, "res5": 24}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
CLASSES = 5
FORMS = ("openmmlab", "nvidia")


@pytest.fixture
def head_cfg(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SegFormerHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = list(CHANNELS)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 40  # not divided by the chunks of the test below
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.MODEL.SEM_SEG_HEAD.SEGFORMER_DROPOUT = 0.0
    return cfg


@pytest.fixture
def make_head(head_cfg, fill):
    def make(form="openmmlab", *, stride=4):
        head_cfg.MODEL.SEM_SEG_HEAD.SEGFORMER_FORM = form
        shapes = {
            name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name] * stride // 4)
            for name in CHANNELS
        }
        head = SEM_SEG_HEADS_REGISTRY.get("SegFormerHead")(head_cfg, shapes)
        fill.fill_state_dict(head)
        return head

    return make


def make_features(size, batch=2):
    generator = torch.Generator().manual_seed(0)
    features = {}
    for name, channels in CHANNELS.items():
        height, width = (-(-length // STRIDES[name]) for length in size)
        features[name] = torch.randn(batch, channels, height, width, generator=generator)
    return features


def plain_layers(head, features):
    """The published order of things. Stages go into the concatenation from the finest one."""
    maps = [
        project(features[name]) for project, name in zip(head.projections, CHANNELS, strict=True)
    ]
    size = maps[0].shape[-2:]
    maps = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]
    return head.predictor(head.dropout(head.fuse(torch.cat(maps, dim=1))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(64, 96), (77, 51), (5, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_equals_plain_form(make_head, form, size, training):
    features = make_features(size)
    head, plain = make_head(form).train(training), make_head(form).train(training)
    torch.testing.assert_close(
        head.layers(features), plain_layers(plain, features), rtol=1e-5, atol=1e-5
    )
    # The statistics that training collects are the same, too.
    for (name, ours), theirs in zip(
        head.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_plain_form(make_head, form, training):
    gradients = []
    for layers in (lambda head, features: head.layers(features), plain_layers):
        head = make_head(form).train(training).double()
        features = {
            name: x.double().requires_grad_() for name, x in make_features((64, 96)).items()
        }
        layers(head, features).square().sum().backward()
        gradients.append([x.grad for x in (*features.values(), *head.parameters())])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_channels(make_head, form, monkeypatch):
    """16 of 40 channels at a time."""
    monkeypatch.setattr(fused, "CHANNELS_BYTES", 1)
    head, features = make_head(form).eval(), make_features((64, 96))
    calls = []
    monkeypatch.setattr(
        fused,
        "_sum_of_maps",
        lambda maps, weights, bias: calls.append(len(bias)) or sum_of_maps(maps, weights, bias),
    )
    torch.testing.assert_close(
        head.layers(features), plain_layers(head, features), rtol=1e-5, atol=1e-5
    )
    assert calls == [16, 16, 8]


def test_batch_equals_single_images(make_head):
    head, features = make_head().eval(), make_features((64, 96))
    singles = [head.layers({k: v[i : i + 1] for k, v in features.items()}) for i in range(2)]
    torch.testing.assert_close(head.layers(features), torch.cat(singles))


@pytest.mark.parametrize("stride", [4, 8])
def test_inference_upsamples_by_the_finest_stride(make_head, stride):
    """8 is what a backbone declares that halves its input."""
    logits, losses = make_head(stride=stride).eval()(make_features((64, 96)))
    assert logits.shape == (2, CLASSES, 16 * stride, 24 * stride)
    assert losses == {}


def test_loss_is_the_mean_over_labelled_pixels(make_head):
    head, features = make_head().train(), make_features((62, 94))
    targets = torch.randint(CLASSES, (2, 62, 94), generator=torch.Generator().manual_seed(1))
    targets[:, 10:30] = head.ignore_value
    result, losses = head(features, targets)
    assert result is None
    logits = F.interpolate(head.layers(features), scale_factor=4, mode="bilinear")[..., :62, :94]
    expected = F.cross_entropy(logits, targets, ignore_index=head.ignore_value)
    torch.testing.assert_close(losses["loss_sem_seg"], expected, rtol=1e-4, atol=1e-4)


def test_loss_without_labelled_pixels_is_zero(make_head):
    head = make_head().train()
    _, losses = head(make_features((64, 96)), torch.full((2, 64, 96), head.ignore_value))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_loss_weight(make_head, head_cfg):
    targets = torch.zeros(2, 64, 96, dtype=torch.long)
    _, once = make_head().train()(make_features((64, 96)), targets)
    head_cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = 3.0
    _, thrice = make_head().train()(make_features((64, 96)), targets)
    torch.testing.assert_close(thrice["loss_sem_seg"], 3 * once["loss_sem_seg"])


def test_dropout_drops_channels_in_training_only(make_head, head_cfg):
    head_cfg.MODEL.SEM_SEG_HEAD.SEGFORMER_DROPOUT = 0.5
    head, features = make_head(), make_features((64, 96))
    torch.manual_seed(0)
    assert not torch.equal(head.train().layers(features), head.layers(features))
    assert torch.equal(head.eval().layers(features), head.layers(features))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_mixed_precision(make_head, form, training):
    """Logits of norms folded into bfloat16 weights stay as close as those of the plain form."""
    head, features = make_head(form).train(training), make_features((64, 96))
    with torch.no_grad():
        exact = plain_layers(head, features)
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = head.layers(features), plain_layers(head, features)
    error, usual = ((x.float() - exact).abs().mean() for x in (ours, plain))
    assert ours.dtype == torch.bfloat16
    assert error < 2 * usual


def test_number_of_parameters(make_head):
    """C·c per projection, 4·C·C in the fusion, two per channel and norm, the classifier."""
    dims = 40
    shared = 4 * dims * dims + 2 * dims + dims * CLASSES + CLASSES + dims * sum(CHANNELS.values())
    count = {form: sum(p.numel() for p in make_head(form).parameters()) for form in FORMS}
    assert count == {"openmmlab": shared + 4 * 2 * dims, "nvidia": shared + 4 * dims}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEGFORMER_FORM", "mmseg", r"form is 'mmseg': expected openmmlab or nvidia"),
        ("NORM", "GN", r"norm is 'GN': expected BN or SyncBN"),
        ("IN_FEATURES", ["res2", "p3"], r"IN_FEATURES is \['res2', 'p3'\]: expected levels"),
    ],
)
def test_wrong_keys_are_refused(head_cfg, key, value, message):
    head_cfg.MODEL.SEM_SEG_HEAD[key] = value
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in STRIDES.items()}
    with pytest.raises(ValueError, match=message):
        SEM_SEG_HEADS_REGISTRY.get("SegFormerHead")(head_cfg, shapes)
