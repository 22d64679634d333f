"""Which differences of shape mean other classes, and how differences are told."""

import json
from pathlib import Path

import pytest

from proscale.checkpoint.class_layer import (
    CLASS_LAYER,
    Mismatch,
    describe_class_layer,
    describe_mismatches,
    has_other_classes,
)

WEIGHT = Mismatch("sem_seg_head.predictor.class_embed.weight", (134, 256), (10, 256))
BIAS = Mismatch("sem_seg_head.predictor.class_embed.bias", (134,), (10,))
LOSS = Mismatch("criterion.empty_weight", (134,), (10,))
OTHER = Mismatch("backbone.stem.weight", (64, 3), (32, 3))


@pytest.mark.parametrize(
    ("mismatches", "expected"),
    [
        ([WEIGHT, BIAS, LOSS], True),
        ([], False),
        ([WEIGHT, OTHER], False),
        ([WEIGHT._replace(expected=(10, 128))], False),
    ],
)
def test_only_the_class_layer_may_differ_in_its_first_dimension(mismatches, expected):
    assert has_other_classes(mismatches) is expected


def test_descriptions():
    assert describe_class_layer([LOSS, BIAS, WEIGHT]) == (
        "the checkpoint has a class layer of 134 outputs, this model one of 10: "
        "sem_seg_head.predictor.class_embed starts afresh, all else is loaded"
    )
    told = describe_mismatches([OTHER] * 7)
    assert told.startswith(
        "backbone.stem.weight is (64, 3) in the checkpoint, (32, 3) in the model"
    )
    assert told.endswith("; and 2 more")


def test_names_are_those_of_the_models():
    folder = Path(__file__).parents[1] / "golden" / "state_dicts"
    names = set(json.loads((folder / "proscale_r50_333.json").read_text()))
    assert {name for name in CLASS_LAYER if "class_embed" in name} <= names
