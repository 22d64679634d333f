"""Own data and other classes in the trainer and in every process of train_net.py."""

import logging
from argparse import Namespace

import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from proscale.config import setup_cfg
from proscale.engine import run


def test_every_process_registers_the_data(own_block, tmp_path, monkeypatch):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"DATASETS": {"OWN": [own_block("semantic")]}}))
    cfg = setup_cfg(str(file), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output")])
    # As in a process that was started with the configuration.
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    trained_on = []

    def train(args, cfg, *_):
        trained_on.extend(DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "default_setup", lambda cfg, args: None)
    monkeypatch.setattr(run, "setup_logger", lambda *_, **__: None)
    run.main(Namespace(eval_only=False, resume=False, overwrite=False), cfg)
    assert len(trained_on) == 3


def test_training_starts_from_weights_of_other_classes(
    toy_cfg, toy_trainer, small_cfg, tmp_path, caplog
):
    small_cfg.SOLVER, small_cfg.DATASETS = toy_cfg().SOLVER, toy_cfg().DATASETS
    small_cfg.OUTPUT_DIR = str(tmp_path / "output")
    small_cfg.DATALOADER.NUM_WORKERS = 0
    test = small_cfg.MODEL.MASK_FORMER.TEST
    test.PANOPTIC_ON, test.INSTANCE_ON = False, False
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"model": build_model(small_cfg).state_dict()}, small_cfg.MODEL.WEIGHTS)

    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    trainer = toy_trainer(small_cfg)
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load(resume=False)
    lines = [record.message for record in caplog.records if "class layer" in record.message]
    assert len(lines) == 1
    assert "of 134 outputs, this model one of 10" in lines[0]
