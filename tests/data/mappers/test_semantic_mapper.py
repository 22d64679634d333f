"""The semantic mapper: short-edge scaling, crops, colours, padding; labels and targets agree."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from proscale.data import build_mapper

HEIGHT, WIDTH = 40, 60
CLASSES = (0, 3, 18)


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[:, :20], labels[:20, 20:50], labels[20:, 20:50] = CLASSES
    return labels


@pytest.fixture
def entry(tmp_path, labels) -> dict:
    """An image that shows its labels as grey values."""
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.repeat(labels[..., None], 3, 2)).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }


@pytest.fixture
def mapper_cfg(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def test_every_class_is_a_target_and_the_labels_are_kept(mapper_cfg, entry, labels):
    sample = build_mapper(mapper_cfg, is_train=True)(entry)
    assert torch.equal(sample["sem_seg"], torch.from_numpy(labels).long())
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == list(CLASSES)
    for class_, mask in zip(CLASSES, instances.gt_masks.tensor, strict=True):
        assert torch.equal(mask, torch.from_numpy(labels == class_))
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


def test_labels_stay_aligned_under_all_augmentation(mapper_cfg, entry):
    cfg = mapper_cfg
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 80)  # whole factors, so that grey values stay
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = (30, 30)
    cfg.INPUT.SIZE_DIVISIBILITY = 16
    mapper = build_mapper(cfg, is_train=True)
    for augmentation in mapper.augmentations.augs:
        if hasattr(augmentation, "interp"):
            augmentation.interp = Image.Resampling.NEAREST
    np.random.seed(1)
    for _ in range(10):
        sample = mapper(entry)
        assert sample["image"].shape == (3, 32, 32)
        inside = sample["image"][0, :30, :30].long()
        assert torch.equal(sample["sem_seg"][:30, :30], inside)
        assert (sample["sem_seg"][30:] == 255).all() and (sample["image"][:, 30:] == 128).all()
        present = [c for c in CLASSES if (inside == c).any()]
        assert sample["instances"].gt_classes.tolist() == present


def test_short_edge_is_one_of_the_sizes(mapper_cfg, entry):
    mapper_cfg.INPUT.MIN_SIZE_TRAIN = (20, 30)
    mapper_cfg.INPUT.MAX_SIZE_TRAIN = 44
    mapper = build_mapper(mapper_cfg, is_train=True)
    np.random.seed(0)
    sizes = {tuple(mapper(entry)["image"].shape[1:]) for _ in range(20)}
    assert sizes == {(20, 30), (29, 44)}


def test_crops_with_one_category_are_drawn_again(mapper_cfg, entry):
    cfg = mapper_cfg
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = (16, 16)

    def share_with_one_class() -> float:
        mapper = build_mapper(cfg, is_train=True)
        np.random.seed(0)
        return np.mean([len(mapper(entry)["instances"]) < 2 for _ in range(40)])

    assert share_with_one_class() > 0.2
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.9
    assert share_with_one_class() < 0.05


def test_colours_are_distorted_if_asked_for(mapper_cfg, entry):
    def images() -> list[torch.Tensor]:
        mapper = build_mapper(mapper_cfg, is_train=True)
        random.seed(0)
        samples = [mapper(entry) for _ in range(8)]
        assert all(torch.equal(s["sem_seg"], samples[0]["sem_seg"]) for s in samples)
        return [s["image"] for s in samples]

    plain = images()
    assert all(torch.equal(image, plain[0]) for image in plain)
    mapper_cfg.INPUT.COLOR_AUG_SSD = True
    assert any(not torch.equal(image, plain[0]) for image in images())
    mapper_cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT .* is 'L': expected 'RGB', 'BGR'"):
        build_mapper(mapper_cfg, is_train=True)


def test_palette_and_16_bit_labels_are_read_as_numbers(mapper_cfg, entry, labels):
    expected = torch.from_numpy(labels).long()
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.putpalette([value for c in range(256) for value in (255 - c, 0, c)])
    for image in (palette, Image.fromarray(labels.astype(np.uint16))):
        image.save(entry["sem_seg_file_name"])
        sample = build_mapper(mapper_cfg, is_train=True)(entry)
        assert torch.equal(sample["sem_seg"], expected)


def test_labels_out_of_range_are_named(mapper_cfg, entry):
    mapper_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    with pytest.raises(ValueError, match=r"labels\.png: label 18, \d+ pixels: expected 0 to 3"):
        build_mapper(mapper_cfg, is_train=True)(entry)


def test_sizes_must_agree(mapper_cfg, entry, labels):
    Image.fromarray(labels[:, 1:]).save(entry["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"labels\.png: it has .*\(40, 59\): expected \(40, 60\)"):
        build_mapper(mapper_cfg, is_train=True)(entry)


def test_what_is_ignored_is_what_the_data_set_ignores(mapper_cfg):
    name = "test_semantic_mapper_ignored"
    MetadataCatalog.get(name).set(ignore_label=65)
    mapper_cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(ValueError, match=rf"IGNORE_VALUE is 255: expected 65, .* {name}"):
        build_mapper(mapper_cfg, is_train=True)
    mapper_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 65
    build_mapper(mapper_cfg, is_train=True)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("key", "value"), [("MIN_SIZE_TRAIN_SAMPLING", "both"), ("CROP.TYPE", "square")]
)
def test_values_not_accepted_are_named(mapper_cfg, key, value):
    mapper_cfg.INPUT.CROP.ENABLED = True
    mapper_cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ValueError, match=rf"INPUT\.{key} is '{value}': expected"):
        build_mapper(mapper_cfg, is_train=True)
