import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from proscale.benchmark import agreement
from proscale.benchmark.latency import TOTAL
from proscale.benchmark.merging import (
    KEYS_AND_VALUES,
    QUERIES,
    REST,
    VARIANTS,
    MergedMap,
    MergedModel,
    _overlay,
    compare_merging,
    draw_merged_tokens,
    merged_maps,
    multiply_adds,
)
from proscale.cost.model_cost import BACKBONE
from proscale.modeling.backbones import MixVisionTransformer

DATASET = "merging_toy"
CLASSES = 4
SIZE = (128, 160)


@pytest.fixture
def segformer_cfg(small_segformer_cfg):
    small_segformer_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    small_segformer_cfg.DATASETS.TEST = (DATASET,)
    return small_segformer_cfg


@pytest.fixture
def samples(tmp_path):
    """Two random images, all pixels of class 1."""
    entries = []
    for i in range(2):
        truth = tmp_path / f"{i}_labels.png"
        Image.fromarray(np.ones(SIZE, dtype=np.uint8)).save(truth)
        entries.append({"file_name": f"{i}.png", "sem_seg_file_name": str(truth)})
    DatasetCatalog.register(DATASET, lambda: entries)
    MetadataCatalog.get(DATASET).set(stuff_classes=list("abcd"), ignore_label=255)
    generator = torch.Generator().manual_seed(0)
    yield [
        [{**entry, "image": torch.randint(0, 256, (3, *SIZE), generator=generator).byte()}]
        for entry in entries
    ]
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_comparison(segformer_cfg, samples, fill):
    merged = MergedModel(segformer_cfg, fill.fill_state_dict)
    results = compare_merging(merged, samples, DATASET, repeats=2)
    assert tuple(results) == VARIANTS
    unmerged = results["none"]
    assert unmerged.agreement == 100
    for name, result in results.items():
        # One class in the truth: its accuracy is that of all pixels.
        assert result.metrics["mACC"] == result.metrics["pACC"]
        assert [len(result.times[part].samples) for part in (BACKBONE, REST, TOTAL)] == [2, 2, 2]
        if name != "none":
            assert 25 < result.agreement < 100, name
            assert result.multiply_adds < unmerged.multiply_adds, name
    # By hand, for one variant.
    labels = {}
    for name in ("none", "bsm_fast"):
        model = merged.segmenter(name)
        with torch.no_grad():
            labels[name] = torch.stack([model(s)[0]["sem_seg"].argmax(0) for s in samples])
    share = (labels["none"] == labels["bsm_fast"]).float().mean().item()
    assert results["bsm_fast"].agreement == pytest.approx(100 * share)
    assert results["bsm_fast"].metrics["pACC"] == pytest.approx(
        100 * (labels["bsm_fast"] == 1).float().mean().item()
    )


class Evaluator:
    """Stands for a pose evaluator: the PCK of its first person's first coordinate."""

    def reset(self):
        self.first = None

    def process(self, batch, outputs):
        self.first = self.first or float(outputs[0]["instances"].pred_keypoints[0, 0, 0])

    def evaluate(self):
        return {"keypoints": {"PCK@0.1": self.first}}


def person(points):
    """What a pose estimator gives of a person with these keypoints."""
    keypoints = torch.cat([torch.tensor(points).float(), torch.ones(len(points), 1)], dim=1)
    return {"instances": Instances((50, 50), pred_keypoints=keypoints[None])}


def test_keypoints_that_stay(small_pose_cfg, monkeypatch):
    monkeypatch.setattr(agreement, "build_evaluator", lambda cfg, name: Evaluator())
    found = agreement.PoseAgreement(small_pose_cfg, "poses", ["none", "merged"])
    # Boxes of 40 and 20 pixels: 0.05 of them are 2 and 1.
    batch = [{"box": torch.tensor([0.0, 0, 40, 10])}, {"box": torch.tensor([0.0, 0, 20, 20])}]
    outputs = {
        "none": [person([(3, 4), (10, 10)]), person([(3, 4), (10, 10)])],
        "merged": [person([(4.5, 4), (10, 13)]), person([(4.5, 4), (10, 10.5)])],
    }
    found.add(batch, outputs)
    assert found.result("none") == ({"PCK@0.1": 3.0}, 100.0)
    assert found.result("merged") == ({"PCK@0.1": 4.5}, 50.0)


def test_crops_of_persons_are_not_halved(small_pose_cfg):
    merged = MergedModel(small_pose_cfg, lambda model: None)
    assert merged.variants == VARIANTS[:-1]
    assert multiply_adds(merged, "bsm_fast", (96, 64)) < multiply_adds(merged, "none", (96, 64))


def test_windows_count_each(segformer_cfg):
    once = multiply_adds(MergedModel(segformer_cfg, lambda model: None), "none", (128, 160))
    segformer_cfg.TEST.SLIDING_WINDOW.ENABLED = True
    segformer_cfg.TEST.SLIDING_WINDOW.CROP_SIZE = [128, 160]
    segformer_cfg.TEST.SLIDING_WINDOW.STRIDE = [64, 64]
    by_windows = MergedModel(segformer_cfg, lambda model: None)
    assert multiply_adds(by_windows, "none", (128, 224)) == 2 * once


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.BACKBONE.NAME", "D2SwinTransformer"], r"BACKBONE\.NAME is D2Swin.*: expected Mix"),
        (
            ["MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False],
            r"SEMANTIC_ON is False: expected True",
        ),
    ],
)
def test_other_models_are_refused(segformer_cfg, overrides, message):
    segformer_cfg.merge_from_list(overrides)
    with pytest.raises(ValueError, match=message):
        MergedModel(segformer_cfg, lambda model: None)


def test_empty_data_set_is_refused(segformer_cfg, samples):
    with pytest.raises(ValueError, match="data set merging_toy has no images"):
        compare_merging(MergedModel(segformer_cfg, lambda model: None), [], DATASET, repeats=1)


class Model(nn.Module):
    def __init__(self, token_merging):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = MixVisionTransformer(
            embed_dim=8,
            depths=[2, 1, 1, 1],
            num_heads=[1, 2, 3, 4],
            sr_ratios=[8, 4, 2, 1],
            token_merging=token_merging,
        )

    def forward(self, batch):
        return self.backbone(batch[0]["image"][None])


@pytest.fixture
def image():
    return torch.randn(3, 128, 192, generator=torch.Generator().manual_seed(0))


def test_pooling_merges_its_windows(image):
    merging = [{}, {"q_mode": "n2d", "q_s": 2}, {"kv_mode": "n2d", "kv_s": 2}, {}]
    queries, keys = merged_maps(Model(merging).eval(), {"image": image})
    assert (queries.stage, queries.side, queries.length) == (2, QUERIES, 8 * 12)
    windows = np.arange(8 * 12).reshape(8, 12).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(queries.owners, windows)
    assert (keys.stage, keys.side, keys.owners.shape) == (3, KEYS_AND_VALUES, (4, 6))


def test_matching_merges_its_fraction(image):
    """Stages 1 and 2 of bsm_hq: 60 % of the reduced keys; 3 and 4: 80 % of the queries."""
    maps = merged_maps(Model("bsm_hq").eval(), {"image": image})
    assert [(m.stage, m.side, m.owners.shape) for m in maps] == [
        (1, KEYS_AND_VALUES, (4, 6)),
        (2, KEYS_AND_VALUES, (4, 6)),
        (3, QUERIES, (8, 12)),
        (4, QUERIES, (4, 6)),
    ]
    assert [m.length for m in maps] == [24 - 14, 24 - 14, 96 - 76, 24 - 19]


def test_nothing_merged_nothing_noted(image):
    assert merged_maps(Model("none").eval(), {"image": image}) == []


def test_model_is_left_as_it_was(image):
    model = Model("bsm_fast").eval()
    with torch.no_grad():
        before = model([{"image": image}])
        merged_maps(model, {"image": image})
        after = model([{"image": image}])
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture(tmp_path, suffix):
    owners = np.array([[0, 0, 1], [2, 3, 3]])
    path = tmp_path / "new" / f"merged{suffix}"
    image = np.full((20, 28, 3), 100, dtype=np.uint8)
    maps = {"one": [MergedMap(1, QUERIES, owners)], "two": [MergedMap(2, QUERIES, owners)] * 2}
    draw_merged_tokens(path, image, maps, padded_size=(32, 32))
    assert path.stat().st_size > 1000
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.width == 1000  # two panels


def test_tokens_alone_show_the_image():
    image = np.full((4, 6, 3), 51, dtype=np.uint8)
    picture = _overlay(image, np.array([[0, 0, 1], [2, 3, 3]]), padded_size=(4, 6))
    alone = picture[:2, 4:], picture[2:, :2]
    assert all(np.allclose(part, 0.2) for part in alone)
    assert not np.isclose(picture[:2, :4], 0.2).any()
    assert np.allclose(picture[2, 2:], 1.0)  # the border of the lower region
