"""A checkpoint with its description is all that a model needs; a foreign one is checked."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from proscale.checkpoint import (
    DESCRIPTION,
    ModelDescription,
    read_checkpoint,
    read_description,
    write_checkpoint,
)
from proscale.config import setup_cfg
from proscale.errors import CheckpointError, UserError
from proscale.predict import Predictor
from proscale_cli import main

pytestmark = pytest.mark.usefixtures("restored_catalogs")

FLOWERS = {
    "stuff_classes": ["rose", "tulip"],
    "thing_classes": ["rose", "tulip"],
    "stuff_colors": [[255, 0, 0], [0, 255, 0]],
    "thing_dataset_id_to_contiguous_id": [[3, 0]],
    "stuff_dataset_id_to_contiguous_id": [[9, 1]],
}


@pytest.fixture
def cfg(own_block):
    """The demo's model on own data."""
    overrides = [
        *("DATASETS.OWN", str([own_block("panoptic")])),
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64"),
    ]
    return setup_cfg("demo/proscale_r18_111", overrides)


@pytest.fixture
def checkpoint(cfg, tmp_path):
    """Returns a function: suffix → file of a model with random weights that describes itself."""

    def write(suffix: str):
        path = tmp_path / f"model{suffix}"
        texts = {DESCRIPTION: ModelDescription.of(cfg).text()}
        state = build_model(cfg).state_dict()
        write_checkpoint(path, state, container="model", texts=texts)
        return path

    return write


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_predicts_without_configuration_and_data(checkpoint, cfg, own_data, suffix):
    path, classes = checkpoint(suffix), MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    colors = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_colors
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    image = torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()
    own_data.rename(own_data.with_name("elsewhere"))
    predictor = Predictor(path)
    assert list(predictor.classes.names) == classes
    assert [list(color) for color in predictor.classes.colors] == [list(c) for c in colors]
    assert predictor(image).task == "panoptic"
    assert predictor.cfg.DATASETS.OWN == []
    assert predictor.cfg.DATASETS.TEST == cfg.DATASETS.TEST


def test_own_data_that_are_there_can_be_evaluated(checkpoint, cfg):
    path = checkpoint(".pth")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    described = setup_cfg(str(path))
    assert described.DATASETS.TEST == cfg.DATASETS.TEST
    assert set(cfg.DATASETS.TEST) <= set(DatasetCatalog.list())
    assert str(path) == described.MODEL.WEIGHTS


def test_weights_are_those_of_the_file(checkpoint):
    path = checkpoint(".safetensors")
    state = read_checkpoint(path)
    model = Predictor(path)._model
    name = "sem_seg_head.predictor.query_feat.weight"
    assert torch.equal(dict(model.named_parameters())[name], state[name])


def test_other_classes_of_the_same_name_are_kept_apart(cfg):
    description = ModelDescription.of(cfg)
    name = description.register_classes()
    assert name == description.dataset
    other = replace(description, classes=FLOWERS)
    alias = other.register_classes()
    assert alias != name
    assert MetadataCatalog.get(alias).stuff_classes == ["rose", "tulip"]
    assert MetadataCatalog.get(alias).thing_dataset_id_to_contiguous_id == {3: 0}
    assert other.register_classes() == alias
    assert MetadataCatalog.get(name).stuff_classes != ["rose", "tulip"]


def test_nothing_of_the_machine_is_taken_over(cfg, checkpoint, tmp_path):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TRUST_WEIGHTS, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = True, "/nowhere", "http://x/y"
    path = tmp_path / "other.pth"
    description = ModelDescription.of(cfg)
    assert "TRUST_WEIGHTS: false" in description.config
    description = replace(description, config=cfg.dump())
    state = build_model(cfg).state_dict()
    write_checkpoint(path, state, container="model", texts={DESCRIPTION: description.text()})
    described = setup_cfg(str(path))
    assert not described.MODEL.TRUST_WEIGHTS
    assert described.OUTPUT_DIR == "./output"
    assert str(path) == described.MODEL.WEIGHTS


def test_conversion_keeps_it(checkpoint, tmp_path, capsys):
    source, target = checkpoint(".pth"), tmp_path / "small.safetensors"
    main(["convert", str(source), str(target)])
    capsys.readouterr()
    assert read_description(target) == read_description(source)


def test_files_without_are_told(tmp_path):
    path = tmp_path / "plain.pth"
    write_checkpoint(path, {"a": torch.zeros(1)}, container=None)
    assert read_description(path) is None
    with pytest.raises(CheckpointError, match=r"plain\.pth does not say of which model it is"):
        setup_cfg(str(path))


def _written(tmp_path, text):
    path = tmp_path / "foreign.pth"
    write_checkpoint(path, {"a": torch.zeros(1)}, container="model", texts={DESCRIPTION: text})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "_BASE_: /etc/passwd"}, "has _BASE_: expected a complete one"),
        ({"config": "MODEL: !!python/object/apply:os.system [ls]"}, "is refused"),
        ({"config": "MODEL: {NO_SUCH_KEY: 1}"}, "there is no config key MODEL.NO_SUCH_KEY"),
        ({"config": "a" * 2**21}, "characters: expected fewer"),
        ({"config": 3}, "no texts"),
        ({"dataset": "a\nb"}, "no texts"),
        ({"classes": [1]}, "classes in its description is .* expected an object"),
        ({"classes": "x"}, "expected an object"),
        ({"classes": {"thing_classes": [1]}}, "thing_classes in its description is"),
        ({"classes": {"json_file": "/etc/passwd"}}, "json_file in its description is"),
        ({"classes": {"stuff_colors": [[1, 2]]}}, "stuff_colors in its description is"),
        ({"classes": {"thing_dataset_id_to_contiguous_id": [[1, -2]]}}, "expected names"),
    ],
)
def test_foreign_descriptions_are_checked(tmp_path, cfg, change, message):
    content = asdict(ModelDescription.of(cfg)) | change
    with pytest.raises(UserError, match=message) as caught:
        setup_cfg(str(_written(tmp_path, json.dumps(content))))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "[" * 100_000])
def test_damaged_descriptions_are_one_sentence(tmp_path, text):
    with pytest.raises(CheckpointError, match="its description cannot be read"):
        read_description(_written(tmp_path, text))
