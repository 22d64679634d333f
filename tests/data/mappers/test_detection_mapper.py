"""The mapper of boxes: DETR's crop-and-resize, boxes that follow the image, images without any."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from proscale.data import build_mapper
from proscale.errors import DataError

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def entry(tmp_path) -> dict:
    """White where the first box is."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[10:40, 20:60] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    mode = {"bbox_mode": BoxMode.XYWH_ABS}
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 3,
        "annotations": [
            {"category_id": 4, "bbox": [20, 10, 40, 30], "iscrowd": 0, **mode},
            {"category_id": 7, "bbox": [0, 0, 80, 60], "iscrowd": 1, **mode},
        ],
    }


@pytest.fixture
def mapper_cfg(cfg):
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DATASET_MAPPER_NAME = "detr_detection"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (60,), 200
    return cfg


def boxes_of(cfg, entry):
    instances = build_mapper(cfg, is_train=True)(entry)["instances"]
    return instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist()


def test_targets_are_boxes_of_what_is_no_crowd(mapper_cfg, entry):
    sample = build_mapper(mapper_cfg, is_train=True)(entry)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    assert sample["instances"].image_size == (HEIGHT, WIDTH)
    assert sample["instances"].gt_boxes.tensor.dtype == torch.float32
    assert boxes_of(mapper_cfg, entry) == ([[20, 10, 60, 40]], [4])


def test_boxes_follow_the_image(mapper_cfg, entry):
    cfg = mapper_cfg
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = (50, 90)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute_range"
    cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.MIN_SIZE = (30, 50), [55, 70]
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    shapes = set()
    for _ in range(20):
        sample = mapper(entry)
        shapes.add(tuple(sample["image"].shape))
        ys, xs = np.nonzero((sample["image"] > 128).all(dim=0).numpy())
        if not len(ys):
            assert len(sample["instances"]) <= 1
            continue
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        # The image is bilinear: enlarged edges are up to two pixels wide.
        (box,) = sample["instances"].gt_boxes.tensor.tolist()
        assert box == pytest.approx(seen, abs=2.1)
        # Clipped to the image.
        height, width = sample["image"].shape[1:]
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
    assert len(shapes) > 10


def test_every_second_image_is_cropped(mapper_cfg, entry):
    cfg = mapper_cfg
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.MIN_SIZE = (30, 30), [60]
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    # The crop is square, and so is what becomes of it.
    squares = [len(set(mapper(entry)["image"].shape[1:])) == 1 for _ in range(200)]
    assert 75 < sum(squares) < 125


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-10, -10, 40, 30], [0, 0, 30, 20]),
        ([60, 50, 1000, 1000], [60, 50, 80, 60]),
        ([60, 50, 1e200, 1e200], [60, 50, 80, 60]),
        ([10, 10, 0, 20], None),
        ([10, 10, -5, 20], None),
        ([90, 10, 20, 20], None),
    ],
)
def test_boxes_are_clipped_and_need_a_size(mapper_cfg, entry, box, expected):
    entry["annotations"][0]["bbox"] = box
    assert boxes_of(mapper_cfg, entry) == (([expected], [4]) if expected else ([], []))


@pytest.mark.parametrize("annotations", [0, 1])
def test_images_may_be_empty_or_have_crowds_alone(mapper_cfg, entry, annotations):
    entry["annotations"] = entry["annotations"][1 : 1 + annotations]
    sample = build_mapper(mapper_cfg, is_train=True)(entry)
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_classes.dtype == torch.int64


@pytest.mark.parametrize("box", [None, [1, 2, 3], [1, 2, 3, "a"], [1, 2, 3, float("nan")], 5])
def test_what_is_no_box_is_named(mapper_cfg, entry, box):
    entry["annotations"][0] |= {"id": 77, "bbox": box}
    with pytest.raises(DataError, match=r"image\.png: annotation 77 has .*: expected \[x, y, wid"):
        boxes_of(mapper_cfg, entry)


@pytest.mark.usefixtures("sample_coco")
def test_an_instance_data_set_serves_unchanged(mapper_cfg):
    mapper = build_mapper(mapper_cfg, is_train=True)
    for entry in DatasetCatalog.get("coco_2017_val")[:5]:
        wanted = [a for a in entry["annotations"] if not a["iscrowd"]]
        instances = mapper(entry)["instances"]
        assert len(instances) == len(wanted)
        scale = instances.image_size[0] / entry["height"]
        first = torch.tensor(wanted[0]["bbox"]) * scale
        found = BoxMode.convert(instances.gt_boxes.tensor[:1], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)[
            0
        ]
        torch.testing.assert_close(found, first, atol=1.0, rtol=0)
