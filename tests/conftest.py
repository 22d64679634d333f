"""Fixtures shared by all tests."""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale import add_proscale_config
from proscale.data.datasets.coco import register_coco
from proscale.data.persons import person_records
from tests.hostile import material

GOLDEN = Path(__file__).parent / "golden"
#: Where golden numbers are compared: benchmarks/gpu_check.py sets cuda.
GOLDEN_DEVICE = os.environ.get("PROSCALE_GOLDEN_DEVICE", "cpu")


@pytest.fixture(scope="session")
def sample_coco() -> Path:
    """The `coco` folder under `$DETECTRON2_DATASETS`, in Detectron2's layout; skips without it."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).resolve() / "coco"
    if not (root / "annotations" / "panoptic_val2017.json").is_file():
        pytest.skip(f"no COCO panoptic images under {root}; point DETECTRON2_DATASETS at them")
    return root


@pytest.fixture
def sample_persons(tmp_path, restored_catalogs) -> Callable[[str], list[dict]]:
    """`sample_persons(split)`: the persons of `$DETECTRON2_DATASETS/coco_person`, which is laid out
    as COCO, under the names of COCO; skips without it."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).resolve() / "coco_person"
    if not root.is_dir():
        pytest.skip(f"there is no {root}; point DETECTRON2_DATASETS at sample data")
    (tmp_path / "coco").symlink_to(root)
    register_coco(tmp_path)
    return lambda split: person_records(DatasetCatalog.get(f"keypoints_coco_2017_{split}"))


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Commands set loggers up for their process; the next test shall not see that."""
    names = (
        "detectron2",
        "fvcore",
        *(n for n in logging.root.manager.loggerDict if "proscale" in n),
    )
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture
def restored_catalogs() -> Iterator[None]:
    """Data sets registered in a test, anew or for the first time, are as before afterwards."""
    saved = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, content in saved:
        catalog.data = content


def load_script(path: Path) -> ModuleType:
    """A file outside of the package as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fill():
    """The module `golden/fill.py`: weights and inputs that the golden numbers were made with."""
    module = load_script(GOLDEN / "fill.py")
    for name in ("random_input", "random_image"):
        make = getattr(module, name)
        setattr(module, name, lambda *args, make=make: make(*args).to(GOLDEN_DEVICE))
    return module


@pytest.fixture
def golden(monkeypatch):
    """`golden(name)`: the arrays of a golden file, as tensors, and its `meta`.

    They, and all that the test makes, are on ``GOLDEN_DEVICE``, with products in full precision.
    """

    def load(name: str) -> SimpleNamespace:
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {
                key: torch.from_numpy(file[key]).to(GOLDEN_DEVICE)
                for key in file.files
                if key != "meta"
            }
            return SimpleNamespace(meta=json.loads(str(file["meta"])), **arrays)

    # TF32 has three digits; golden numbers are compared to three.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.device(GOLDEN_DEVICE):
        yield load


@pytest.fixture
def own_data(tmp_path) -> Path:
    """The folder of :func:`tests.hostile.material.make_own_data`.

    What is registered in the test is forgotten afterwards.
    """
    root = material.make_own_data(tmp_path / "own")
    before = set(DatasetCatalog.list())
    yield root
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def own_block(own_data):
    """Returns a function: task → the block of ``DATASETS.OWN`` for ``own_data``."""
    return lambda task: material.own_block(own_data, task)


@pytest.fixture
def cfg() -> CfgNode:
    """Detectron2's and our keys at their defaults, on the CPU."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.MODEL.DEVICE = GOLDEN_DEVICE
    return cfg


@pytest.fixture
def small_cfg(cfg) -> CfgNode:
    """A PRO-SCALE model that is small enough for tests, on the built-in COCO panoptic data set."""
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SWIN.EMBED_DIM = 16
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 2, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 4]
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "MaskFormerHead"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES = 133
    head.PIXEL_DECODER_NAME = "PROSCALE"
    head.TRANSFORMER_ENC_LAYERS = 2
    head.CONVS_DIM = 64
    head.MASK_DIM = 48
    node = cfg.MODEL.MASK_FORMER
    node.HIDDEN_DIM = 64
    node.NHEADS = 4
    node.DIM_FEEDFORWARD = 128
    node.DEC_LAYERS = 4
    node.NUM_OBJECT_QUERIES = 30
    node.DROPOUT = 0.0
    node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT = 2.0, 5.0, 5.0
    node.TRAIN_NUM_POINTS = 1024
    node.TEST.PANOPTIC_ON = True
    node.TEST.INSTANCE_ON = True
    node.TEST.OVERLAP_THRESHOLD = 0.8
    node.TEST.OBJECT_MASK_THRESHOLD = 0.8
    cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 1, 1]
    cfg.DATASETS.TRAIN = ("coco_2017_train_panoptic",)
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic",)
    return cfg


@pytest.fixture
def small_segformer_cfg(cfg) -> CfgNode:
    """A SegFormer that is small enough for tests, with 19 classes."""
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    cfg.MODEL.MIT.EMBED_DIM = 8
    cfg.MODEL.MIT.DEPTHS = [1, 2, 1, 1]
    cfg.MODEL.MIT.NUM_HEADS = [1, 2, 3, 4]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "SegFormerHead"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES = 19
    head.CONVS_DIM = 16
    head.NORM = "BN"
    return cfg


@pytest.fixture
def small_pose_cfg(cfg) -> CfgNode:
    """A pose estimator of COCO's 17 keypoints that is small enough for tests."""
    cfg.MODEL.META_ARCHITECTURE = "PoseEstimator"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    cfg.MODEL.MIT.EMBED_DIM = 8
    cfg.MODEL.MIT.DEPTHS = [1, 2, 1, 1]
    cfg.MODEL.MIT.NUM_HEADS = [1, 2, 3, 4]
    cfg.MODEL.POSE.INPUT_SIZE = [64, 96]
    cfg.MODEL.POSE_HEAD.CONVS_DIM = 16
    cfg.MODEL.POSE_HEAD.NORM = "BN"
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = ("keypoints_coco_2017_train",)
    cfg.DATASETS.TEST = ("keypoints_coco_2017_val",)
    return cfg


@pytest.fixture
def small_detector_cfg(cfg) -> CfgNode:
    """A DINO of five classes that is small enough for tests."""
    cfg.MODEL.META_ARCHITECTURE = "Detector"
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SWIN.EMBED_DIM = 16
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 4]
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.SWIN.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    cfg.MODEL.LITE_DETR.NUM_HIGH_LEVELS = 3
    node = cfg.MODEL.DETECTOR
    node.ENC_LAYERS, node.DEC_LAYERS, node.PROSCALE_NUM_LAYERS = 1, 2, [0, 1, 1, 1]
    node.DIM_FEEDFORWARD, node.NUM_QUERIES, node.DN_NUMBER = 48, 20, 12
    return cfg


@pytest.fixture(scope="session")
def reference():
    """The reference implementation of results, an oracle."""
    return load_script(GOLDEN.parents[1] / "benchmarks" / "reference_implementation.py")
