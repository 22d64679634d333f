"""On real images the ground truth of a data set scores 100 in every task.

It is read as training reads it and scored as a model's results are, so that a disagreement of the
two about classes, ids, crowds or void shows.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from PIL import Image
from scipy import ndimage

from proscale import add_proscale_config
from proscale.data.datasets.ade20k import THINGS, register_ade20k
from proscale.data.datasets.cityscapes import register_cityscapes
from proscale.data.datasets.coco import register_coco
from proscale.data.mappers.annotations import InstanceReader, PanopticReader, SemanticReader
from proscale.data.prepare import prepare
from proscale.evaluation import build_evaluator

PANOPTIC, INSTANCE, SEMANTIC = "PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"
CASES = {
    "coco_2017_val_panoptic": (PANOPTIC, SEMANTIC),
    "coco_2017_val": (INSTANCE,),
    "coco_2017_val_sem_seg": (SEMANTIC,),
    "coco_2017_val_panoptic_stuffonly": (SEMANTIC,),
    "cityscapes_fine_panoptic_val": (PANOPTIC,),
    "cityscapes_fine_instance_seg_val": (INSTANCE,),
    "cityscapes_fine_sem_seg_val": (SEMANTIC,),
    "ade20k_panoptic_val": (PANOPTIC,),
    "ade20k_instance_val": (INSTANCE,),
    "ade20k_sem_seg_val": (SEMANTIC,),
}


@pytest.fixture(scope="module")
def prepared(sample_coco, tmp_path_factory) -> Iterator[None]:
    """The sample's files, linked, and prepared."""
    pytest.importorskip("cityscapesscripts")
    sample, root = Path(os.environ["DETECTRON2_DATASETS"]), tmp_path_factory.mktemp("root")
    for folder in ("coco", "cityscapes", "ade20k"):
        if not (sample / folder).is_dir():
            pytest.skip(f"no {folder} in {sample}")
        below = sample / folder if folder == "ade20k" else sample
        for file in (f for f in (sample / folder).rglob("*") if f.is_file()):
            link = root / file.relative_to(below)
            if "val" not in str(link.relative_to(root)):
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    _objects(root / "ADEChallengeData2016")
    saved = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for register in (register_coco, register_cityscapes, register_ade20k):
        register(root)
    for name in ("coco", "cityscapes", "ade20k"):
        prepare(name, root, workers=2)
    yield
    for catalog, content in saved:
        catalog.data = content


def _objects(folder: Path) -> None:
    """Every connected region of a thing's class becomes an object, as the instance challenge codes
    them; the sample has class labels alone."""
    target = folder / "annotations_instance" / "validation"
    target.mkdir(parents=True)
    for file in (folder / "annotations" / "validation").iterdir():
        labels = np.asarray(Image.open(file))
        objects, number = np.zeros((*labels.shape, 3), np.uint8), 0
        for category, class_ in enumerate(THINGS, start=1):
            regions, count = ndimage.label(labels == class_ + 1)
            for region in range(1, count + 1):
                number += 1
                objects[regions == region] = category, number, 0
        Image.fromarray(objects).save(target / file.name)


@pytest.mark.parametrize(("name", "task"), [(n, task) for n in CASES for task in CASES[n]])
def test_ground_truth_scores_100(prepared, name, task):
    metadata = MetadataCatalog.get(name)
    cfg = get_cfg()
    add_proscale_config(cfg)
    for switch in (PANOPTIC, INSTANCE, SEMANTIC):
        cfg.MODEL.MASK_FORMER.TEST[switch] = switch == task
    evaluators = build_evaluator(cfg, name)
    evaluators.reset()
    for entry in DatasetCatalog.get(name):
        with Image.open(entry["file_name"]) as image:
            size = image.size[::-1]
        evaluators.process([entry], [_output(entry, size, task, metadata)])
    results = evaluators.evaluate()
    if task == PANOPTIC:
        metrics = {key: results["panoptic_seg"][key] for key in ("PQ", "SQ", "RQ")}
    elif task == INSTANCE:
        metrics = {key: results["segm"][key] for key in ("AP", "AP50")}
    else:
        metrics = results["sem_seg"]
    assert metrics == {key: pytest.approx(100) for key in metrics}


def _output(entry: dict, size: tuple[int, int], task: str, metadata) -> dict:
    if task == SEMANTIC and "sem_seg_file_name" in entry:
        ignored = metadata.ignore_label
        truth = SemanticReader(num_classes=ignored, ignore_label=ignored).read(entry, size)
    elif task == INSTANCE:
        truth = InstanceReader().read(entry, size)
    else:
        truth = PanopticReader().read(entry, size)
    targets = truth.targets(T.TransformList([]), size, size)["instances"]
    classes, masks = targets.gt_classes, targets.gt_masks.tensor
    if task == INSTANCE:
        result = Instances(size, pred_masks=masks, pred_classes=classes)
        result.pred_boxes = targets.gt_masks.get_bounding_boxes()
        result.scores = torch.ones(len(classes))
        return {"instances": result}
    if task == SEMANTIC:
        labels = torch.zeros(size, dtype=torch.long)
        for class_, mask in zip(classes, masks, strict=True):
            labels[mask] = class_
        return {"sem_seg": labels}
    ids = torch.zeros(size, dtype=torch.int32)
    segments = []
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    for number, (class_, mask) in enumerate(zip(classes.tolist(), masks, strict=True), start=1):
        ids[mask] = number
        segments.append({"id": number, "isthing": class_ in things, "category_id": class_})
    return {"panoptic_seg": (ids, segments)}
