"""What an image is evaluated as, and how faults of its file are told."""

import numpy as np
import pytest
from PIL import Image

from proscale.data import build_mapper


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.full((30, 40, 3), 100, np.uint8)).save(path)
    return {"file_name": str(path), "image_id": 7, "height": 30, "width": 40}


def test_reads_the_image_alone(cfg, entry):
    cfg.INPUT.MIN_SIZE_TEST = 60
    sample = build_mapper(cfg, is_train=False)(entry | {"sem_seg_file_name": "not there.png"})
    assert sample["image"].shape == (3, 60, 80)
    assert (sample["height"], sample["width"], sample["image_id"]) == (30, 40, 7)
    assert "sem_seg" not in sample


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_faults_name_the_file(damage, is_train, cfg, entry, tmp_path):
    path = tmp_path / "image.jpg"
    content = {"truncated": path.read_bytes()[:300], "empty": b"", "text": b"no image"}[damage]
    path.write_bytes(content)
    labels = {"sem_seg_file_name": str(path)}  # what the default mapper for training reads
    with pytest.raises(ValueError, match=r"image\.jpg: not a readable image \("):
        build_mapper(cfg, is_train)(entry | labels)


@pytest.mark.parametrize("is_train", [True, False])
def test_missing_file_is_named(is_train, cfg, entry):
    entry |= {"file_name": "gone.jpg", "sem_seg_file_name": "gone.png"}
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        build_mapper(cfg, is_train)(entry)
