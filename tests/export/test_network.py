"""What is exported, and what is refused."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from proscale.data import PoseMapper
from proscale.errors import ExportError
from proscale.export import exportable
from proscale.export.check import ExportedModel


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 97, 130), dtype=torch.uint8)


@torch.no_grad()
def test_masks_are_the_models(small_cfg, images):
    model = build_model(small_cfg).eval()
    classes, masks = exportable(model)(images)
    batch = ImageList.from_tensors([model.normalise(image) for image in images], 32)
    expected = model.infer(batch.tensor)
    torch.testing.assert_close(classes, expected["pred_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(masks, expected["pred_masks"], rtol=0, atol=1e-5)
    assert masks.shape[2:] == (32, 40)


@torch.no_grad()
def test_logits_of_every_pixel_are_the_models(small_segformer_cfg, images):
    model = build_model(small_segformer_cfg).eval()
    (logits,) = exportable(model)(images)
    expected = torch.stack([result["sem_seg"] for result in model([{"image": i} for i in images])])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.MASK_FORMER.TEST.DTYPE", "bfloat16"], r"TEST\.DTYPE is bfloat16: expected"),
        (
            ["MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.TOKEN_MERGING", "bsm_hq"],
            r"MODEL\.MIT\.TOKEN_MERGING has mode bsm",
        ),
    ],
)
def test_refuses_what_no_file_can_hold(small_cfg, overrides, message):
    small_cfg.merge_from_list(overrides)
    with pytest.raises(ExportError, match=message):
        exportable(build_model(small_cfg))


def test_refuses_other_heads(small_segformer_cfg):
    small_segformer_cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    small_segformer_cfg.MODEL.SEM_SEG_HEAD.NORM = ""
    with pytest.raises(ExportError, match=r"SEM_SEG_HEAD\.NAME SemSegFPNHead: expected"):
        exportable(build_model(small_segformer_cfg))


@torch.no_grad()
def test_results_of_a_pose_file_are_the_models(small_pose_cfg):
    torch.manual_seed(0)
    model = build_model(small_pose_cfg).eval()
    network = exportable(model)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    sample = PoseMapper(small_pose_cfg, is_train=False).view(image, [20, 10, 70, 85])
    ((expected,), (found,)) = model([sample]), ExportedModel(model, network, network)([sample])
    assert torch.equal(
        found["instances"].pred_keypoints[..., :2], expected["instances"].pred_keypoints[..., :2]
    )


@torch.no_grad()
def test_results_of_a_detectors_file_are_the_models(small_detector_cfg):
    torch.manual_seed(0)
    model = build_model(small_detector_cfg).eval()
    network = exportable(model)
    # Padded in both: Swin takes multiples of 32.
    image = torch.randint(0, 256, (3, 97, 130), dtype=torch.uint8)
    sample = {"image": image, "height": 194, "width": 260}
    ((expected,), (found,)) = model([sample]), ExportedModel(model, network, network)([sample])
    expected, found = expected["instances"], found["instances"]
    assert len(found) == len(expected) > 0
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2)
