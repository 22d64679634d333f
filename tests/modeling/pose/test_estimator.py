"""The pose estimator against the published implementation, its results, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from proscale.checkpoint import convert_state_dict
from proscale.config import setup_cfg
from proscale.cost.shape_tracing import build_without_weights
from proscale.data import PersonCrop, PoseMapper
from proscale.errors import ConfigError
from proscale.modeling.pose import flip_heatmaps

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
STATE_DICTS = ROOT / "tests" / "golden" / "state_dicts"
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def read(name, *overrides):
    return setup_cfg(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides])


@pytest.fixture
def model(small_pose_cfg):
    torch.manual_seed(0)
    model = build_model(small_pose_cfg).eval()
    # Heatmaps that differ from each other, of about the range of trained ones.
    torch.nn.init.normal_(model.pose_head.predictor.weight, std=0.1)
    for projection in model.pose_head.projections:
        torch.nn.init.normal_(projection.weight, std=0.3)
    return model


@pytest.fixture
def person(small_pose_cfg):
    """`person(seed)`: what the mapper gives of a person in a picture of noise."""
    mapper = PoseMapper(small_pose_cfg, False)

    def make(seed):
        image = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8)
        return mapper.view(image, [20.5, 10.0, 70.0, 85.5], 0.5)

    return make


def test_equals_published(golden, fill):
    expected = golden("pose_segformer_b0_coco_bsm_hq")
    meta = expected.meta
    model = build_model(read("coco/keypoints/segformer_b0_bsm_hq.yaml")).eval()
    filled = {
        name: torch.from_numpy(fill.fill_tensor(name, tuple(shape)))
        for name, shape in meta["state"].items()
        if not name.endswith("num_batches_tracked")
    }
    result = model.load_state_dict(convert_state_dict(filled), strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)

    name, size = "pose_segformer_b0_coco_bsm_hq", (meta["batch"], 3, meta["height"], meta["width"])
    batch, step = fill.random_input(name, size), meta["step"]
    assert model.flip_indices == meta["flip_indices"]
    with torch.no_grad():
        plain, averaged = model.heatmaps(batch), model.infer(batch)
        published = model.pose_head(model.backbone(batch), published_order=True)
    torch.testing.assert_close(plain, published, **CLOSE)
    torch.testing.assert_close(plain[..., ::step, ::step], expected.heatmaps, **CLOSE)
    torch.testing.assert_close(averaged[..., ::step, ::step], expected.averaged, **CLOSE)
    keypoints, scores = model.codec.decode(averaged)
    torch.testing.assert_close(scores, expected.scores, **CLOSE)
    torch.testing.assert_close(keypoints[expected.safe], expected.keypoints[expected.safe], **CLOSE)


@pytest.mark.parametrize(
    ("variant", "keypoints", "published", "millions"),
    [("b0", 17, "b0_coco", 3.720), ("b5", 20, "b5_jbd", 81.975)],
)
def test_names_of_released_checkpoints(variant, keypoints, published, millions):
    overrides = ["MODEL.POSE.FLIP_TEST", "False", "MODEL.POSE_HEAD.NUM_KEYPOINTS", keypoints]
    model = build_without_weights(read(f"coco/keypoints/segformer_{variant}.yaml", *overrides))
    theirs = {
        name: list(tensor.shape)
        for name, tensor in convert_state_dict(model.state_dict(), to="openmmlab").items()
    }
    expected = json.loads((STATE_DICTS / f"segformer_pose_{published}_openmmlab.json").read_text())
    assert theirs == expected
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.0006)


def test_result_is_in_the_image(model, person):
    sample = person(0)
    (result,) = model([sample])
    instances = result["instances"]
    assert instances.image_size == (90, 120)
    assert instances.pred_keypoints.shape == (1, 17, 3)
    assert instances.pred_boxes.tensor.tolist() == [[20.5, 10.0, 70.0, 85.5]]
    assert instances.box_scores.tolist() == [0.5]
    assert instances.pred_classes.tolist() == [0]

    batch = (sample["image"] - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        keypoints, scores = model.codec.decode(model.infer(batch[None]))
    crop = PersonCrop([20.5, 10.0, 70.0, 85.5], (64, 96))
    # Detectron2's coordinates are half a pixel more than pixel indices.
    expected = torch.from_numpy(crop.to_image(keypoints[0].numpy())).float() + 0.5
    torch.testing.assert_close(instances.pred_keypoints[0, :, :2], expected)
    torch.testing.assert_close(instances.pred_keypoints[0, :, 2], scores[0])
    counting = scores[scores > model.keypoint_score_thresh]
    assert 0 < len(counting) < 17
    torch.testing.assert_close(instances.scores, 0.5 * counting.mean()[None])


def test_without_a_score_above_the_threshold_a_pose_scores_zero(model, person):
    model.keypoint_score_thresh = 1e6
    assert model([person(0)])[0]["instances"].scores.tolist() == [0.0]


def test_batch_equals_single_persons(model, person):
    samples = [person(seed) for seed in range(3)]
    together = model(samples)
    for sample, result in zip(samples, together, strict=True):
        (alone,) = model([sample])
        torch.testing.assert_close(
            alone["instances"].pred_keypoints, result["instances"].pred_keypoints
        )
    assert model([]) == []


def test_a_mirrored_crop_gives_mirrored_heatmaps(model):
    """Exactly so where they are not shifted."""
    model.shift_heatmap = False
    batch = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mirrored = flip_heatmaps(model.infer(batch.flip(-1)), model.flip_indices, shift=False)
        torch.testing.assert_close(mirrored, model.infer(batch))


@pytest.mark.parametrize("shift", [True, False])
def test_flip_test_averages_both_views(small_pose_cfg, shift):
    small_pose_cfg.MODEL.POSE.SHIFT_HEATMAP = shift
    model = build_model(small_pose_cfg).eval()
    batch = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mirrored = flip_heatmaps(model.heatmaps(batch.flip(-1)), model.flip_indices, shift)
        expected = (model.heatmaps(batch) + mirrored) / 2
        torch.testing.assert_close(model.infer(batch), expected)


def test_without_a_flip_test(small_pose_cfg):
    small_pose_cfg.MODEL.POSE.FLIP_TEST = False
    small_pose_cfg.DATASETS.TRAIN = small_pose_cfg.DATASETS.TEST = ()
    model = build_model(small_pose_cfg).eval()
    batch = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.infer(batch), model.heatmaps(batch))


def test_loss_falls(small_pose_cfg, person):
    torch.manual_seed(0)
    model = build_model(small_pose_cfg).train()
    samples = []
    for seed in range(4):
        points = torch.rand(17, 2, generator=torch.Generator().manual_seed(seed))
        sample = {"keypoints": points * torch.tensor([64.0, 96.0]), "visible": torch.ones(17)}
        samples.append(person(seed) | sample)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(40):
        (loss,) = model(samples).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_loss_weight(small_pose_cfg, person):
    sample = person(0) | {"keypoints": torch.full((17, 2), 30.0), "visible": torch.ones(17)}
    losses = []
    for weight in (1.0, 3.0):
        small_pose_cfg.MODEL.POSE_HEAD.LOSS_WEIGHT = weight
        torch.manual_seed(0)
        model = build_model(small_pose_cfg).train()
        losses.append(model([sample, sample])["loss_keypoint"])
    torch.testing.assert_close(losses[1], 3 * losses[0])


def test_keys_reach_the_model(small_pose_cfg):
    node, head = small_pose_cfg.MODEL.POSE, small_pose_cfg.MODEL.POSE_HEAD
    node.SIGMA, node.KEYPOINT_SCORE_THRESH, head.NORM = 2.0, 0.3, "SyncBN"
    head.IN_FEATURES = ["res3", "res4"]
    model = build_model(small_pose_cfg)
    # Heatmaps have the resolution of the finest stage.
    assert model.codec.heatmap_size == (8, 12)
    assert model.codec.sigma == 2.0
    assert model.keypoint_score_thresh == 0.3
    assert type(model.pose_head.fuse.norm) is torch.nn.SyncBatchNorm
    with torch.no_grad():
        assert model.heatmaps(torch.zeros(2, 3, 96, 64)).shape == (2, 17, 12, 8)


def test_a_data_set_with_another_skeleton_is_refused(small_pose_cfg):
    small_pose_cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS = 20
    with pytest.raises(ConfigError, match="NUM_KEYPOINTS is 20: expected 17, the keypoints of"):
        build_model(small_pose_cfg)


def test_a_data_set_without_keypoints_is_refused(small_pose_cfg):
    small_pose_cfg.DATASETS.TRAIN = ("coco_2017_train_panoptic",)
    with pytest.raises(ConfigError, match="expected a data set with keypoints"):
        build_model(small_pose_cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.POSE.INPUT_SIZE", "[288, 390]"], "INPUT_SIZE is .*multiples of 32"),
        (["MODEL.POSE.INPUT_SIZE", "[288]"], "INPUT_SIZE is .*multiples of 32"),
        (["MODEL.POSE_HEAD.IN_FEATURES", "['res6']"], "IN_FEATURES is"),
        (["MODEL.POSE_HEAD.NAME", "MaskFormerHead"], "NAME is"),
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED is True: expected False"),
    ],
)
def test_wrong_keys_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_without_weights(read("coco/keypoints/segformer_b0.yaml", *overrides))
