"""Every configuration file builds a model, with as many classes as its data set has."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from proscale.data import build_mapper
from proscale.data.datasets.mapillary import register_mapillary

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("base"))


# One file of every folder: what they say about data is in the folder's base file.
FILE_OF_FOLDER = {file.parent: file for file in FILES if "segformer" not in file.name}


@pytest.fixture(autouse=True)
def mapillary(tmp_path, restored_catalogs) -> None:
    """Mapillary Vistas' classes, which come from a file of the data set."""
    labels = [
        {"readable": str(i), "instances": i % 2 == 0, "evaluate": i < 65, "color": [i, i, i]}
        for i in range(66)
    ]
    (tmp_path / "mapillary_vistas").mkdir()
    (tmp_path / "mapillary_vistas" / "config.json").write_text(json.dumps({"labels": labels}))
    register_mapillary(tmp_path)


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_builds(file, cfg):
    cfg.merge_from_file(str(file))
    # Shapes without memory: the largest models hold a gigabyte.
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    if cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "PROSCALE":
        encoder = model.sem_seg_head.pixel_decoder.transformer.encoder
        assert encoder.num_layers == cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS


@pytest.mark.parametrize(
    "file", FILE_OF_FOLDER.values(), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_config_fits_its_data(file, cfg):
    cfg.merge_from_file(str(file))
    test = cfg.MODEL.MASK_FORMER.TEST
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
            assert len(metadata.keypoint_names) == cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS
            continue
        only_things = test.INSTANCE_ON and not test.PANOPTIC_ON
        only_things |= cfg.MODEL.META_ARCHITECTURE == "Detector"
        classes = metadata.thing_classes if only_things else metadata.stuff_classes
        assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if test.PANOPTIC_ON:
            things = metadata.thing_dataset_id_to_contiguous_id.values()
            stuff = metadata.stuff_dataset_id_to_contiguous_id.values()
            assert sorted([*things, *stuff]) == list(range(len(classes)))
    build_mapper(cfg, is_train=True)
