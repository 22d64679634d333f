"""From an annotation file to its evaluation: annotations encoded as heatmaps and decoded again.

The numbers are those of the released code, in percent, with ground-truth boxes. Half a pixel, which
lies between COCO's coordinates and Detectron2's, would change PCK@0.05 and AP.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from proscale.data import build_mapper
from proscale.evaluation import PoseEvaluator, build_evaluator

SIZES = {"coco": [288, 384], "jbd": [480, 640]}
# AP, APm, APl, PCK@0.1, PCK@0.05 of targets decoded, by split and size of the input.
DECODED = {
    ("val", "coco"): (100.0, 100.0, 100.0, 100.0, 99.654),
    ("val", "jbd"): (100.0, 100.0, 100.0, 100.0, 99.654),
    ("train", "coco"): (99.068, 98.812, 99.326, 99.464, 99.184),
    ("train", "jbd"): (99.068, 98.812, 99.326, 99.184, 99.184),
}
# The same of the annotations themselves. Suppression ignores visibility, so that unlabelled points
# of two persons coincide.
ANNOTATED = {
    "val": (100.0, 100.0, 100.0, 100.0, 100.0),
    "train": (98.02, 100.0, 96.04, 100.0, 100.0),
}
METRICS = ("AP", "APm", "APl", "PCK@0.1", "PCK@0.05")


@pytest.fixture
def pose_cfg(small_segformer_cfg):
    cfg = small_segformer_cfg
    cfg.MODEL.META_ARCHITECTURE = "PoseEstimator"
    cfg.MODEL.POSE_HEAD.CONVS_DIM, cfg.MODEL.POSE_HEAD.NORM = 16, "BN"
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = ("keypoints_coco_2017_train",)
    return cfg


def truth(record):
    """Keypoints (K, 3) of a record as pixel indices."""
    return np.reshape(record["annotations"][0]["keypoints"], (-1, 3)) - [0.5, 0.5, 0]


@pytest.mark.parametrize(("split", "size"), DECODED)
def test_targets_decoded(sample_persons, pose_cfg, monkeypatch, split, size):
    pose_cfg.MODEL.POSE.INPUT_SIZE = SIZES[size]
    model = build_model(pose_cfg).eval()
    mapper = build_mapper(pose_cfg, is_train=False)
    evaluator = build_evaluator(pose_cfg, f"keypoints_coco_2017_{split}")
    evaluator.reset()
    for record in sample_persons(split):
        sample = mapper(record)
        # A network that gives the targets.
        points = sample["crop"].to_input(truth(record)[:, :2])
        visible = np.minimum(truth(record)[:, 2], 1)
        target, _ = model.codec.encode(points[None], visible[None])
        monkeypatch.setattr(model, "infer", lambda batch, target=target: target)
        with torch.no_grad():
            evaluator.process([sample], model([sample]))
    results = evaluator.evaluate()["keypoints"]
    assert [results[name] for name in METRICS] == pytest.approx(DECODED[split, size], abs=6e-4)


@pytest.mark.parametrize("split", ANNOTATED)
def test_annotations_themselves(sample_persons, split):
    evaluator = PoseEvaluator(f"keypoints_coco_2017_{split}")
    for record in sample_persons(split):
        keypoints = truth(record) + [0.5, 0.5, 0]
        keypoints[:, 2] = 1
        (annotation,) = record["annotations"]
        instances = Instances(
            (record["height"], record["width"]),
            pred_keypoints=torch.from_numpy(keypoints)[None],
            pred_boxes=Boxes([annotation["bbox"]]),
            box_scores=torch.ones(1),
            scores=torch.ones(1),
        )
        sample = {"image_id": record["image_id"], "annotation_id": annotation["id"]}
        evaluator.process([sample], [{"instances": instances}])
    results = evaluator.evaluate()["keypoints"]
    assert [results[name] for name in METRICS] == pytest.approx(ANNOTATED[split], abs=6e-3)
