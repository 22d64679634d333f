"""Whole models against the published implementations: predictions and all kinds of results."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F


@pytest.mark.parametrize("case", ["model_swin_mask2former", "model_swin_proscale"])
def test_equals_published(case, small_cfg, golden, fill):
    expected = golden(case)
    meta = expected.meta
    small_cfg.merge_from_list([str(value) for value in meta["opts"]])
    # At COCO's 0.8 these random weights would leave no segment; the golden maps were made at 0.2.
    small_cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.2
    model = build_model(small_cfg).eval()
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == meta["state"]
    fill.fill_state_dict(model)
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        predictor.class_embed.weight *= 20
        predictor.class_embed.bias[-1] -= 4

    raw = {}
    predictor.register_forward_hook(lambda module, inputs, outputs: raw.update(outputs))
    image = fill.random_image(case, meta["height"], meta["width"])
    sample = {"image": image, "height": meta["out_height"], "width": meta["out_width"]}
    with torch.no_grad():
        (result,) = model([sample])

    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(raw["pred_logits"][0], expected.pred_logits, **close)
    torch.testing.assert_close(raw["pred_masks"][0], expected.pred_masks, **close)

    scores = result["sem_seg"]
    assert (scores.argmax(0) == expected.sem_seg_argmax).float().mean() > 0.999
    torch.testing.assert_close(F.avg_pool2d(scores, 16), expected.sem_seg_small, **close)

    panoptic, segments = result["panoptic_seg"]
    assert (panoptic == expected.panoptic).float().mean() > 0.999
    assert segments == meta["segments_info"]

    instances = result["instances"]
    order = instances.scores.argsort(descending=True)
    reference = expected.inst_scores.argsort(descending=True)
    torch.testing.assert_close(instances.scores[order], expected.inst_scores[reference], **close)
    areas = instances.pred_masks.sum((1, 2))
    found = torch.stack((instances.pred_classes, areas), 1)[order]
    wanted = torch.stack((expected.inst_classes, expected.inst_areas), 1)[reference]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2)
