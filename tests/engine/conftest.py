"""A model, a data set and an evaluator small enough to train in milliseconds."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from proscale.engine import setup_cfg, trainer

DATASET = "engine_toy"


@META_ARCH_REGISTRY.register()
class ToySegmenter(nn.Module):
    """Losses averaged over images and over targets, as the real models' are; any batch size."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4))
        self.query_embed = nn.Embedding(1, 4)
        self.head = nn.Linear(4, 2)
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batch: list[dict], target_counts: list[int] | None = None):
        features = [self.backbone(sample["image"][None]).mean((2, 3))[0] for sample in batch]
        outputs = [self.head((f + self.query_embed.weight[0]).relu()) for f in features]
        if not self.training:
            return [{"score": output.sum()} for output in outputs]
        counts = [len(sample["instances"]) for sample in batch]
        if target_counts is None:
            target_counts = counts
        targets = len(batch) * sum(target_counts) / len(target_counts)
        per_target = sum(n * output[1] ** 2 for n, output in zip(counts, outputs, strict=True))
        return {
            "loss_ce": torch.stack([output[0].cos() for output in outputs]).mean(),
            "loss_mask": per_target / targets,
        }


class CountingEvaluator(DatasetEvaluator):
    """Tells how many images it saw; counts the evaluations made."""

    evaluations = 0

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(outputs)

    def evaluate(self):
        CountingEvaluator.evaluations += 1
        return {"toy": {"images": float(self.images), "PQ-cat": float("nan")}}


def map_entry(entry: dict) -> dict:
    generator = torch.Generator().manual_seed(entry["image_id"])
    image = torch.rand(3, 4, 4, generator=generator)
    return {**entry, "image": image, "instances": [0] * (1 + entry["image_id"] % 3)}


@pytest.fixture
def make_batch():
    """Returns a function: number of images → batch, with 2, 3, 1, 2, … targets."""

    def make(size: int) -> list[dict]:
        return [map_entry({"file_name": f"{i}.jpg", "image_id": i}) for i in range(1, size + 1)]

    return make


@pytest.fixture
def toy_cfg(tmp_path):
    """Returns a function: KEY VALUE overrides → configuration of a toy training run."""
    entries = [{"file_name": "1.jpg", "image_id": 1, "width": 4, "height": 4}]
    DatasetCatalog.register(DATASET, lambda: entries)

    def make(*overrides) -> CfgNode:
        settings = {
            "MODEL.META_ARCHITECTURE": "ToySegmenter",
            "MODEL.DEVICE": "cpu",
            "MODEL.WEIGHTS": "",
            "DATASETS.TRAIN": (DATASET,),
            "DATASETS.TEST": (DATASET,),
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.BASE_LR": 0.05,
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.STEPS": (4,),
            "SOLVER.MAX_ITER": 6,
            "SOLVER.CHECKPOINT_PERIOD": 3,
            "OUTPUT_DIR": str(tmp_path / "output"),
            "SEED": 1,
        }
        settings |= dict(zip(overrides[::2], overrides[1::2], strict=True))
        return setup_cfg("", [item for pair in settings.items() for item in pair])

    yield make
    DatasetCatalog.remove(DATASET)


@pytest.fixture
def toy_trainer(monkeypatch):
    """Returns a function: configuration → Trainer on the toy data, not loaded yet."""
    monkeypatch.setattr(trainer, "build_mapper", lambda cfg, is_train: map_entry)
    monkeypatch.setattr(trainer, "build_evaluator", lambda cfg, name, folder: CountingEvaluator())
    monkeypatch.setattr(CountingEvaluator, "evaluations", 0)

    def make(cfg: CfgNode) -> trainer.Trainer:
        torch.manual_seed(0)
        return trainer.Trainer(cfg)

    return make


@pytest.fixture
def evaluations():
    """Returns a function that tells how often the toy data were evaluated in this test."""
    return lambda: CountingEvaluator.evaluations
