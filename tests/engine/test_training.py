"""``proscale.train``: a training from Python, with hooks, and one after another."""

import pytest
import yaml
from detectron2.engine import HookBase

import proscale
from proscale.errors import ConfigError


class Iterations(HookBase):
    """Notes what a hook sees."""

    def __init__(self):
        self.seen = []

    def after_step(self):
        self.seen.append((self.trainer.iter, self.trainer.storage.iter))


@pytest.fixture
def config(toy_cfg, toy_trainer, tmp_path):
    """A YAML file of a toy training."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(toy_cfg().dump())))
    return path


def test_hooks_keys_and_results(config, tmp_path):
    hook = Iterations()
    results = proscale.train(config, hooks=[hook], SOLVER={"MAX_ITER": 3, "STEPS": ()})
    assert hook.seen == [(0, 0), (1, 1), (2, 2)]
    assert results["toy"]["images"] == 1
    saved = yaml.unsafe_load((tmp_path / "output" / "config.yaml").read_text())
    assert saved["SOLVER"]["MAX_ITER"] == 3


def test_a_second_training_has_its_own_log(config, tmp_path):
    keys = {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": ()}
    proscale.train(config, **keys)
    first = (tmp_path / "output" / "log.txt").read_text()
    proscale.train(config, **keys, OUTPUT_DIR=str(tmp_path / "second"))
    assert (tmp_path / "output" / "log.txt").read_text() == first
    assert "Starting training" in (tmp_path / "second" / "log.txt").read_text()


def test_used_folders_are_resumed_or_overwritten(config, tmp_path):
    proscale.train(config, SOLVER={"MAX_ITER": 3})
    with pytest.raises(ConfigError, match="has last_checkpoint of a training"):
        proscale.train(config)
    for options, first in (({"resume": True}, 3), ({"overwrite": True}, 0)):
        hook = Iterations()
        proscale.train(config, hooks=[hook], **options, SOLVER={"MAX_ITER": 5})
        assert [iteration for iteration, _ in hook.seen] == list(range(first, 5))


def test_unknown_keys_name_the_nearest(config):
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITERS.*SOLVER\.MAX_ITER"):
        proscale.train(config, SOLVER={"MAX_ITERS": 3})
