"""Semantic metrics against values worked out by hand, from label images and panoptic PNGs."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from PIL import Image

from proscale.evaluation import SemanticEvaluator

NUM_CLASSES = 4


def scores(classes):
    """Class scores (C, H, W) whose maximum is ``classes`` (the last class where it is -1)."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(classes) % NUM_CLASSES, NUM_CLASSES)
    return {"sem_seg": one_hot.permute(2, 0, 1).float()}


def test_panoptic_ground_truth_ignores_void_and_crowd(toy_dataset):
    evaluator = SemanticEvaluator(toy_dataset.name)
    for image_id in (3, 5, 7):
        output = scores(toy_dataset.classes(image_id))
        evaluator.process([toy_dataset.inputs(image_id)], [output])
    keys = ["mIoU", "fwIoU", "mACC", "pACC"]
    assert evaluator.evaluate() == {"sem_seg": dict.fromkeys(keys, 100.0)}


def labelled(toy, labels):
    """Give image 3 a label image in place of its panoptic annotation."""
    path = toy.root / "labels.png"
    Image.fromarray(np.array(labels, dtype=np.uint8)).save(path)
    entry = next(e for e in DatasetCatalog.get(toy.name) if e["image_id"] == 3)
    entry["sem_seg_file_name"] = str(path)
    return path


def test_metrics_worked_out_by_hand(toy_dataset, tmp_path):
    # Class 3 is only predicted, class 2 never occurs; the last pixel is unlabelled.
    labelled(toy_dataset, [[0, 0, 0, 0, 1, 1, 255]])
    evaluator = SemanticEvaluator(toy_dataset.name, str(tmp_path / "out"))
    predicted = scores(np.array([[0, 0, 0, 1, 1, 3, 2]]))
    evaluator.process([toy_dataset.inputs(3)], [predicted])
    summary = evaluator.evaluate()["sem_seg"]
    iou, accuracy = (3 / 4, 1 / 3), (3 / 4, 1 / 2)
    assert summary == {
        "mIoU": pytest.approx(100 * (iou[0] + iou[1] + 0) / 3),
        "fwIoU": pytest.approx(100 * (4 * iou[0] + 2 * iou[1]) / 6),
        "mACC": pytest.approx(100 * (accuracy[0] + accuracy[1]) / 2),
        "pACC": pytest.approx(100 * 4 / 6),
    }
    written = json.loads((tmp_path / "out/sem_seg.json").read_text())
    assert written["summary"] == summary
    assert written["per_class"] == [
        {"name": "cat", "IoU": 75.0, "ACC": 75.0},
        {"name": "dog", "IoU": pytest.approx(100 / 3), "ACC": 50.0},
        {"name": "grass", "IoU": None, "ACC": None},
        {"name": "sky", "IoU": 0.0, "ACC": None},
    ]
    written = json.loads((tmp_path / "out/sem_seg_images.json").read_text())
    file_name = toy_dataset.inputs(3)["file_name"]
    assert written["images"] == [{"file_name": file_name, "mIoU": summary["mIoU"]}]


def test_labels_count_as_their_scores_do(toy_dataset):
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, toy_dataset.classes(5).shape)
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(5)], [scores(labels)])
    expected = evaluator.evaluate()
    evaluator.reset()
    evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": torch.from_numpy(labels)}])
    assert evaluator.evaluate() == expected


def test_without_labelled_pixels_the_metrics_are_nan(toy_dataset):
    labelled(toy_dataset, [[255, 255]])
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[0, 1]]))])
    assert np.isnan(list(evaluator.evaluate()["sem_seg"].values())).all()


def test_reset_and_ranks(toy_dataset, monkeypatch):
    labelled(toy_dataset, [[0, 0, 1]])
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[1, 1, 1]]))])
    evaluator.reset()
    evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[0, 0, 1]]))])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100.0
    other_rank = {
        "confusion": np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64),
        "boundaries": np.zeros((2, NUM_CLASSES), dtype=np.int64),
    }
    other_rank["confusion"][2, 3] = 1
    monkeypatch.setattr(comm, "gather", lambda data: [data, (other_rank, [])])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 75.0
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_tables_of_all_and_of_every_class(toy_dataset, caplog):
    labelled(toy_dataset, [[0, 0, 1]])
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[0, 0, 0]]))])
    with caplog.at_level("INFO", logger="proscale"):
        evaluator.evaluate()
    assert "mIoU" in caplog.text and "| cat" in caplog.text and "66.67" in caplog.text


def test_boundary_iou_worked_out_by_hand(toy_dataset):
    # In an image of this size boundaries are one pixel wide.
    labels = np.zeros((7, 7), dtype=np.uint8)
    labels[1:6, 1:6] = 1
    labels[0, 0] = 255
    labelled(toy_dataset, labels)
    predicted = np.zeros((7, 7), dtype=np.int64)
    predicted[1:6, 1:5] = 1
    evaluator = SemanticEvaluator(toy_dataset.name, boundary_iou=True)
    evaluator.process([toy_dataset.inputs(3)], [scores(predicted)])
    metrics = evaluator.evaluate()["sem_seg"]
    # Class 1: rings of 16 and 14 pixels, 11 of them common. Class 0: a frame of 24 pixels less the
    # unlabelled one, all of it boundary; the prediction has a column of 5 more.
    ring, frame = 11 / (16 + 14 - 11), 23 / 28
    assert metrics["mBoundaryIoU"] == pytest.approx(100 * (ring + frame) / 2)
    assert "mBoundaryIoU" not in SemanticEvaluator(toy_dataset.name).evaluate()["sem_seg"]


def test_boundary_iou_ignores_predictions_on_unlabelled_pixels(toy_dataset):
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[:, 20:35] = 1
    labels[10:20, 10:50] = 255
    labelled(toy_dataset, labels)
    evaluator = SemanticEvaluator(toy_dataset.name, boundary_iou=True)
    predicted = np.where(labels == 255, 1, labels).astype(np.int64)
    evaluator.process([toy_dataset.inputs(3)], [scores(predicted)])
    assert evaluator.evaluate()["sem_seg"]["mBoundaryIoU"] == 100.0


def perturbed(random, labels):
    """Class scores of labels moved and mistaken; unlabelled pixels get some class."""
    moved = np.roll(labels, random.integers(-9, 10, 2), axis=(0, 1))
    mistaken = np.where(random.random(NUM_CLASSES) < 0.6, np.arange(NUM_CLASSES), 3)
    return scores(mistaken[np.where(moved == 255, 0, moved)])


def test_metrics_equal_detectron2s(toy_dataset):
    """Classes: 0, 1 true, 2 nowhere or both, 3 often only predicted."""
    random = np.random.default_rng(4)
    for number in range(8):
        entries = DatasetCatalog.get(toy_dataset.name)
        label_maps = {}
        for entry in entries:
            labels = random.choice([0, 1, 2 if number % 2 else 0, 255], size=(4, 5))
            label_maps[entry["file_name"]] = np.kron(labels, np.ones((6, 7))).astype(np.uint8)
            path = toy_dataset.root / f"labels_{entry['image_id']}.png"
            Image.fromarray(label_maps[entry["file_name"]]).save(path)
            entry["sem_seg_file_name"] = str(path)
        ours = SemanticEvaluator(toy_dataset.name)
        metadata = MetadataCatalog.get(toy_dataset.name)
        metadata.__dict__["stuff_dataset_id_to_contiguous_id"] = {i: i for i in range(NUM_CLASSES)}
        theirs = SemSegEvaluator(toy_dataset.name, distributed=False)
        ours.reset()
        theirs.reset()
        for entry in entries:
            output = perturbed(random, label_maps[entry["file_name"]].astype(np.int64))
            ours.process([entry], [output])
            theirs.process([entry], [output])
        expected = theirs.evaluate()["sem_seg"]
        # Later versions divide by the classes in the annotations alone, 0.6 by those in either.
        counts = theirs._conf_matrix[:-1, :-1]
        classes = np.count_nonzero(counts.sum(axis=0) + counts.sum(axis=1))
        ious = [value for name, value in expected.items() if name.startswith("IoU-")]
        expected["mIoU"] = np.nansum(ious) / classes
        for name, value in ours.evaluate()["sem_seg"].items():
            assert value == pytest.approx(expected[name], abs=1e-9), name


def test_errors_name_the_file(toy_dataset):
    evaluator = SemanticEvaluator(toy_dataset.name)
    right = scores(toy_dataset.classes(5))
    with pytest.raises(ValueError, match=r"5\.jpg.*\(4, 12, 19\): expected .*\(4, 12, 20\)"):
        evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": right["sem_seg"][..., 1:]}])
    with pytest.raises(ValueError, match=r"5\.jpg.*\(3, 12, 20\)"):
        evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": right["sem_seg"][1:]}])
    with pytest.raises(ValueError, match=r"other\.jpg: data set"):
        evaluator.process([{"file_name": "other.jpg"}], [right])

    labels = torch.full((12, 20), 4)
    with pytest.raises(ValueError, match=r"5\.jpg: sem_seg has class ids 4 to 4: expected 0 to 3"):
        evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": labels}])

    labelled(toy_dataset, [[0, 4, 255]])
    with pytest.raises(ValueError, match=r"labels\.png: label 4, \d+ pixels: expected 0 to 3"):
        evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[0, 0, 0]]))])

    entry = next(e for e in DatasetCatalog.get(toy_dataset.name) if e["image_id"] == 5)
    segment = entry["segments_info"].pop()
    with pytest.raises(ValueError, match=rf"5\.png: segments \[{segment['id']}\] are missing"):
        evaluator.process([toy_dataset.inputs(5)], [right])
    del entry["pan_seg_file_name"]
    with pytest.raises(ValueError, match=r"5\.jpg.*neither sem_seg_file_name nor pan_seg"):
        evaluator.process([toy_dataset.inputs(5)], [right])


def test_ignore_label_is_the_metadatas(toy_dataset):
    labelled(toy_dataset, [[0, 3]])
    MetadataCatalog.get(toy_dataset.name).__dict__["ignore_label"] = 3
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(3)], [scores(np.array([[0, 0]]))])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100.0
