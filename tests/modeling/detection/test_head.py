"""Levels, encoders, proposals and padding of the heads."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from proscale.modeling.detection import DeformableDETRHead, DINOHead
from proscale.modeling.pixel_decoders.deformable_encoder import EncoderLayerArguments
from proscale.modeling.pixel_decoders.lite_detr import InterleavedEncoder, InterleavingArguments

SHAPES = {
    "res3": ShapeSpec(channels=8, stride=8),
    "res4": ShapeSpec(channels=12, stride=16),
    "res5": ShapeSpec(channels=16, stride=32),
}
SMALL = {
    "num_classes": 3,
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 40,
    "enc_layers": 2,
    "dec_layers": 2,
    "num_queries": 30,
}
LEARNED = {"two_stage": False}
HEADS = {
    "dino": (DINOHead, {}),
    "two_stage": (DeformableDETRHead, {"two_stage": True}),
    "learned": (DeformableDETRHead, LEARNED),
    "no_refinement": (DeformableDETRHead, LEARNED | {"with_box_refine": False}),
}


def make_head(kind="dino", **arguments):
    head, own = HEADS[kind]
    torch.manual_seed(0)
    model = head(SHAPES, **(SMALL | own | arguments)).eval()
    # Heads that predict something.
    for name, parameter in model.named_parameters():
        if "bbox_embed" in name or "sampling_offsets" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_features(height, width, batch=1):
    generator = torch.Generator().manual_seed(height)
    return {
        name: torch.randn(
            batch, s.channels, -(-height // s.stride), -(-width // s.stride), generator=generator
        )
        for name, s in SHAPES.items()
    }


def pad_together(images):
    """Features of several images in one batch, with numbers in the padding that must not matter."""
    batch = {}
    for name in SHAPES:
        height, width = (max(f[name].shape[axis] for f in images) for axis in (2, 3))
        maps = torch.full((len(images), SHAPES[name].channels, height, width), 7.0)
        for number, features in enumerate(images):
            x = features[name]
            maps[number, :, : x.shape[2], : x.shape[3]] = x[0]
        batch[name] = maps
    return batch


def lite_encoder():
    layer = EncoderLayerArguments(32, 40, 0.0, 4, 4)
    order = InterleavingArguments(2, 1, 3, key_aware=True, small_ffn=True)
    return InterleavedEncoder(layer, 4, order)


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_batch_of_different_sizes_equals_single_images(kind):
    """Neither padding nor other images change an image's predictions."""
    model = make_head(kind)
    sizes = [(200, 260), (256, 170), (130, 300)]
    images = [make_features(*size) for size in sizes]
    together = model(pad_together(images), image_sizes=sizes)
    for number, features in enumerate(images):
        alone = model(features)
        for name, dimension in (("logits", 1), ("boxes", 1), ("proposal_boxes", 0)):
            if name in alone:
                found = together[name].select(dimension, number)
                expected = alone[name].select(dimension, 0)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_batch_equals_single_images_with_key_aware_attention():
    sizes = [(200, 260), (256, 170)]
    images = [make_features(*size) for size in sizes]
    model = make_head(encoder=lite_encoder())
    together = model(pad_together(images), image_sizes=sizes)["boxes"]
    for number, features in enumerate(images):
        torch.testing.assert_close(together[:, number], model(features)["boxes"][:, 0])


@torch.no_grad()
def test_sizes_of_whole_images_change_nothing():
    model, features = make_head(), make_features(192, 256, batch=2)
    plain = model(features)["logits"]
    torch.testing.assert_close(
        model(features, image_sizes=[(192, 256), (190, 250)])["logits"], plain
    )


@torch.no_grad()
def test_small_images_have_as_many_queries_as_tokens():
    outputs = make_head(num_queries=900)(make_features(64, 96))
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert outputs["logits"].shape == (2, 1, tokens, 3)
    assert sorted(outputs["kept_tokens"][0].tolist()) == list(range(tokens))


@pytest.mark.parametrize("num_levels", [3, 4, 5])
@torch.no_grad()
def test_extra_levels_halve_the_coarsest(num_levels):
    model = make_head(num_levels=num_levels)
    maps, _ = model._levels(make_features(200, 260), None)
    sizes = [(2, 3), (4, 5), (7, 9), (13, 17), (25, 33)][-num_levels:]
    assert [tuple(x.shape[2:]) for x in maps] == sizes


def test_first_boxes_of_learned_queries_are_small():
    torch.manual_seed(0)
    model = DeformableDETRHead(SHAPES, **SMALL, two_stage=False)
    sizes = model(make_features(64, 64))["boxes"][0, ..., 2:]
    torch.testing.assert_close(sizes, torch.full_like(sizes, -2.0).sigmoid())


def test_without_refinement_the_heads_are_one_pair():
    model = make_head("no_refinement")
    assert model.class_embed[0] is model.class_embed[1]
    assert {"class_embed.1.weight", "bbox_embed.1.layers.2.bias"} <= model.state_dict().keys()


def test_every_class_is_improbable_at_first():
    torch.manual_seed(0)
    scores = DINOHead(SHAPES, **SMALL)(make_features(64, 64))["logits"].sigmoid()
    assert scores.median() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 40}, "hidden_dim is 40: expected multiples of 32"),
        ({"num_levels": 2}, "num_levels is 2: expected at least the backbone's 3 levels"),
        ({"dec_layers": 0}, "dec_layers is 0: expected whole numbers from 1"),
    ],
)
@pytest.mark.parametrize("kind", ["dino", "two_stage"])
def test_numbers_that_do_not_fit(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_head(kind, **arguments)


def test_two_stages_need_refinement():
    with pytest.raises(ValueError, match="with_box_refine is False: expected True with two_stage"):
        make_head("two_stage", with_box_refine=False)
