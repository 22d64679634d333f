"""The command, on a small model and a few generated images."""

import re

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from proscale.checkpoint import load_weights
from proscale.config import setup_cfg
from proscale_cli import main


@pytest.fixture
def elastic(small_cfg, own_block, fill, tmp_path):
    """Configuration file of a small elastic model on own images, and its weights."""
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 1, 2]
    small_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    small_cfg.INPUT.MIN_SIZE_TEST = 64
    small_cfg.DATALOADER.NUM_WORKERS = 0
    document = yaml.safe_load(small_cfg.dump()) | {"DATASETS": {"OWN": [own_block("panoptic")]}}
    del document["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]
    file, weights = tmp_path / "elastic.yaml", tmp_path / "elastic.pth"
    file.write_text(yaml.safe_dump(document))
    model = build_model(setup_cfg(str(file), ["MODEL.DEVICE", "cpu"]))
    fill.fill_state_dict(model)
    torch.save({"model": model.state_dict()}, weights)
    return ["train-gate", "--config-file", str(file), "--weights", str(weights)]


def test_the_file_it_writes_predicts_with_the_gate(elastic, tmp_path, capsys, monkeypatch):
    # Three training images: the last one is held out.
    monkeypatch.setattr("proscale.engine.gate_training.HELD_OUT", 3)
    target = tmp_path / "gate.pth"
    main([*elastic, "--output", str(target), "--exits", "1,1,1:2,1,2"])
    printed = capsys.readouterr().out
    assert "3 images of own_panoptic_train" in printed
    assert "MODEL.PROSCALE.GATE [[1,1,1],[2,1,2]]" in printed
    keys = ["MODEL.PROSCALE.GATE", "[[1,1,1],[2,1,2]]", "MODEL.WEIGHTS", str(target)]
    cfg = setup_cfg(elastic[2], keys)
    model = build_model(cfg).eval()
    load_weights(model, cfg)
    assert re.search(r"^\| gate ", printed, re.MULTILINE)
    image = torch.zeros(3, 64, 64)
    with torch.no_grad():
        (gated,) = model([{"image": image}])
        same = 0
        for budget in ([1, 1, 1], [2, 1, 2]):
            model.set_budget(budget)
            same += torch.equal(gated["sem_seg"], model([{"image": image}])[0]["sem_seg"])
    assert same == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exits", "1,1,1"], "--exits: expected two budgets or more"),
        (["--exits", "1,1,1:3,1,2"], r"budget is \[3, 1, 2\]: expected, for each stage"),
        (["--beta", "2"], "--beta is 2.0: expected numbers from 0, below 1"),
    ],
)
def test_wrong_arguments_are_named(elastic, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([*elastic, "--output", str(tmp_path / "gate.pth"), *arguments])
