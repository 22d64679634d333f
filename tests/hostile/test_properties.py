"""Whatever a file holds, its reader returns it or refuses it in one sentence."""

import io
import json
import random

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from proscale.config import setup_cfg
from proscale.data.datasets.registration import panoptic_metadata
from proscale.data.formats.coco_format import (
    PANOPTIC_CATEGORIES,
    load_coco_instances,
    load_coco_panoptic,
    read_categories,
)
from proscale.data.formats.image_file import read_panoptic_png
from proscale.errors import ConfigError, DataError
from tests.hostile.fuzz import VALUES, mutate_bytes, mutate_document

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
numbers = st.integers(0, 2**32 - 1).map(random.Random)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
keys = st.text(max_size=8)
documents = st.recursive(
    scalars | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)

CONTENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 4}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "file_name": "1.png",
            "segmentation": {"size": [4, 4], "counts": "41;4"},
            "segments_info": [
                {"id": 7, "category_id": 1, "iscrowd": 0, "area": 8, "bbox": [0, 0, 4, 2]}
            ],
        }
    ],
    "categories": [{"id": i, "name": str(i), "isthing": i % 2} for i in (1, 2)],
}
CONFIG = {
    "MODEL": {"WEIGHTS": "", "DEVICE": "cpu", "PIXEL_STD": [1.0, 1.0, 1.0]},
    "SOLVER": {"BASE_LR": 0.1, "MAX_ITER": 3, "STEPS": [1, 2], "AMP": {"ENABLED": False}},
    "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TRAIN": [64], "CROP": {"SIZE": [0.9, 0.9]}},
    "DATASETS": {"TRAIN": ["a"], "OWN": []},
}


def read_config(path):
    try:
        setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    except (ConfigError, DataError) as error:
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


@quick
@given(st.text(max_size=100) | st.sampled_from(["- ", "{", "a: &a [*a]", "? [a]", "!!int x"]))
@example("a: !!timestamp 2001-99-99")
def test_any_text_is_a_configuration_or_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8", errors="replace")
    read_config(tmp_path / "config.yaml")


@quick
@given(numbers)
def test_a_changed_configuration_is_read_or_refused(tmp_path, chance):
    content = mutate_document(chance, CONFIG)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(content, allow_unicode=True), "utf-8", "replace"
    )
    read_config(tmp_path / "config.yaml")


@quick
@given(
    st.dictionaries(st.sampled_from(["MODEL", "SOLVER", "INPUT", "_BASE_", "VERSION"]), documents)
)
def test_any_document_is_a_configuration_or_refused(tmp_path, content):
    text = yaml.safe_dump(content, allow_unicode=True)
    (tmp_path / "config.yaml").write_text(text, "utf-8", "replace")
    read_config(tmp_path / "config.yaml")


def read_annotations(path):
    try:
        categories = read_categories(path, PANOPTIC_CATEGORIES)
        metadata = panoptic_metadata(
            categories, image_root=path.parent, panoptic_root=path.parent, panoptic_json=path
        )
        load_coco_panoptic(metadata)
        load_coco_instances({**metadata, "json_file": str(path)})
    except DataError as error:
        assert path.name in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


@quick
@given(numbers)
def test_changed_annotations_are_read_or_refused(tmp_path, chance):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(mutate_document(chance, CONTENT)))
    read_annotations(path)


@quick
@given(st.dictionaries(st.sampled_from(list(CONTENT)), documents) | documents)
def test_any_document_is_annotations_or_refused(tmp_path, content):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    read_annotations(path)


@quick
@given(st.binary(max_size=100))
def test_any_bytes_are_annotations_or_refused(tmp_path, data):
    path = tmp_path / "panoptic.json"
    path.write_bytes(data)
    read_annotations(path)


@pytest.fixture(scope="module")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 99).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@quick
@given(numbers)
def test_a_changed_mask_is_read_or_refused(tmp_path, png, chance):
    path = tmp_path / "1.png"
    path.write_bytes(mutate_bytes(chance, png))
    try:
        read_panoptic_png(path)
    except DataError as error:
        assert "1.png" in str(error)
        assert "\n" not in str(error)
