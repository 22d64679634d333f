"""Records of persons to crops, in evaluation and training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from proscale.data import PersonCrop, PoseMapper, build_mapper
from proscale.data.mappers.pose_mapper import Person, PersonAugmentation
from proscale.errors import DataError

OFF = ("FLIP_PROB", "HALF_BODY_PROB", "SCALE_FACTOR", "SHIFT_PROB", "ROTATION_PROB")


@pytest.fixture
def record(tmp_path):
    """A person in a picture of 120x90 pixels, in Detectron2's coordinates; two are unlabelled."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "7.png")
    keypoints = np.random.default_rng(1).uniform(15, 85, (17, 3))
    keypoints[:, 2] = [2, 1, 0] * 5 + [2, 2]
    annotation = {
        "id": 70,
        "bbox": [20.5, 10.0, 49.5, 75.5],
        "bbox_mode": BoxMode.XYWH_ABS,
        "keypoints": keypoints.ravel().tolist(),
        "category_id": 0,
    }
    return {
        "file_name": str(tmp_path / "7.png"),
        "image_id": 7,
        "height": 90,
        "width": 120,
        "annotations": [annotation],
    }


@pytest.fixture
def plain_cfg(small_pose_cfg):
    """Training without augmentation."""
    for key in OFF:
        small_pose_cfg.INPUT.POSE[key] = 0.0
    return small_pose_cfg


@pytest.fixture
def make_augmentation(plain_cfg):
    """`make_augmentation(KEY=value, …)`: with keys of ``INPUT.POSE``, else none."""

    def make(**keys):
        for key, value in keys.items():
            plain_cfg.INPUT.POSE[key] = value
        # COCO's keypoints above the hips.
        return replace(PersonAugmentation.from_config(plain_cfg), upper_body=range(11))

    return make


def make_person(visible=None):
    keypoints = np.random.default_rng(2).uniform(0, 50, (17, 2))
    visible = np.ones(17) if visible is None else np.array(visible, float)
    image = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    return Person(image, np.array([30.0, 20.0]), np.array([40.0, 50.0]), keypoints, visible)


def test_evaluation(small_pose_cfg, record):
    sample = build_mapper(small_pose_cfg, is_train=False)(record)
    assert (sample["image_id"], sample["annotation_id"]) == (7, 70)
    assert (sample["height"], sample["width"]) == (90, 120)
    assert sample["box"].tolist() == [20.5, 10.0, 70.0, 85.5]
    assert sample["box_score"] == 1.0
    pixels = np.asarray(Image.open(record["file_name"]))
    expected = PersonCrop([20.5, 10.0, 70.0, 85.5], (64, 96)).apply_image(pixels)
    assert sample["image"].shape == (3, 96, 64)
    np.testing.assert_array_equal(sample["image"].numpy().transpose(1, 2, 0), expected)


def test_padding_of_the_box(small_pose_cfg, record):
    small_pose_cfg.MODEL.POSE.BOX_PADDING = 2.0
    sample = PoseMapper(small_pose_cfg, False)(record)
    # The box is higher than wide for its crop.
    assert sample["crop"].scale[1] == pytest.approx(2 * 75.5)


def test_boxes_of_a_detector(small_pose_cfg, record):
    """They have corners, scores, and neither ids nor keypoints; they are not clipped."""
    box = {"bbox": [-20.0, 10.0, 70.0, 95.5], "bbox_mode": BoxMode.XYXY_ABS, "score": 0.25}
    sample = PoseMapper(small_pose_cfg, False)(record | {"annotations": [box]})
    assert sample["box"].tolist() == box["bbox"]
    assert (sample["box_score"], sample["annotation_id"]) == (0.25, None)


def test_training_without_augmentation(plain_cfg, record):
    sample = PoseMapper(plain_cfg, is_train=True)(record)
    plain = PoseMapper(plain_cfg, is_train=False)(record)
    assert torch.equal(sample["image"], plain["image"])
    assert sample["visible"].tolist() == [1, 1, 0] * 5 + [1, 1]
    # Detectron2's half pixel is taken off before the crop.
    points = np.array(record["annotations"][0]["keypoints"]).reshape(17, 3)[:, :2] - 0.5
    expected = torch.from_numpy(plain["crop"].to_input(points)).float()
    torch.testing.assert_close(sample["keypoints"], expected, rtol=1e-5, atol=1e-3)


def test_training_moves_pixels_and_keypoints_alike(small_pose_cfg, record):
    """A white dot at each keypoint stays under it."""
    mapper = PoseMapper(small_pose_cfg, is_train=True)
    points = np.array([[40, 40], [60, 50], [50, 70]])
    pixels = np.zeros((90, 120, 3), np.uint8)
    for x, y in points:
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    Image.fromarray(pixels).save(record["file_name"])
    keypoints = np.zeros((17, 3))
    # The nose, and both eyes, which a mirrored view exchanges.
    keypoints[:3] = np.column_stack((points + 0.5, [2, 2, 2]))
    record["annotations"][0]["keypoints"] = keypoints.ravel().tolist()
    seen, hits = 0, 0
    for seed in range(40):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["visible"].tolist() == [1] * 3 + [0] * 14
        for x, y in sample["keypoints"][:3].round().long().tolist():
            if 1 <= x < 63 and 1 <= y < 95:
                seen += 1
                hits += int(sample["image"][0, y, x] > 128)
    assert seen > 60
    assert hits == seen


def test_augmentation_follows_the_seed(small_pose_cfg, record):
    mapper, images = PoseMapper(small_pose_cfg, is_train=True), []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        images.append(mapper(record)["image"])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_flip_exchanges_left_and_right(make_augmentation):
    person = make_person([1, 1, 0, *[1] * 14])
    before = make_person([1, 1, 0, *[1] * 14])
    make_augmentation(FLIP_PROB=1.0)(person)
    np.testing.assert_array_equal(person.image, before.image[:, ::-1])
    assert person.center.tolist() == [79 - 30, 20]
    # Left and right eye are keypoints 1 and 2.
    assert person.visible[:3].tolist() == [1, 0, 1]
    np.testing.assert_allclose(person.keypoints[2], [79, 0] + before.keypoints[1] * [-1, 1])


@pytest.mark.parametrize(
    ("labelled", "half"),
    [
        (range(17), "upper"),
        ([*range(11), 11], "upper"),
        ([0, 11, 12, 13, 14, 15, 16], "lower"),
        ([0, 11, 12], None),
    ],
)
def test_half_body(make_augmentation, labelled, half):
    """Halves with enough labelled keypoints: two of the upper, three of the lower one."""
    visible = np.isin(np.arange(17), list(labelled))
    person = make_person(visible)
    augment = make_augmentation(
        HALF_BODY_PROB=1.0, HALF_BODY_MIN_KEYPOINTS=3, HALF_BODY_UPPER_PROB=1.0
    )
    augment(person)
    if half is None:
        assert person.center.tolist() == [30, 20]
        return
    places = slice(0, 11) if half == "upper" else slice(11, 17)
    points = person.keypoints[places][visible[places]]
    np.testing.assert_allclose(person.center, points.mean(axis=0))
    np.testing.assert_allclose(person.scale, 1.5 * np.ptp(points, axis=0))


def test_bodies_with_few_keypoints_are_seen_whole(make_augmentation):
    person = make_person([1] * 8 + [0] * 9)
    make_augmentation(HALF_BODY_PROB=1.0)(person)
    assert person.center.tolist() == [30, 20]


def test_size_place_and_angle(make_augmentation):
    """Their ranges, and the standard deviation of a normal distribution within one, 0.540."""
    augment = make_augmentation(SCALE_FACTOR=0.5, SHIFT_PROB=1.0, ROTATION_PROB=1.0)
    np.random.seed(0)
    draws = []
    for _ in range(4000):
        person = make_person()
        augment(person)
        moved = (person.center - [30, 20]) / [40, 50] / 0.16
        draws.append([person.scale[0] / 40 * 2 - 2, *moved, person.rotation / 80])
    draws = np.array(draws)
    assert np.abs(draws).max() <= 1
    np.testing.assert_allclose(draws.std(axis=0), 0.540, atol=0.02)
    # Independent of each other.
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [5.0, 5.0, 0.0, 10.0]}, "bbox is .*: expected width and height"),
        ({"keypoints": [1.0, 2.0, 2.0]}, "3 numbers of keypoints: expected 51"),
    ],
)
def test_wrong_annotations(plain_cfg, record, change, message):
    record["annotations"][0].update(change)
    with pytest.raises(DataError, match=message):
        PoseMapper(plain_cfg, is_train=True)(record)


def test_a_record_is_one_person(plain_cfg, record):
    with pytest.raises(DataError, match="2 annotations: expected one person"):
        PoseMapper(plain_cfg, False)(record | {"annotations": 2 * record["annotations"]})
