"""The semantic metrics against values worked out by hand, from either kind of truth."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from proscale.evaluation import SemanticEvaluator

NUM_CLASSES = 4


def scores(classes):
    """Class scores (C, H, W) whose maximum is `classes` (the last class where it is -1)."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(classes) % NUM_CLASSES, NUM_CLASSES)
    return {"sem_seg": one_hot.permute(2, 0, 1).float()}


def test_truth_from_panoptic_ignores_void_and_crowd(toy_dataset):
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


def test_figures_worked_out_by_hand(toy_dataset, tmp_path):
    # Class 3 is never true, class 2 never occurs; the last pixel is unlabelled.
    labelled(toy_dataset, [[0, 0, 0, 0, 1, 1, 255]])
    evaluator = SemanticEvaluator(toy_dataset.name, str(tmp_path / "out"))
    predicted = scores(np.array([[0, 0, 0, 1, 1, 3, 2]]))
    evaluator.process([toy_dataset.inputs(3)], [predicted])
    summary = evaluator.evaluate()["sem_seg"]
    iou, accuracy = (3 / 4, 1 / 3), (3 / 4, 1 / 2)
    assert summary == {
        "mIoU": pytest.approx(100 * (iou[0] + iou[1]) / 2),
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
        {"name": "sky", "IoU": None, "ACC": None},
    ]


def test_labels_count_as_their_scores_do(toy_dataset):
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, toy_dataset.classes(5).shape)
    evaluator = SemanticEvaluator(toy_dataset.name)
    evaluator.process([toy_dataset.inputs(5)], [scores(labels)])
    expected = evaluator.evaluate()
    evaluator.reset()
    evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": torch.from_numpy(labels)}])
    assert evaluator.evaluate() == expected


def test_without_labelled_pixels_the_figures_are_nan(toy_dataset):
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
    other_rank = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
    other_rank[2, 3] = 1
    monkeypatch.setattr(comm, "gather", lambda data: [data, other_rank])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 75.0
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_faults_name_the_file(toy_dataset):
    evaluator = SemanticEvaluator(toy_dataset.name)
    right = scores(toy_dataset.classes(5))
    with pytest.raises(ValueError, match=r"5\.jpg.*\(4, 12, 19\), expected .*\(4, 12, 20\)"):
        evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": right["sem_seg"][..., 1:]}])
    with pytest.raises(ValueError, match=r"5\.jpg.*\(3, 12, 20\)"):
        evaluator.process([toy_dataset.inputs(5)], [{"sem_seg": right["sem_seg"][1:]}])
    with pytest.raises(ValueError, match=r"other\.jpg: data set"):
        evaluator.process([{"file_name": "other.jpg"}], [right])

    labelled(toy_dataset, [[0, 4, 255]])
    with pytest.raises(ValueError, match=r"labels\.png: it has class id 4; accepted are 0 to 3"):
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
