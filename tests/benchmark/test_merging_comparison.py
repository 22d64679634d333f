import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from proscale.benchmark.latency import TOTAL
from proscale.benchmark.merging_comparison import (
    BACKBONE,
    REST,
    VARIANTS,
    MergedModel,
    compare_merging,
    multiply_adds,
)

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
    plain = results["none"]
    assert plain.agreement == 100
    for name, result in results.items():
        # One class in the truth: its accuracy is that of all pixels.
        assert result.metrics["mACC"] == result.metrics["pACC"]
        assert [len(result.times[part].samples) for part in (BACKBONE, REST, TOTAL)] == [2, 2, 2]
        if name != "none":
            assert 25 < result.agreement < 100, name
            assert result.multiply_adds < plain.multiply_adds, name
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
