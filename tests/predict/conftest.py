"""Fixtures of the tests of predictions."""

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from proscale.predict import Predictor
from proscale.predict.result import ClassMetadata, from_boxes, from_panoptic, from_poses


@pytest.fixture
def random_weights(tmp_path):
    """Returns a function: configuration → a file of random weights for its model."""

    def save(cfg) -> str:
        torch.manual_seed(0)
        path = tmp_path / "weights.pth"
        torch.save({"model": build_model(cfg).state_dict()}, path)
        return str(path)

    return save


@pytest.fixture
def mask_cfg(small_cfg):
    """A small model that gives all results, and many segments from random weights."""
    small_cfg.INPUT.MIN_SIZE_TEST = 64
    small_cfg.INPUT.FORMAT = "RGB"
    test = small_cfg.MODEL.MASK_FORMER.TEST
    test.OBJECT_MASK_THRESHOLD = test.OVERLAP_THRESHOLD = 0.0
    return small_cfg


@pytest.fixture
def segformer_cfg(small_segformer_cfg):
    """A small model for 19 classes."""
    small_segformer_cfg.DATASETS.TEST = ("cityscapes_fine_sem_seg_val",)
    small_segformer_cfg.INPUT.MIN_SIZE_TEST = 64
    return small_segformer_cfg


@pytest.fixture
def make_predictor(random_weights):
    """Returns a function: configuration and options → the predictor with random weights."""
    return lambda cfg, **options: Predictor(cfg, random_weights(cfg), **options)


@pytest.fixture
def pixels():
    """Returns a function: height, width, seed → colours of blotches."""

    def make(height=48, width=64, seed=0):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height)))

    return make


@pytest.fixture
def classes():
    """Three classes, the last of them stuff, with names that HTML must not take for its own."""
    return ClassMetadata(
        names=("cat", "<b>dog</b>", "grass & </script>"),
        category_ids=(17, 18, 193),
        isthing=(True, True, False),
        colors=((200, 30, 30), (30, 30, 200), (30, 160, 30)),
    )


@pytest.fixture
def panoptic(classes):
    """A panoptic prediction of 48×64 pixels: two cats, a dog, grass, and a strip of nothing."""
    ids = torch.zeros(48, 64, dtype=torch.int32)
    ids[24:] = 1
    ids[4:20, 4:20], ids[10:40, 30:44], ids[30:44, 50:60] = 2, 3, 4
    segments = [
        {"id": 1, "isthing": False, "category_id": 2, "score": 0.9},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.8},
        {"id": 3, "isthing": True, "category_id": 0, "score": 0.7},
        {"id": 4, "isthing": True, "category_id": 1, "score": 0.6},
    ]
    return from_panoptic((ids, segments), classes, 0.0)


@pytest.fixture
def objects():
    """What a model finds in an image of 48×64 pixels: three boxes, the third without an area."""
    boxes = [[30.5, 8.0, 44.0, 40.0], [4.0, 6.0, 20.0, 20.0], [5.0, 5.0, 5.0, 9.0]]
    return Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor([0.6, 0.9, 0.95]),
        pred_classes=torch.tensor([1, 0, 0]),
    )


@pytest.fixture
def detections(objects, classes):
    """Two boxes: a cat, and below it in score a dog."""
    return from_boxes(objects, classes, 0.0)


@pytest.fixture
def person_classes():
    """Persons with three keypoints, of which two are left and right."""
    metadata = Metadata(
        name="persons",
        thing_classes=["person"],
        thing_dataset_id_to_contiguous_id={1: 0},
        keypoint_names=["neck", "lhip", "rhip"],
        keypoint_flip_map=[("lhip", "rhip")],
        keypoint_connection_rules=[("neck", "lhip", (1, 2, 3)), ("lhip", "rhip", (1, 2, 3))],
    )
    return ClassMetadata.of_metadata(metadata, "keypoints")


@pytest.fixture
def poses(objects, person_classes):
    """Two persons, as the model gives them; the better one's last keypoint is not sure."""
    persons = objects[:2]
    persons.pred_classes = torch.zeros(2, dtype=torch.long)
    persons.box_scores = torch.tensor([1.0, 0.95])
    keypoints = [[(36, 12), (41, 32), (33, 32)], [(12.5, 8.5), (16.5, 16.5), (8.5, 16.5)]]
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.2]])
    persons.pred_keypoints = torch.cat([torch.tensor(keypoints), scores[..., None]], dim=2)
    return from_poses(persons, person_classes, 0.0)
