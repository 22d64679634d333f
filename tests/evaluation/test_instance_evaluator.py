"""Mask AP with panoptic metadata: the truth given as prediction, whole and in part."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from pycocotools import mask as rle

from proscale.data.panoptic_png import read_panoptic_png
from proscale.evaluation import InstanceEvaluator

NAMES = {10: "cat", 20: "dog"}


def instances(ids, segments):
    """The things of a panoptic truth as a model's output; `category_id` is contiguous."""
    things = [s for s in segments if s["isthing"] and not s["iscrowd"]]
    masks = np.array([ids == s["id"] for s in things]).reshape(len(things), *ids.shape)
    result = Instances(ids.shape)
    result.pred_masks = torch.from_numpy(masks)
    result.pred_boxes = BitMasks(result.pred_masks).get_bounding_boxes()
    result.scores = torch.full((len(things),), 0.9)
    result.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.long)
    return {"instances": result}


@pytest.fixture
def with_instances(toy_dataset):
    """The toy with the instances' JSON of its things; its contiguous ids put things first."""
    annotations, images = [], []
    for image_id, ids in toy_dataset.maps.items():
        images.append({"id": image_id, "height": ids.shape[0], "width": ids.shape[1]})
        for segment in toy_dataset.segments[image_id]:
            if segment["category_id"] in NAMES:
                mask = rle.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": segment["category_id"],
                        "iscrowd": segment["iscrowd"],
                        "area": int(rle.area(mask)),
                        "bbox": rle.toBbox(mask).tolist(),
                        "segmentation": {**mask, "counts": mask["counts"].decode()},
                    }
                )
    write(toy_dataset, images, annotations, [{"id": i, "name": n} for i, n in NAMES.items()])
    return toy_dataset


def write(toy, images, annotations, categories):
    path = toy.root / "instances.json"
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    MetadataCatalog.get(toy.name).json_file = str(path)


def run(evaluator, toy, image_ids):
    evaluator.reset()
    for entry in DatasetCatalog.get(toy.name):
        if entry["image_id"] in image_ids:
            segments = [{**s, "isthing": s["category_id"] < 2} for s in entry["segments_info"]]
            output = instances(toy.maps[entry["image_id"]], segments)
            evaluator.process([entry], [output])
    return evaluator.evaluate()["segm"]


def test_stuff_among_the_classes_is_no_hindrance(with_instances, tmp_path):
    evaluator = InstanceEvaluator(with_instances.name, str(tmp_path / "out"))
    results = run(evaluator, with_instances, (3, 5, 7))
    assert results["AP"] == pytest.approx(100)
    assert {k for k in results if k.startswith("AP-")} == {"AP-cat", "AP-dog"}
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_images_that_the_data_set_leaves_out_do_not_count(with_instances):
    whole = run(InstanceEvaluator(with_instances.name), with_instances, (3, 7))
    assert whole["AP"] < 80
    MetadataCatalog.get(with_instances.name).image_ids = (3, 7)
    part = run(InstanceEvaluator(with_instances.name), with_instances, (3, 7))
    assert part["AP"] == pytest.approx(100)


def test_classes_that_do_not_fit(with_instances):
    write(with_instances, [], [], [{"id": 10, "name": "cat"}, {"id": 99, "name": "elk"}])
    with pytest.raises(ValueError, match=r"instances\.json: its categories \[99\]"):
        InstanceEvaluator(with_instances.name)
    metadata = MetadataCatalog.get(with_instances.name)
    metadata.__dict__["thing_dataset_id_to_contiguous_id"] = {10: 0, 20: 3}
    with pytest.raises(ValueError, match=rf"{with_instances.name}.*\[0, 3\].*0 to 1"):
        InstanceEvaluator(with_instances.name)


@pytest.mark.usefixtures("sample_coco")
def test_sample_truth_as_prediction():
    name = "coco_2017_val_panoptic"
    evaluator = InstanceEvaluator(name)
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        ids = read_panoptic_png(entry["pan_seg_file_name"])
        evaluator.process([entry], [instances(ids, entry["segments_info"])])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] > 99
    assert sum(key.startswith("AP-") for key in results) == 80
