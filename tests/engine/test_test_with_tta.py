"""Evaluation with test-time augmentation through the trainer."""

import json
from pathlib import Path

from proscale.engine import trainer

RESULTS = {"toy_TTA": {"images": 1.0, "PQ-cat": None}}


class Views:
    """Stands for the wrapped model; keeps what it was made of."""

    def __init__(self, cfg, model):
        self.cfg, self.model = cfg, model

    def __call__(self, samples):
        return self.model(samples)


def test_results_carry_the_suffix_and_views_the_original_image(toy_cfg, toy_trainer, monkeypatch):
    cfg = toy_cfg("TEST.AUG.MIN_SIZES", (4, 8))
    made, loaders = [], []
    load = trainer.Trainer.build_test_loader.__func__

    def wrap(cfg, model):
        made.append(Views(cfg, model))
        return made[-1]

    def spy(cls, cfg, name):
        loaders.append(cfg.INPUT.MIN_SIZE_TEST)
        return load(cls, cfg, name)

    monkeypatch.setattr(trainer, "with_test_time_augmentation", wrap)
    monkeypatch.setattr(trainer.Trainer, "build_test_loader", classmethod(spy))
    model = toy_trainer(cfg).model.eval()
    results = trainer.Trainer.test_with_TTA(cfg, model)
    assert results["toy_TTA"]["images"] == 1.0
    assert made[0].cfg is cfg and made[0].model is model
    assert loaders == [0] and cfg.INPUT.MIN_SIZE_TEST != 0
    written = json.loads(Path(cfg.OUTPUT_DIR, trainer.RESULTS_TTA_FILE).read_text())
    assert written == RESULTS
    assert not Path(cfg.OUTPUT_DIR, trainer.RESULTS_FILE).exists()
