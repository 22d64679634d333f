"""Box AP against Detectron2's evaluator, which calls pycocotools."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO

from proscale.evaluation import BoxEvaluator

NAME = "coco_2017_val"


def detections(boxes, classes, scores, size):
    result = Instances(size)
    result.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
    result.scores = torch.as_tensor(scores, dtype=torch.float32)
    return {"instances": result}


def perturbed(entries):
    """Boxes of the entries moved, doubled and mistaken; scores of one decimal have ties."""
    generator = torch.Generator().manual_seed(5)
    for entry in entries:
        boxes, classes = [], []
        for annotation in entry["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            for _ in range(torch.randint(0, 4, (), generator=generator)):
                moved = torch.tensor(box) + 8 * torch.randn(4, generator=generator)
                boxes.append(moved.tolist())
                is_mistaken = torch.rand((), generator=generator) < 0.2
                classes.append(0 if is_mistaken else annotation["category_id"])
        scores = torch.rand(len(boxes), generator=generator).round(decimals=1)
        yield entry, detections(boxes, classes, scores, (entry["height"], entry["width"]))


def run(evaluator, pairs):
    evaluator.reset()
    for entry, output in pairs:
        evaluator.process([entry], [output])
    return evaluator.evaluate()


@pytest.mark.usefixtures("sample_coco")
def test_results_equal_detectron2s():
    """On an instance data set, whose boxes serve as they are."""
    pairs = list(perturbed(DatasetCatalog.get(NAME)))
    ours = run(BoxEvaluator(NAME), pairs)
    theirs = run(COCOEvaluator(NAME, tasks=("bbox",), use_fast_impl=False), pairs)
    assert ours.keys() == theirs.keys() == {"bbox"}
    assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-9, nan_ok=True)
    assert 5 < ours["bbox"]["AP"] < 95


@pytest.fixture
def boxes_alone(toy_with_instances):
    """Annotations without masks and areas, as detection data sets have them."""
    path = Path(MetadataCatalog.get(toy_with_instances.name).json_file)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"], annotation["area"]
    path.write_text(json.dumps(content))
    return toy_with_instances.name


def true_boxes(name):
    """[(entry, output)] of the annotations that are no crowds."""
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    for image in content["images"]:
        of_image = [
            a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in of_image)]
        classes = [ids[a["category_id"]] for a in of_image]
        size = image["height"], image["width"]
        yield {"image_id": image["id"]}, detections(boxes, classes, [0.9] * len(boxes), size)


def test_true_boxes_score_100_without_masks_and_areas(boxes_alone):
    results = run(BoxEvaluator(boxes_alone), true_boxes(boxes_alone))
    assert set(results) == {"bbox"}
    assert results["bbox"]["AP"] == results["bbox"]["APs"] == pytest.approx(100)


def test_nothing_found_is_0(boxes_alone):
    pairs = [(e, detections([], [], [], (12, 20))) for e, _ in true_boxes(boxes_alone)]
    assert run(BoxEvaluator(boxes_alone), pairs)["bbox"]["AP"] == 0


def test_predictions_for_a_test_server(boxes_alone, tmp_path):
    evaluator = BoxEvaluator(boxes_alone, str(tmp_path), save_predictions=True)
    pairs = list(true_boxes(boxes_alone))
    run(evaluator, pairs)
    annotations = COCO(MetadataCatalog.get(boxes_alone).json_file)
    found = annotations.loadRes(str(tmp_path / "coco_instances_results.json")).anns.values()
    assert len(found) == sum(len(output["instances"]) for _, output in pairs)
    assert all(a["bbox"][2:] == [4, 11] for a in found)


def test_boxes_of_another_size_are_refused(boxes_alone):
    with pytest.raises(ValueError, match=r"instances are of size \(9, 9\), the image is \(12, 20"):
        run(BoxEvaluator(boxes_alone), [({"image_id": 3}, detections([], [], [], (9, 9)))])
