"""The training mapper: masks follow the image, what must be left out is, faults are named.

Where possible an image shows the ids of its own segments as colours, so that after any transform
the image itself says where every segment is.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.config.schema import add_proscale_config
from proscale.data import build_mapper
from proscale.data.formats.image_file import id_to_rgb, write_panoptic_png

# 10334639 and 16777215 do not survive formats with fewer than 24 bits, 1 and 255 are small.
IDS = (10334639, 1, 16777215, 255, 65536)
CATEGORIES = (80, 0, 5, 5, 132)
SIZE = 96


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.INPUT.IMAGE_SIZE = SIZE
    cfg.INPUT.FORMAT = "RGB"
    return cfg


def make_entry(folder: Path, ids: np.ndarray, crowd: tuple[int, ...] = ()) -> dict:
    """Write the data set entry of an image that shows its segments' ids as colours."""
    write_panoptic_png(folder / "ids.png", ids)
    Image.fromarray(id_to_rgb(ids)).save(folder / "image.png")
    return {
        "file_name": str(folder / "image.png"),
        "image_id": 7,
        "pan_seg_file_name": str(folder / "ids.png"),
        "segments_info": [
            {"id": id_, "category_id": category, "iscrowd": int(id_ in crowd), "isthing": True}
            for id_, category in zip(IDS, CATEGORIES, strict=True)
            if id_ in ids
        ],
    }


def blocks(height: int = 70, width: int = 90) -> np.ndarray:
    """Ids in rectangles of several sizes, with void at the right."""
    ids = np.zeros((height, width), np.int64)
    ids[:30, :40], ids[30:, :20], ids[30:, 20:40] = IDS[:3]
    ids[:, 40:70], ids[10:50, 50:60] = IDS[3], IDS[4]
    return ids


def shown(image: torch.Tensor, id_: int) -> torch.Tensor:
    """(H, W) bool: where a (3, H, W) image has the colour of an id."""
    color = torch.from_numpy(id_to_rgb(np.array(id_)))
    return (image == color[:, None, None]).all(dim=0)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_masks_cover_the_pixels_that_show_their_id(cfg, tmp_path, flip):
    cfg.INPUT.RANDOM_FLIP = flip
    mapper = build_mapper(cfg, is_train=True)
    # Nearest-neighbour resizing keeps the colours; otherwise the image's is bilinear.
    for augmentation in mapper.augmentations.augs:
        if hasattr(augmentation, "interp"):
            augmentation.interp = Image.Resampling.NEAREST
    entry = make_entry(tmp_path, blocks())
    category_of = dict(zip(IDS, CATEGORIES, strict=True))
    np.random.seed(0)
    seen = set()
    for _ in range(30):
        sample = mapper(entry)
        instances = sample["instances"]
        occurring = [id_ for id_ in IDS if shown(sample["image"], id_).any()]
        assert instances.gt_classes.tolist() == [category_of[id_] for id_ in occurring]
        for mask, id_ in zip(instances.gt_masks.tensor, occurring, strict=True):
            assert torch.equal(mask, shown(sample["image"], id_))
        seen.add(len(occurring))
    assert len(seen) > 1  # some crops left segments out


@pytest.mark.parametrize("transpose", [False, True])
def test_masks_stay_aligned_with_the_bilinear_image(cfg, tmp_path, transpose):
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.IMAGE_SIZE = 64
    # At 64/40 both borders fall where sampling pixel corners instead of centres would be seen.
    ids = np.full((40, 40), 16777215)
    ids[:, 7:22] = 1  # nearly black on white
    sample = build_mapper(cfg, is_train=True)(make_entry(tmp_path, ids.T if transpose else ids))
    dark = sample["image"].float().mean(dim=0) < 128
    assert sample["instances"].gt_classes[0] == 0
    assert torch.equal(sample["instances"].gt_masks.tensor[0], dark)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
def test_sample_has_the_fixed_size_and_types(cfg, tmp_path, scale):
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = scale
    sample = build_mapper(cfg, is_train=True)(make_entry(tmp_path, blocks()))
    instances = sample["instances"]
    n = len(instances)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert (sample["height"], sample["width"], sample["image_id"]) == (70, 90, 7)
    assert sample["image"].shape == (3, SIZE, SIZE) and sample["image"].dtype == torch.uint8
    assert instances.image_size == (SIZE, SIZE)
    assert instances.gt_classes.shape == (n,) and instances.gt_classes.dtype == torch.int64
    masks = instances.gt_masks.tensor
    assert masks.shape == (n, SIZE, SIZE) and masks.dtype == torch.bool
    assert masks.sum(dim=0).max() <= 1


def test_padding_is_grey_at_right_and_bottom_and_in_no_mask(cfg, tmp_path):
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 0.5  # 90 x 70 becomes 48 x 37
    sample = build_mapper(cfg, is_train=True)(make_entry(tmp_path, blocks()))
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[:37, :48] = False
    assert (sample["image"][:, outside] == 128).all()
    assert not sample["instances"].gt_masks.tensor[:, outside].any()
    assert not (sample["image"][:, :37, :48] == 128).all(dim=1).any()


def test_segments_with_one_category_stay_apart(cfg, tmp_path):
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    instances = build_mapper(cfg, is_train=True)(make_entry(tmp_path, blocks()))["instances"]
    assert instances.gt_classes.tolist() == list(CATEGORIES)


def test_crowd_is_no_target(cfg, tmp_path):
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    entry = make_entry(tmp_path, blocks(), crowd=IDS[2:4])
    instances = build_mapper(cfg, is_train=True)(entry)["instances"]
    assert instances.gt_classes.tolist() == [80, 0, 132]


@pytest.mark.parametrize("case", ["void", "crowd"])
def test_image_without_target(cfg, tmp_path, case):
    ids = np.full((40, 50), IDS[0] if case == "crowd" else 0)
    entry = make_entry(tmp_path, ids, crowd=IDS[:1])
    instances = build_mapper(cfg, is_train=True)(entry)["instances"]
    assert len(instances) == 0
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.tensor.shape == (0, SIZE, SIZE)
    assert instances.gt_masks.tensor.dtype == torch.bool


def test_seed_decides_and_entry_is_kept(cfg, tmp_path):
    entry = make_entry(tmp_path, blocks())
    before = copy.deepcopy(entry)
    mapper = build_mapper(cfg, is_train=True)
    images = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        images.append(mapper(entry)["image"])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert entry == before


def test_image_format(cfg, tmp_path):
    entry = make_entry(tmp_path, blocks())
    images = []
    for cfg.INPUT.FORMAT in ("RGB", "BGR"):
        np.random.seed(0)
        images.append(build_mapper(cfg, is_train=True)(entry)["image"])
    assert torch.equal(images[0], images[1].flip(0))
    assert not torch.equal(images[0], images[1])


def test_short_edge_scaling_limits_categories(cfg, tmp_path):
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    cfg.INPUT.MIN_SIZE_TRAIN = (70,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = (20, 20)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.9
    entry = make_entry(tmp_path, blocks(), crowd=IDS[:1])
    mapper = build_mapper(cfg, is_train=True)
    category_of = dict(zip(IDS, CATEGORIES, strict=True))
    np.random.seed(0)
    with_one = 0
    for _ in range(40):
        sample = mapper(entry)
        assert sample["image"].shape == (3, 20, 20)
        occurring = [id_ for id_ in IDS[1:] if shown(sample["image"], id_).any()]
        instances = sample["instances"]
        assert instances.gt_classes.tolist() == [category_of[id_] for id_ in occurring]
        with_one += len({category_of[id_] for id_ in occurring}) < 2
    # Two segments of one category count as one, the crowd and void not at all.
    assert with_one < 8


def test_missing_files_are_named(cfg, tmp_path):
    mapper = build_mapper(cfg, is_train=True)
    entry = make_entry(tmp_path, blocks())
    for key in ("file_name", "pan_seg_file_name"):
        with pytest.raises(FileNotFoundError, match="absent"):
            mapper({**entry, key: str(tmp_path / "absent.png")})


def test_size_of_image_and_png_must_agree(cfg, tmp_path):
    entry = make_entry(tmp_path, blocks())
    write_panoptic_png(tmp_path / "ids.png", blocks()[:, :-1])
    with pytest.raises(ValueError, match=r"ids\.png: it has .*\(70, 89\): expected \(70, 90\)"):
        build_mapper(cfg, is_train=True)(entry)


def test_ids_of_png_and_entry_must_agree(cfg, tmp_path):
    entry = make_entry(tmp_path, blocks())
    entry["segments_info"][0]["id"] = 77
    with pytest.raises(ValueError, match=r"ids\.png: segment 77 has no pixels"):
        build_mapper(cfg, is_train=True)(entry)
    del entry["segments_info"][0]
    with pytest.raises(ValueError, match=rf"ids\.png: id {IDS[0]}, \d+ pixels: expected the ids"):
        build_mapper(cfg, is_train=True)(entry)


def test_unknown_mapper_and_flip_are_refused(cfg):
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP is 'diagonal': expected 'none'"):
        build_mapper(cfg, is_train=True)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_lsj"
    with pytest.raises(
        ValueError,
        match=r"INPUT\.DATASET_MAPPER_NAME is 'coco_lsj': expected \['coco_instance_lsj', ",
    ):
        build_mapper(cfg, is_train=True)


@pytest.mark.parametrize("has_crowd", [False, True])
def test_real_images_at_their_own_size(cfg, sample_coco, has_crowd):
    cfg.INPUT.IMAGE_SIZE = 640
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = build_mapper(cfg, is_train=True)
    entries = [
        entry
        for entry in DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
        if max(entry["height"], entry["width"]) == 640
        and any(s["iscrowd"] for s in entry["segments_info"]) == has_crowd
    ]
    for entry in entries[:5]:
        segments = [s for s in entry["segments_info"] if not s["iscrowd"]]
        instances = mapper(entry)["instances"]
        assert instances.gt_classes.tolist() == [s["category_id"] for s in segments]
        masks = instances.gt_masks.tensor
        assert masks.flatten(1).sum(dim=1).tolist() == [s["area"] for s in segments]
    assert len(entries) >= 2
