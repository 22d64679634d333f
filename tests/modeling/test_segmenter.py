"""Invariants of whole models."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from proscale.modeling import postprocessing
from proscale.ops.mask_resize import mask_probabilities


@pytest.fixture
def model(small_cfg):
    small_cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    small_cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.1
    torch.manual_seed(0)
    model = build_model(small_cfg).eval()
    # Scores that differ, so that results are not all ties.
    torch.nn.init.normal_(model.sem_seg_head.predictor.class_embed.weight, std=0.5)
    return model


def image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def infer(model, *samples):
    with torch.no_grad():
        return model(list(samples))


def assert_same_results(a, b):
    torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-3, atol=1e-4)
    assert (a["panoptic_seg"][0] == b["panoptic_seg"][0]).float().mean() > 0.999
    assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
    torch.testing.assert_close(
        a["instances"].scores.sort().values,
        b["instances"].scores.sort().values,
        rtol=1e-3,
        atol=1e-4,
    )


def target(height, width, labels):
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    masks = torch.zeros(len(labels), height, width, dtype=torch.bool)
    for index in range(len(labels)):
        masks[index, 8 * index : 8 * index + 20, 5:30] = True
    instances.gt_masks = BitMasks(masks)
    return instances


def test_batched_equals_single_whatever_the_sizes(model):
    samples = [{"image": image(h, w, i)} for i, (h, w) in enumerate(((64, 96), (50, 70), (64, 96)))]
    for sample, batched in zip(samples, infer(model, *samples), strict=True):
        assert_same_results(infer(model, sample)[0], batched)


def test_channels_last_and_inference_dtype(small_cfg, model):
    small_cfg.MODEL.CHANNELS_LAST = True
    last = build_model(small_cfg).eval()
    last.load_state_dict(model.state_dict())
    assert last.sem_seg_head.pixel_decoder.mask_features.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    sample = {"image": image(64, 96)}
    expected = infer(model, sample)[0]
    assert_same_results(infer(last, sample)[0], expected)

    small_cfg.MODEL.MASK_FORMER.TEST.DTYPE = "bfloat16"
    rounded = build_model(small_cfg).eval()
    rounded.load_state_dict(model.state_dict())
    scores = infer(rounded, sample)[0]["sem_seg"]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, expected["sem_seg"])
    torch.testing.assert_close(scores, expected["sem_seg"], rtol=0.1, atol=0.1)

    small_cfg.MODEL.MASK_FORMER.TEST.DTYPE = "half"
    with pytest.raises(ValueError, match=r"inference_dtype is 'half': expected float32, bfloat16"):
        build_model(small_cfg)


def test_padding_does_not_change_results(model):
    small = image(50, 70)
    # The mean colour is zero after normalisation, what the model itself pads with.
    padded = model.pixel_mean.round().expand(3, 64, 96).clone()
    model.pixel_mean.copy_(model.pixel_mean.round())
    padded[:, :50, :70] = small
    alone = infer(model, {"image": small})[0]
    within = infer(model, {"image": padded})[0]
    torch.testing.assert_close(
        alone["sem_seg"], within["sem_seg"][:, :50, :70], rtol=1e-3, atol=1e-4
    )


def test_results_have_the_requested_size(model):
    (result,) = infer(model, {"image": image(50, 70), "height": 100, "width": 141})
    assert result["sem_seg"].shape == (133, 100, 141)
    assert result["panoptic_seg"][0].shape == (100, 141)
    assert result["instances"].image_size == (100, 141)
    assert result["instances"].pred_masks.shape[1:] == (100, 141)


def test_save_and_load_give_the_same_output(model, small_cfg, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.manual_seed(1)
    other = build_model(small_cfg).eval()
    sample = {"image": image(64, 96)}
    before = infer(other, sample)[0]["sem_seg"]
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    after = infer(other, sample)[0]["sem_seg"]
    assert not torch.allclose(before, after)
    assert torch.equal(after, infer(model, sample)[0]["sem_seg"])


def test_semantic_scores_are_resized_before_or_after_as_configured(model):
    model.panoptic_on = model.instance_on = False
    sample = {"image": image(64, 96), "height": 100, "width": 150}
    results = []
    for resize_first in (False, True):
        model.resize_first = resize_first
        (result,) = infer(model, sample)
        assert set(result) == {"sem_seg"}
        results.append(result["sem_seg"])
    assert not torch.equal(*results)
    torch.testing.assert_close(*results, rtol=0.2, atol=0.05)


def test_labels_only_are_the_best_classes(model, small_cfg):
    sample = {"image": image(50, 70), "height": 100, "width": 141}
    scores = infer(model, sample)[0]["sem_seg"]
    small_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_LABELS_ONLY = True
    other = build_model(small_cfg).eval()
    other.load_state_dict(model.state_dict())
    labels = infer(other, sample)[0]["sem_seg"]
    assert labels.shape == (100, 141)
    assert (labels == scores.argmax(0)).float().mean() > 0.999


def test_strips_do_not_change_results(model, small_cfg, monkeypatch):
    strips = []

    def counted(*args, strip_bytes, **options):
        for strip in mask_probabilities(*args, strip_bytes=strip_bytes, **options):
            strips[-1] += 1
            yield strip

    monkeypatch.setattr(postprocessing, "mask_probabilities", counted)
    sample = {"image": image(50, 70), "height": 300, "width": 400}
    results = []
    for strip_memory in (1, 1024):
        small_cfg.MODEL.MASK_FORMER.TEST.STRIP_MEMORY = strip_memory
        other = build_model(small_cfg).eval()
        other.load_state_dict(model.state_dict())
        strips.append(0)
        results.append(infer(other, sample)[0])
    # 30 queries of 300x400 float32 are 13.7 MiB.
    assert strips == [15, 1]
    assert_same_results(*results)


@pytest.mark.parametrize("labels", [([3, 80], [1]), ([3, 80], []), ([], [])], ids=str)
def test_trains_with_any_number_of_targets(model, labels):
    samples = [
        {"image": image(64, 64, 0), "instances": target(64, 64, labels[0])},
        {"image": image(40, 96, 1), "instances": target(40, 96, labels[1])},
    ]
    losses = model.train()(samples)
    layers = range(3)
    assert set(losses) == {
        f"loss_{kind}{suffix}"
        for kind in ("ce", "mask", "dice")
        for suffix in ("", *(f"_{i}" for i in layers))
    }
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_losses_carry_their_weights(model):
    samples = [{"image": image(64, 64), "instances": target(64, 64, [3, 80])}]
    model.train()
    torch.manual_seed(0)
    losses = model(samples)
    model.criterion.weight_dict = {
        name: 2 * weight for name, weight in model.criterion.weight_dict.items()
    }
    torch.manual_seed(0)
    doubled = model(samples)
    for name, loss in losses.items():
        torch.testing.assert_close(2 * loss, doubled[name])


def test_deep_supervision_can_be_off(small_cfg):
    small_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    model = build_model(small_cfg).train()
    losses = model([{"image": image(64, 64), "instances": target(64, 64, [3])}])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_bfloat16_trains_close_to_float32(model):
    samples = [{"image": image(64, 96), "instances": target(64, 96, [3, 80])}]
    model.train()
    totals = []
    for enabled in (False, True):
        torch.manual_seed(0)
        dtypes = []
        hook = model.sem_seg_head.pixel_decoder.mask_features.register_forward_hook(
            lambda module, inputs, output, seen=dtypes: seen.append(output.dtype)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            totals.append(sum(model(samples).values()))
        hook.remove()
        # The pixel decoder itself computes in half precision.
        assert dtypes == [torch.bfloat16 if enabled else torch.float32]
    torch.testing.assert_close(totals[1], totals[0], rtol=0.05, atol=0.5)


def test_a_few_steps_on_one_image_lower_the_loss(small_cfg):
    torch.manual_seed(0)
    model = build_model(small_cfg).train()
    samples = [{"image": image(64, 64), "instances": target(64, 64, [3, 80, 120])}]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(25):
        total = sum(model(copy.deepcopy(samples)).values())
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        totals.append(total.item())
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "p6"]], "IN_FEATURES .*p6"),
        (["MODEL.MASK_FORMER.TEST.STRIP_MEMORY", 0], "strip_memory is 0: expected MiB from 1"),
        (["DATASETS.TRAIN", ("no_such_set",)], "no_such_set.*register_coco_panoptic"),
    ],
)
def test_wrong_values_are_refused(small_cfg, overrides, message):
    small_cfg.merge_from_list(overrides)
    with pytest.raises(ValueError, match=message):
        build_model(small_cfg)


@pytest.mark.parametrize(
    "decoder", ["PROSCALE", "MSDeformAttnPixelDecoder", "LiteDETRPixelDecoder"]
)
def test_image_whose_coarsest_map_is_a_pixel(small_cfg, decoder):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = decoder
    small_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32  # as many as groups of the group norm
    model = build_model(small_cfg).eval()
    assert torch.isfinite(infer(model, {"image": image(32, 32)})[0]["sem_seg"]).all()
    features = model.backbone(torch.stack([image(32, 32, seed) / 255 for seed in range(2)]))
    decode = model.sem_seg_head.pixel_decoder.forward_features
    alone, *_ = decode({name: maps[:1] for name, maps in features.items()})
    together, *_ = decode(features)
    # A norm of a single value divides errors of rounding by next to nothing.
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-2)
