"""Results of several views: what one view, a mirrored image and averaging have to give."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from proscale.modeling import test_time_augmentation as tta

HEIGHT, WIDTH = 64, 96


@pytest.fixture
def tta_cfg(small_cfg):
    small_cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    small_cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.1
    small_cfg.TEST.AUG.MIN_SIZES = (HEIGHT,)
    small_cfg.TEST.AUG.FLIP = False
    return small_cfg


def build(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    predictor = model.sem_seg_head.predictor
    nn.init.normal_(predictor.class_embed.weight, std=0.5)
    # Masks with contrast.
    nn.init.normal_(predictor.mask_embed.layers[-1].weight, std=3.0)
    return model, tta.with_test_time_augmentation(cfg, model)


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 4, 6), generator=generator) * 255
    return nn.functional.interpolate(coarse, (HEIGHT, WIDTH))[0].to(torch.uint8)


def agreement(a, b):
    """Share of pixels of one category in a panoptic result and in that of the mirrored image."""
    mirrored = np.flip(categories(b["panoptic_seg"]), 1)
    return (categories(a["panoptic_seg"]) == mirrored).mean()


def infer(model, *samples):
    with torch.no_grad():
        return model(list(samples))


def categories(panoptic):
    """(H, W) category at every pixel, -1 where there is none."""
    segment_map, segments = panoptic
    of = {s["id"]: s["category_id"] for s in segments} | {0: -1}
    return np.vectorize(of.__getitem__)(segment_map.numpy())


def test_a_single_view_is_the_model_itself(tta_cfg):
    model, wrapped = build(tta_cfg)
    samples = [{"image": image(i), "height": 80, "width": 110} for i in range(2)]
    for plain, found in zip(infer(model, *samples), infer(wrapped, *samples), strict=True):
        torch.testing.assert_close(found["sem_seg"], plain["sem_seg"])
        same = categories(found["panoptic_seg"]) == categories(plain["panoptic_seg"])
        # Masks were resampled once more.
        assert same.mean() > 0.97
        assert found["instances"].image_size == (80, 110)


@pytest.mark.parametrize("min_sizes", [(HEIGHT,), (32, 64)])
def test_a_mirrored_image_has_mirrored_results(tta_cfg, min_sizes):
    tta_cfg.TEST.AUG.MIN_SIZES = min_sizes
    tta_cfg.TEST.AUG.FLIP = True
    model, wrapped = build(tta_cfg)
    sample, mirrored = {"image": image()}, {"image": image().flip(-1)}
    a, b = infer(wrapped, sample, mirrored)
    torch.testing.assert_close(a["sem_seg"], b["sem_seg"].flip(-1), rtol=1e-3, atol=1e-4)
    plain_a, plain_b = infer(model, sample, mirrored)
    assert not torch.allclose(
        plain_a["sem_seg"], plain_b["sem_seg"].flip(-1), rtol=1e-3, atol=1e-4
    ), "the model is symmetric, so that this tests nothing"
    # Of many views of noise, which queries find a partner depends on the views' order.
    assert agreement(a, b) > (0.9 if min_sizes == (HEIGHT,) else agreement(plain_a, plain_b))


def test_semantic_scores_are_the_mean_of_the_views(tta_cfg):
    tta_cfg.TEST.AUG.FLIP = True
    model, wrapped = build(tta_cfg)
    sample = {"image": image()}
    straight, mirrored = infer(model, sample, {"image": image().flip(-1)})
    expected = (straight["sem_seg"] + mirrored["sem_seg"].flip(-1)) / 2
    torch.testing.assert_close(infer(wrapped, sample)[0]["sem_seg"], expected)


def test_labels_only(tta_cfg):
    tta_cfg.TEST.AUG.FLIP = True
    _, wrapped = build(tta_cfg)
    scores = infer(wrapped, {"image": image()})[0]["sem_seg"]
    wrapped.model.semantic_labels_only = True
    labels = infer(wrapped, {"image": image()})[0]["sem_seg"]
    assert (labels == scores.argmax(0)).all()


def test_switched_off_results_are_not_made(tta_cfg):
    tta_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    tta_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    _, wrapped = build(tta_cfg)
    assert list(infer(wrapped, {"image": image()})[0]) == ["panoptic_seg"]


def test_views_without_any_object(tta_cfg):
    tta_cfg.TEST.AUG.FLIP = True
    model, wrapped = build(tta_cfg)
    model.sem_seg_head.predictor.class_embed.bias.data[-1] = 1e4
    result = infer(wrapped, {"image": image()})[0]
    assert not result["panoptic_seg"][0].any() and result["panoptic_seg"][1] == []
    assert len(result["instances"]) == 0


class Columns(nn.Module):
    """Scores that are the columns' numbers, whatever the image."""

    def forward(self, samples):
        height, width = samples[0]["height"], samples[0]["width"]
        return [{"sem_seg": torch.arange(float(width)).expand(2, height, width).clone()}]


def test_any_semantic_model(tta_cfg):
    tta_cfg.TEST.AUG.FLIP = True
    wrapped = tta.with_test_time_augmentation(tta_cfg, Columns())
    (result,) = infer(wrapped, {"image": image(), "height": 3, "width": 5})
    assert (result["sem_seg"] == 2.0).all() and result["sem_seg"].shape == (2, 3, 5)


def boxes(*columns):
    """Masks (N, 4, 10) of 0.9 between two columns, 0.1 elsewhere."""
    masks = torch.full((len(columns), 4, 10), 0.1)
    for mask, (start, stop) in zip(masks, columns, strict=True):
        mask[:, start:stop] = 0.9
    return masks


def fuse(*views):
    fusion = tta.QueryFusion()
    for probabilities, masks in views:
        fusion.add(torch.tensor(probabilities).reshape(-1, 3), masks)
    class_logits, mask_logits = fusion.result()
    return class_logits.softmax(-1), mask_logits.sigmoid()


def test_order_of_queries_does_not_matter():
    classes = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    probabilities, masks = fuse(
        (classes, boxes((0, 5), (5, 10))), (classes[::-1], boxes((5, 10), (0, 5)))
    )
    torch.testing.assert_close(probabilities, torch.tensor(classes))
    torch.testing.assert_close(masks, boxes((0, 5), (5, 10)))


def test_matched_queries_are_averaged_and_missing_ones_vote_for_no_object():
    probabilities, masks = fuse(
        ([[0.9, 0.0, 0.1], [0.8, 0.1, 0.1]], boxes((0, 5), (6, 10))),
        ([[0.5, 0.2, 0.3]], boxes((0, 4))),
    )
    expected = torch.tensor([[0.7, 0.1, 0.2], [0.4, 0.05, 0.55]])
    torch.testing.assert_close(probabilities, expected)
    assert masks[0, 0, [0, 4, 5]].tolist() == pytest.approx([0.9, 0.5, 0.1], abs=1e-5)
    torch.testing.assert_close(masks[1], boxes((6, 10))[0])


def test_queries_found_in_a_later_view_only():
    probabilities, masks = fuse(
        ([], boxes()), ([[0.9, 0.0, 0.1]], boxes((2, 8))), ([[0.6, 0.0, 0.4]], boxes((2, 8)))
    )
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.0, 0.5]]))
    torch.testing.assert_close(masks, boxes((2, 8)))


def test_an_iou_of_one_half_is_not_enough():
    # 4 of 8 columns are common.
    probabilities, _ = fuse(([[1.0, 0, 0]], boxes((0, 6))), ([[1.0, 0, 0]], boxes((2, 8))))
    assert len(probabilities) == 2
    probabilities, _ = fuse(([[1.0, 0, 0]], boxes((0, 6))), ([[1.0, 0, 0]], boxes((1, 7))))
    assert len(probabilities) == 1


def test_of_equal_masks_those_of_one_class_are_matched():
    both = boxes((0, 5), (0, 5))
    classes = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]
    probabilities, _ = fuse((classes, both), (classes[::-1], both))
    torch.testing.assert_close(probabilities, torch.tensor(classes))
