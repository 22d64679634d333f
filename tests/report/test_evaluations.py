"""Results as evaluators write them, for one data set and several, and damaged ones."""

import json
import math

from proscale.report.evaluations import read_evaluations


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_metrics_of_data_set_classes_and_images(tmp_path):
    write(tmp_path / "results.json", {"val": {"panoptic_seg": {"PQ": 50.0, "SQ": None}}})
    folder = tmp_path / "inference" / "val"
    categories = [
        {"id": 7, "name": "cat", "isthing": True, "pq": 80.0, "tp": 2},
        {"id": 9, "name": "sky", "isthing": False, "pq": None, "tp": 0},
    ]
    write(folder / "panoptic_seg.json", {"per_category": categories})
    images = [{"file_name": "a.jpg", "PQ": 12.5}, {"file_name": "b.jpg", "PQ": None}]
    write(folder / "panoptic_seg_images.json", {"images": images})
    (found,), problems = read_evaluations(tmp_path)
    assert not problems
    assert (found.dataset, found.task, found.headlines) == ("val", "panoptic_seg", ["PQ"])
    assert found.metrics["PQ"] == 50.0 and math.isnan(found.metrics["SQ"])
    cat, sky = found.classes
    assert (cat.name, cat.kind, cat.metrics) == ("cat", "thing", {"PQ": 80.0, "TP": 2})
    assert sky.kind == "stuff" and math.isnan(sky.metrics["PQ"])
    assert [image.file_name for image in found.images] == ["a.jpg", "b.jpg"]
    assert found.images[0].value == 12.5 and math.isnan(found.images[1].value)


def test_classes_of_instances_are_among_the_results(tmp_path):
    metrics = {"AP": 30.0, "AP50": 40.0, "AP-cat": 20.0, "AP-traffic light": None}
    write(tmp_path / "results.json", {"val": {"segm": metrics}})
    ((found,), _) = read_evaluations(tmp_path)
    assert found.metrics == {"AP": 30.0, "AP50": 40.0}
    assert [c.name for c in found.classes] == ["cat", "traffic light"]
    assert found.images == []


def test_poses_have_ap_pck_and_whose_boxes(tmp_path):
    metrics = {"AP": 60.0, "AP50": 80.0, "PCK@0.1": 90.0, "PCK@0.05": 70.0}
    write(tmp_path / "results.json", {"keypoints": metrics, "boxes": "detected boxes"})
    ((found,), _) = read_evaluations(tmp_path)
    assert found.title == "Keypoints, detected boxes"
    assert (found.headlines, found.noun) == (["AP", "PCK@0.1"], "keypoints")
    content = {"val": {"keypoints": {"PCK@0.1": 90.0}, "boxes": "ground-truth boxes"}}
    write(tmp_path / "results.json", content)
    rows = [{"name": "nose", "PCK@0.1": 95.0, "PCK@0.05": None}]
    write(tmp_path / "inference/val/keypoints.json", {"per_keypoint": rows})
    ((found,), problems) = read_evaluations(tmp_path)
    assert (found.title, found.headlines) == ("Keypoints, ground-truth boxes", ["PCK@0.1"])
    assert found.classes[0].name == "nose" and found.classes[0].metrics["PCK@0.1"] == 95
    assert (found.images, problems) == ([], [])
    content["val"]["boxes"] = "<b>"  # of somebody else
    write(tmp_path / "results.json", content)
    assert read_evaluations(tmp_path)[0][0].title == "Keypoints"


def test_views_of_one_data_set_and_of_several(tmp_path):
    write(tmp_path / "results_TTA.json", {"sem_seg_TTA": {"mIoU": 1.0}})
    ((one,), _) = read_evaluations(tmp_path)
    assert (one.dataset, one.task, one.has_views) == ("", "sem_seg", True)
    write(tmp_path / "inference_TTA/val/sem_seg.json", {"per_class": [{"name": "a", "IoU": 2.0}]})
    ((one,), _) = read_evaluations(tmp_path)
    assert (one.dataset, one.classes[0].metrics) == ("val", {"IoU": 2.0})
    content = {f"{name}_TTA": {"sem_seg": {"mIoU": 1.0}} for name in ("a", "b")}
    write(tmp_path / "results_TTA.json", content)
    found, _ = read_evaluations(tmp_path)
    assert [(e.dataset, e.task) for e in found] == [("a", "sem_seg"), ("b", "sem_seg")]


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "results.json", {"val": {"panoptic_seg": {"PQ": 50.0}, "sem_seg": 3}, "x": 1})
    folder = tmp_path / "inference" / "val"
    write(folder / "panoptic_seg.json", {"per_category": {"cat": 1}})
    (folder / "panoptic_seg_images.json").write_text('{"images": [')
    (found,), problems = read_evaluations(tmp_path)
    assert (found.classes, found.images) == ([], [])
    assert ["panoptic_seg.json" in problems[0], "panoptic_seg_images.json" in problems[1]] == [
        True
    ] * 2


def test_an_empty_folder_has_no_evaluations(tmp_path):
    assert read_evaluations(tmp_path) == ([], [])
