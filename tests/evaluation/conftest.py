"""A panoptic data set of three images with Detectron2-style metadata, on disk and registered."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as rle

from proscale.data.formats.image_file import write_panoptic_png

CATEGORIES = [
    {"id": 10, "name": "cat", "isthing": 1},
    {"id": 40, "name": "sky", "isthing": 0},
    {"id": 20, "name": "dog", "isthing": 1},
    {"id": 30, "name": "grass", "isthing": 0},
]
THINGS, STUFF = {10: 0, 20: 1}, {30: 2, 40: 3}
CLASS_NAMES = ["cat", "dog", "grass", "sky"]
SIZE = (12, 20)

_numbers = itertools.count()


@dataclass
class ToyDataset:
    """Maps and COCO segments of its images by image id, and what a model would give for them."""

    name: str
    root: Path
    maps: dict[int, np.ndarray]
    segments: dict[int, list[dict]]

    def inputs(self, image_id: int) -> dict:
        return {"image_id": image_id, "file_name": f"{self.root}/{image_id}.jpg"}

    def panoptic(self, image_id: int) -> dict:
        """The annotations without crowds, in the form of a model's output."""
        segments = [s for s in self.segments[image_id] if not s["iscrowd"]]
        ids = self.maps[image_id] * np.isin(self.maps[image_id], [s["id"] for s in segments])
        infos = [
            {
                "id": s["id"],
                "isthing": s["category_id"] in THINGS,
                "category_id": (THINGS | STUFF)[s["category_id"]],
            }
            for s in segments
        ]
        return {"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), infos)}

    def classes(self, image_id: int) -> np.ndarray:
        """Contiguous class ids (H, W), -1 on void and crowd."""
        classes = np.full(SIZE, -1)
        for s in self.segments[image_id]:
            if not s["iscrowd"]:
                classes[self.maps[image_id] == s["id"]] = (THINGS | STUFF)[s["category_id"]]
        return classes


@pytest.fixture
def toy_dataset(tmp_path: Path):
    random = np.random.RandomState(3)
    toy = ToyDataset(f"evaluation_toy_{next(_numbers)}", tmp_path, {}, {})
    entries = []
    for image_id in (7, 3, 5):
        ids = np.zeros(SIZE, dtype=np.int64)
        segments = []
        for column, category in enumerate((10, 30, 20, 10, 40)):
            segment_id = int(random.randint(1, 256**3))
            ids[1:, 4 * column : 4 * column + 4] = segment_id
            segments.append(
                {"id": segment_id, "category_id": category, "iscrowd": int(column == 3)}
            )
        toy.maps[image_id], toy.segments[image_id] = ids, segments
        write_panoptic_png(tmp_path / f"{image_id}.png", ids)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{image_id}.jpg")
        entries.append(
            {
                "file_name": f"{tmp_path}/{image_id}.jpg",
                "image_id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "pan_seg_file_name": f"{tmp_path}/{image_id}.png",
                "segments_info": [
                    {**s, "category_id": (THINGS | STUFF)[s["category_id"]]} for s in segments
                ],
            }
        )
    (tmp_path / "panoptic.json").write_text(
        json.dumps(
            {
                "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (3, 5, 7)],
                "annotations": [
                    {"image_id": i, "file_name": f"{i}.png", "segments_info": toy.segments[i]}
                    for i in (7, 3, 5)
                ],
                "categories": CATEGORIES,
            }
        )
    )
    DatasetCatalog.register(toy.name, lambda: entries)
    MetadataCatalog.get(toy.name).set(
        panoptic_json=f"{tmp_path}/panoptic.json",
        panoptic_root=str(tmp_path),
        thing_dataset_id_to_contiguous_id=dict(THINGS),
        stuff_dataset_id_to_contiguous_id=dict(STUFF),
        thing_classes=CLASS_NAMES,
        stuff_classes=CLASS_NAMES,
        ignore_label=255,
        evaluator_type="coco_panoptic_seg",
    )
    yield toy
    DatasetCatalog.remove(toy.name)
    MetadataCatalog.remove(toy.name)


@pytest.fixture
def toy_with_instances(toy_dataset):
    """The toy with the instances' JSON of its things."""
    names = {c["id"]: c["name"] for c in CATEGORIES if c["isthing"]}
    annotations, images = [], []
    for image_id, ids in toy_dataset.maps.items():
        images.append({"id": image_id, "height": ids.shape[0], "width": ids.shape[1]})
        for segment in toy_dataset.segments[image_id]:
            if segment["category_id"] in names:
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
    path = toy_dataset.root / "instances.json"
    categories = [{"id": i, "name": name} for i, name in names.items()]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    MetadataCatalog.get(toy_dataset.name).json_file = str(path)
    return toy_dataset
