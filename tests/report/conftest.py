"""A folder as training and evaluation leave it, of a small model and five generated images."""

import json

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from proscale.config import setup_cfg
from proscale.engine.trainer import Trainer


@pytest.fixture
def make_run(own_block, small_cfg, tmp_path):
    """Returns a function: task → the folder of a run whose evaluation on two images is real."""

    def make(task="panoptic"):
        run = tmp_path / "<run> & 1"
        run.mkdir()
        test = small_cfg.MODEL.MASK_FORMER.TEST
        test.OBJECT_MASK_THRESHOLD = test.OVERLAP_THRESHOLD = 0.0
        test.PANOPTIC_ON, test.INSTANCE_ON = task == "panoptic", False
        test.SEMANTIC_ON = task == "semantic"
        small_cfg.OUTPUT_DIR = str(run)
        small_cfg.INPUT.MIN_SIZE_TEST = 64
        small_cfg.DATALOADER.NUM_WORKERS = 0
        content = yaml.safe_load(small_cfg.dump())
        content["DATASETS"]["OWN"] = [own_block(task)]
        for key in ("TRAIN", "TEST"):
            del content["DATASETS"][key]
        del content["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        cfg = setup_cfg(str(tmp_path / "own.yaml"))
        (run / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(0)
        model = build_model(cfg)
        torch.save({"model": model.state_dict()}, run / "model_final.pth")
        (run / "last_checkpoint").write_text("model_final.pth")
        Trainer.test(cfg, model)
        lines = [
            {"iteration": i, "total_loss": 9.0 - i, "loss_ce": 1.0, "time": 0.5, "lr": 0.1}
            for i in (0, 1)
        ]
        (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "log.txt").write_text("[11/21 11:25:04] d2 INFO: iter: 1 max_mem: 2048M\n")
        return run

    return make
