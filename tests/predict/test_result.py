"""Typed results from what models return."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from proscale.predict.result import Segment, from_instances, from_panoptic, from_semantic


def test_panoptic_segments_say_what_the_map_shows(panoptic):
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
