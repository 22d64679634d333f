"""Instance mappers: polygons and run lengths follow the image, crowds and what is cut off go."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from proscale.data import build_mapper

HEIGHT, WIDTH = 60, 80
# Corners between pixels, so that a polygon covers whole pixels.
RECTANGLE = [10, 5, 40, 5, 40, 35, 10, 35]
TRIANGLE = [50, 10, 70, 10, 50, 50]


def mask_of(y: slice, x: slice) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y, x] = 1
    return mask


def code_of(mask: np.ndarray) -> dict:
    return pycocotools.mask.encode(np.asfortranarray(mask))


@pytest.fixture
def entry(tmp_path) -> dict:
    """White where the first annotation is; the second one overlaps it."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[5:35, 10:40] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 3,
        "annotations": [
            {"category_id": 4, "segmentation": [RECTANGLE], "iscrowd": 0},
            {"category_id": 0, "segmentation": code_of(mask_of(slice(20, 60), slice(30, 50)))},
            {"category_id": 7, "segmentation": [TRIANGLE], "iscrowd": 1},
        ],
    }


@pytest.fixture
def mapper_cfg(cfg):
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg.INPUT.IMAGE_SIZE = 80
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    return cfg


def test_overlapping_instances_keep_their_masks_and_crowds_go(mapper_cfg, entry):
    sample = build_mapper(mapper_cfg, is_train=True)(entry)
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [4, 0]
    expected = np.stack(
        [mask_of(slice(5, 35), slice(10, 40)), mask_of(slice(20, 60), slice(30, 50))]
    )
    masks = instances.gt_masks.tensor
    assert masks.shape == (2, 80, 80)
    assert torch.equal(masks[:, :HEIGHT], torch.from_numpy(expected).bool())
    assert not masks[:, HEIGHT:].any()
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["coco_instance_lsj", "mask_former_instance"])
@pytest.mark.parametrize("form", ["polygon", "compressed", "uncompressed"])
def test_masks_follow_the_image(mapper_cfg, entry, name, form):
    cfg = mapper_cfg
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 0.6, 1.8
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 90)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = (50, 50)
    mask = mask_of(slice(5, 35), slice(10, 40))
    runs = np.flatnonzero(np.diff(np.pad(mask.ravel(order="F"), 1)))
    counts = np.diff(runs, prepend=0, append=mask.size).tolist()
    entry["annotations"] = entry["annotations"][:1]
    entry["annotations"][0]["segmentation"] = {
        "polygon": [RECTANGLE],
        "compressed": code_of(mask),
        "uncompressed": {"size": [HEIGHT, WIDTH], "counts": counts},
    }[form]
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    for _ in range(12):
        sample = mapper(entry)
        shown = (sample["image"] > 128).all(dim=0) & (sample["image"] != 128).all(dim=0)
        masks = sample["instances"].gt_masks.tensor
        drawn = masks[0] if len(masks) else torch.zeros_like(shown)
        # The image is bilinear: only the border may differ.
        differing = (drawn ^ shown).sum().item()
        assert differing <= 0.6 * 2 * (sum(shown.shape))
        assert drawn.sum() > 100 or not shown.sum() > 200


def test_instances_outside_the_crop_go(mapper_cfg, entry):
    cfg = mapper_cfg
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_instance"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = (16, 16)
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    counts = set()
    for _ in range(20):
        sample = mapper(entry)
        assert sample["image"].shape == (3, 32, 32)
        masks = sample["instances"].gt_masks.tensor
        assert masks.shape[1:] == (32, 32)
        assert masks.flatten(1).any(dim=1).all()
        counts.add(len(masks))
    assert {0, 1} <= counts


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "at least six"),
        ([], "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        ({"size": [9, 9], "counts": [81]}, r"\[9, 9\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [3]}, "do not add up"),
    ],
)
def test_bad_segmentations_name_file_and_annotation(mapper_cfg, entry, segmentation, message):
    entry["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(ValueError, match=rf"image\.png: annotation 1: .*{message}"):
        build_mapper(mapper_cfg, is_train=True)(entry)


def test_a_crop_by_category_is_refused(mapper_cfg):
    mapper_cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_instance"
    mapper_cfg.INPUT.CROP.ENABLED = True
    mapper_cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    with pytest.raises(ValueError, match=r"SINGLE_CATEGORY_MAX_AREA is 0\.75: expected 1\.0"):
        build_mapper(mapper_cfg, is_train=True)


def test_an_entry_of_another_task_is_refused(mapper_cfg, entry):
    entry["sem_seg_file_name"] = entry.pop("annotations") and "labels.png"
    with pytest.raises(ValueError, match=r"image\.png: its data set has no annotations"):
        build_mapper(mapper_cfg, is_train=True)(entry)


def test_a_size_that_is_not_the_images_is_refused(mapper_cfg, entry):
    entry |= {"height": HEIGHT, "width": WIDTH + 1}
    with pytest.raises(ValueError, match=r"image\.png"):
        build_mapper(mapper_cfg, is_train=True)(entry)
