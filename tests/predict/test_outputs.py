"""Files of predictions, read back by other readers of such files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools.coco import COCO

from proscale.data import register_coco_panoptic
from proscale.data.formats.image_file import read_label_image, read_palette, read_panoptic_png
from proscale.evaluation import CocoPanopticEvaluator
from proscale.predict.outputs import Failure, OutputFolder, Source
from proscale.predict.result import ClassMetadata, Prediction, Segmentation, from_semantic


@pytest.fixture
def write(tmp_path, pixels):
    """Returns a function: predictions and classes → the folder with their files."""

    def run(predictions: list[Prediction], classes: ClassMetadata, failures=()):
        output = OutputFolder(
            tmp_path / "out",
            task=predictions[0].task,
            classes=classes,
            dataset="animals",
            title="Animals",
        )
        for number, prediction in enumerate(predictions, 1):
            source = Source(Path(f"zoo/{number}.jpg"), f"image_{number}", number)
            image = pixels(prediction.height, prediction.width)
            output.add(output.write(source, image, prediction))
        output.finish(failures)
        return tmp_path / "out"

    return run


def test_panoptic_files_are_a_data_set(write, panoptic, classes, restored_catalogs):
    folder = write([panoptic, panoptic], classes)
    assert np.array_equal(read_panoptic_png(folder / "panoptic/image_1.png"), panoptic.id_map)
    register_coco_panoptic(
        "predicted",
        image_root="",
        panoptic_root=folder / "panoptic",
        panoptic_json=folder / "panoptic.json",
    )
    entries = DatasetCatalog.get("predicted")
    assert entries[1]["file_name"] == "zoo/2.jpg"
    segment = entries[1]["segments_info"][1]
    assert (segment["area"], segment["bbox"], segment["isthing"]) == (256, [4, 4, 16, 16], True)
    evaluator = CocoPanopticEvaluator("predicted")
    for entry in entries:
        segments = [
            {"id": s.id, "isthing": s.isthing, "category_id": s.class_id} for s in panoptic.segments
        ]
        output = {"panoptic_seg": (torch.from_numpy(panoptic.id_map), segments)}
        evaluator.process([entry], [output])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


def test_instances_are_coco_results(write, panoptic, classes, tmp_path):
    instances = Segmentation("instance", 48, 64, panoptic.segments[1:], panoptic.codes[1:], None)
    folder = write([instances], classes)
    ground_truth = COCO()
    ground_truth.dataset = {
        "images": [{"id": 1, "height": 48, "width": 64}],
        "categories": [{"id": id_} for id_ in classes.category_ids],
        "annotations": [],
    }
    ground_truth.createIndex()
    results = ground_truth.loadRes(str(folder / "instances.json"))
    found = results.loadAnns(results.getAnnIds())
    assert [a["category_id"] for a in found] == [17, 17, 18]
    assert [a["score"] for a in found] == [0.8, 0.7, 0.6]
    assert found[0]["bbox"] == [4, 4, 16, 16]
    masks = [results.annToMask(annotation) for annotation in found]
    assert np.array_equal(np.stack(masks), instances.masks)


def test_boxes_are_coco_results(write, detections, classes):
    folder = write([detections], classes)
    found = json.loads((folder / "detections.json").read_text())
    assert found == [
        {"image_id": 1, "category_id": 17, "bbox": [4, 6, 16, 14], "score": pytest.approx(0.9)},
        {
            "image_id": 1,
            "category_id": 18,
            "bbox": [30.5, 8, 13.5, 32],
            "score": pytest.approx(0.6),
        },
    ]
    content = json.loads((folder / "predictions.json").read_text())
    assert content["images"][0]["objects"][0]["box"] == [4, 6, 20, 20]
    assert not (folder / "detection").exists()


def test_poses_are_coco_results(write, poses, person_classes):
    folder = write([poses], person_classes)
    (best, _) = json.loads((folder / "keypoints.json").read_text())
    # COCO's coordinates: half a pixel less than Detectron2's.
    assert best["keypoints"] == pytest.approx([12, 8, 0.9, 16, 16, 0.8, 8, 16, 0.2])
    assert best["bbox"] == [4, 6, 16, 14]
    assert (best["category_id"], best["score"]) == (1, pytest.approx(0.9))
    (category,) = json.loads((folder / "predictions.json").read_text())["categories"]
    assert category["keypoints"] == ["neck", "lhip", "rhip"]
    assert category["skeleton"] == [[1, 2], [2, 3]]


def test_an_image_without_objects_has_files_like_others(write, poses, person_classes):
    nobody = replace(poses, objects=())
    folder = write([nobody], person_classes)
    assert json.loads((folder / "keypoints.json").read_text()) == []
    assert nobody.keypoints.shape == (0, 3, 3)
    assert "nothing found" in (folder / "index.html").read_text()


@pytest.mark.parametrize("number", [3, 300])
def test_semantic_labels(write, classes, number):
    some = ClassMetadata(
        names=tuple(f"class {i}" for i in range(number)),
        category_ids=tuple(range(number)),
        isthing=(False,) * number,
        colors=tuple((i % 256, 0, 7) for i in range(number)),
    )
    labels = torch.arange(48 * 64).view(48, 64) % number
    folder = write([from_semantic(labels, some)], some)
    path = folder / "semantic/image_1.png"
    assert np.array_equal(read_label_image(path), labels.numpy())
    if number == 3:
        assert read_palette(path)[:3] == [[0, 0, 7], [1, 0, 7], [2, 0, 7]]


def test_everything_in_one_file_and_pictures(write, panoptic, classes):
    folder = write([panoptic], classes, [Failure("zoo/3.jpg", "not readable")])
    content = json.loads((folder / "predictions.json").read_text())
    assert (content["task"], content["dataset"]) == ("panoptic", "animals")
    assert content["skipped"] == [{"file_name": "zoo/3.jpg", "reason": "not readable"}]
    (image,) = content["images"]
    assert (image["file_name"], image["name"]) == ("zoo/1.jpg", "image_1")
    assert image["segments"][3]["name"] == "<b>dog</b>"
    with Image.open(folder / "overlays/image_1.jpg") as overlay:
        assert overlay.size == (64, 48)
    assert "zoo/" not in (folder / "index.html").read_text()  # folders are nobody's business
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "overlays",
        "panoptic",
        "panoptic.json",
        "predictions.json",
    }
