"""Classes of built-in and own data sets, and typed results from the outputs of models."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from proscale.data.datasets.own import register_own_data
from proscale.data.datasets.shapes import CATEGORIES
from proscale.errors import ConfigError
from proscale.predict.result import (
    ClassMetadata,
    Segment,
    from_instances,
    from_panoptic,
    from_semantic,
)


def test_panoptic_segments_agree_with_the_map(panoptic):
    assert panoptic.segments[1] == Segment(
        id=2,
        name="cat",
        class_id=0,
        category_id=17,
        isthing=True,
        score=0.8,
        area=256,
        box=(4, 4, 20, 20),
    )
    assert panoptic.boxes.tolist()[3] == [50, 30, 60, 44]
    assert panoptic.scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert panoptic.masks.shape == (4, 48, 64) and panoptic.masks.dtype == bool
    for segment, mask in zip(panoptic.segments, panoptic.masks, strict=True):
        assert np.array_equal(mask, panoptic.id_map == segment.id)
        assert mask.sum() == segment.area


def test_nothing_found(classes):
    prediction = from_panoptic((torch.zeros(5, 7, dtype=torch.int32), []), classes, 0.0)
    assert prediction.segments == ()
    assert prediction.masks.shape == (0, 5, 7)
    assert prediction.boxes.shape == (0, 4)
    assert prediction.scores.shape == (0,)


def test_semantic_from_scores_and_from_labels(classes):
    labels = torch.tensor([[0, 0, 2], [2, 2, 2]])
    scores = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)
    for output in (labels, scores):
        prediction = from_semantic(output, classes)
        assert prediction.id_map.tolist() == labels.tolist()
        assert [(s.id, s.name, s.area, s.score) for s in prediction.segments] == [
            (0, "cat", 2, None),
            (2, "grass & </script>", 4, None),
        ]


def test_instances_fall_by_score_and_have_pixels(classes):
    instances = Instances((6, 8))
    instances.scores = torch.tensor([0.2, 0.9, 0.5, 0.8])
    instances.pred_classes = torch.tensor([0, 1, 0, 1])
    instances.pred_masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    instances.pred_masks[0, :2] = instances.pred_masks[1, 1:4, 2:5] = True
    instances.pred_masks[2, 3:, 4:] = True  # the last one has no pixel
    instances.pred_boxes = Boxes(torch.zeros(4, 4))
    prediction = from_instances(instances, classes, 0.3)
    assert [(s.id, s.class_id, s.box) for s in prediction.segments] == [
        (1, 1, (2, 1, 5, 4)),
        (2, 0, (4, 3, 8, 6)),
    ]
    assert prediction.scores == pytest.approx([0.9, 0.5])
    assert np.array_equal(prediction.masks, instances.pred_masks[[1, 2]].numpy())


def test_panoptic_data_set():
    classes = ClassMetadata.of_dataset("coco_2017_val_panoptic", "panoptic")
    assert len(classes) == 133
    assert (classes.names[0], classes.category_ids[0], classes.isthing[0]) == ("person", 1, True)
    assert (classes.category_ids[132], classes.isthing[132]) == (200, False)
    assert classes.colors[0] == (220, 20, 60)
    assert ClassMetadata.of_dataset("coco_2017_val_panoptic", "semantic") == classes


def test_instances_are_things():
    classes = ClassMetadata.of_dataset("ade20k_instance_val", "instance")
    assert len(classes) == 100 and all(classes.isthing)
    assert (classes.names[0], classes.category_ids[0]) == ("bed", 7)
    assert len(classes.colors) == 100  # chosen: the data set has none


def test_semantic_data_set_without_numbers():
    classes = ClassMetadata.of_dataset("cityscapes_fine_sem_seg_val", "semantic")
    assert classes.category_ids == tuple(range(19))
    assert classes.colors[0] == (128, 64, 128)  # road's, as everywhere


def test_stuff_numbered_without_things():
    classes = ClassMetadata.of_dataset("coco_2017_val_panoptic_stuffonly", "semantic")
    assert len(classes) == 54
    assert (classes.names[1], classes.category_ids[1]) == ("banner", 92)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_own_data(own_block, task):
    block = own_block(task)
    names = [category["name"] for category in CATEGORIES]
    if task == "semantic":
        block["CLASSES"] = names
    register_own_data([block])
    classes = ClassMetadata.of_dataset(f"own_{task}_val", task)
    things = [category for category in CATEGORIES if category["isthing"]]
    assert list(classes.names) == names[: len(classes)]
    assert list(classes.category_ids)[: len(things)] == (
        list(range(len(things))) if task == "semantic" else [c["id"] for c in things]
    )
    if task == "panoptic":
        assert list(classes.colors) == [tuple(c["color"]) for c in CATEGORIES]


def test_data_set_without_such_classes(restored_catalogs):
    MetadataCatalog.get("things_only").set(thing_classes=["cat"])
    with pytest.raises(ConfigError, match="things_only: expected a data set with stuff_classes"):
        ClassMetadata.of_dataset("things_only", "semantic")


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in for the package supervision, whose Detections are their arguments."""
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))


@pytest.mark.parametrize("kind", ["panoptic", "detections", "poses"])
def test_detections_of_supervision(kind, stand_in, request):
    prediction = request.getfixturevalue(kind)
    detections = prediction.to_supervision()
    assert detections["xyxy"].tolist() == prediction.boxes.tolist()
    assert detections["class_id"].tolist() == [one.class_id for one in prediction.objects]
    assert detections["confidence"] == pytest.approx(prediction.scores)
    names = [one.name for one in prediction.objects]
    assert detections["data"]["class_name"].tolist() == names
    if kind == "panoptic":
        assert np.array_equal(detections["mask"], prediction.masks)
    else:
        assert detections["mask"] is None


def test_semantic_detections_have_no_scores(classes, stand_in):
    detections = from_semantic(torch.tensor([[0, 2]]), classes).to_supervision()
    assert detections["confidence"] is None and detections["mask"].shape == (2, 1, 2)


def test_supervision_is_missing(panoptic, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"supervision is not installed.*: pip install"):
        panoptic.to_supervision()


def test_coco_of_one_image(panoptic, detections, poses, classes):
    (annotation,) = panoptic.to_coco(7, "7.png")
    assert (annotation["image_id"], annotation["file_name"]) == (7, "7.png")
    assert [s["bbox"] for s in annotation["segments_info"]][1] == [4, 4, 16, 16]
    assert [one["bbox"] for one in detections.to_coco()] == [[4, 6, 16, 14], [30.5, 8, 13.5, 32]]
    assert [len(one["keypoints"]) for one in poses.to_coco()] == [9, 9]
    assert from_semantic(torch.tensor([[0, 2]]), classes).to_coco() == []


def test_pictures_need_an_image(panoptic, classes, tmp_path):
    with pytest.raises(ValueError, match="no image: expected one of a Predictor"):
        panoptic.save(tmp_path / "a.png")
    assert panoptic._repr_png_() is None
    shown = replace(panoptic, image=np.zeros((48, 64, 3), np.uint8), classes=classes)
    shown.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), shown.plot())
    assert shown.plot().any() and shown._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="unknown file extension"):
        shown.save(tmp_path / "a.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_show_opens_the_picture(panoptic, classes, monkeypatch):
    opened = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: opened.append(picture))
    shown = replace(panoptic, image=np.zeros((48, 64, 3), np.uint8), classes=classes)
    shown.show()
    assert np.array_equal(np.asarray(opened[0]), shown.plot())
