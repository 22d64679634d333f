"""A model, a data set and an evaluator small enough to train in milliseconds; and train_net.py in
processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from proscale.config import setup_cfg
from proscale.engine import trainer

ROOT = Path(__file__).parents[2]
DATASET = "engine_toy"

# Runs a file without tearing the interpreter down at its end: a thread of gloo that gives back a
# Python object meanwhile is ended, which aborts the process ("terminate called without …").
RUN_AND_EXIT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


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
            "SEED": 0,
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
    return trainer.Trainer


@pytest.fixture
def evaluations():
    """Returns a function that tells how often the toy data were evaluated in this test."""
    return lambda: CountingEvaluator.evaluations


@pytest.fixture(scope="session")
def run_two_processes_in():
    """Returns a function: a file, a folder, other arguments → runs it twice at a time, with the
    rank and these."""

    def run(file: str, folder: Path, *arguments: str) -> None:
        python_path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RUN_AND_EXIT, file, str(rank), str(folder), *arguments],
                env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]

    return run


@pytest.fixture
def run_two_processes(run_two_processes_in, tmp_path):
    """Returns a function: a file → runs it twice at a time, with the rank and ``tmp_path``."""
    return partial(run_two_processes_in, folder=tmp_path)


@pytest.fixture
def tiny_config(own_block, tmp_path) -> Path:
    """A file of a small PRO-SCALE model without dropout, on ``own_data``; four images a step."""
    settings = {
        "_BASE_": str(ROOT / "configs" / "demo" / "proscale_r18_111.yaml"),
        "DATASETS": {"OWN": [own_block("panoptic")]},
        "INPUT": {"IMAGE_SIZE": 64, "MIN_SIZE_TEST": 64},
        "MODEL": {
            "BACKBONE": {"NAME": "D2SwinTransformer"},
            "SWIN": {
                "EMBED_DIM": 16,
                "DEPTHS": [1, 1, 2, 1],
                "NUM_HEADS": [1, 2, 4, 4],
                "DROP_PATH_RATE": 0.0,
            },
            "SEM_SEG_HEAD": {"CONVS_DIM": 32, "MASK_DIM": 32},
            "MASK_FORMER": {
                "DROPOUT": 0.0,
                "HIDDEN_DIM": 32,
                "DIM_FEEDFORWARD": 64,
                "NUM_OBJECT_QUERIES": 10,
                "TRAIN_NUM_POINTS": 256,
                "TEST": {"SEMANTIC_ON": True, "OBJECT_MASK_THRESHOLD": 0.0},
            },
        },
        "SOLVER": {"IMS_PER_BATCH": 4, "CLIP_GRADIENTS": {"ENABLED": False}},
        "SEED": 5,  # some classes are right before any training
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def start_training(tiny_config, tmp_path) -> Iterator["StartTraining"]:
    """Starts ``observed_train_net.py`` on ``tiny_config``; what is left is ended with the test."""
    starter = StartTraining(tiny_config, tmp_path)
    yield starter
    starter.end_all()


class StartTraining:
    """Call it to start a job; ``finished`` waits for it."""

    def __init__(self, config: Path, folder: Path):
        self._config = config
        self._folder = folder
        self._started: list[subprocess.Popen] = []

    def __call__(
        self,
        name: str,
        *overrides: object,
        orders: dict | None = None,
        flags: Sequence[str] = (),
        torchrun: Sequence[str] | None = None,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen:
        """
        Args:
            name: of the folder with its notes, its ``output`` and ``stdout.txt``.
            overrides: KEY VALUE pairs.
            orders: see ``observed_train_net.py``.
            flags: of train_net.py.
            torchrun: its options; None starts a single process without it.
            prefix: what the command is an argument of.
            environment: variables besides this process's.
        """
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        by_torchrun = [] if torchrun is None else ["-m", "torch.distributed.run", *torchrun]
        program = str(Path(__file__).with_name("observed_train_net.py"))
        orders = json.dumps({"notes": str(folder), **(orders or {})})
        options = ("--config-file", str(self._config), *flags)
        overrides = ("OUTPUT_DIR", folder / "output", *overrides)
        process = subprocess.Popen(
            [
                *(*prefix, sys.executable, *by_torchrun, program, orders, *options),
                *map(str, overrides),
            ],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
                **(environment or {}),
            },
            stdout=(folder / "stdout.txt").open("ab"),
            stderr=subprocess.STDOUT,
        )
        self._started.append(process)
        return process

    def output(self, name: str) -> str:
        """What a job has printed."""
        return (self._folder / name / "stdout.txt").read_text()

    def losses(self, name: str, rank: int = 0) -> list[list[str]]:
        """Iteration and loss of every step, in the order of time."""
        lines = (self._folder / name / f"losses_{rank}.txt").read_text().splitlines()
        return [line.split() for line in lines]

    def results(self, name: str) -> str:
        """The figures of the evaluation, as they are written."""
        return (self._folder / name / "output" / "results.json").read_text()

    def end_all(self) -> None:
        """End what is running; torchrun ends the processes that it has started."""
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=45)
            except subprocess.TimeoutExpired:
                process.kill()
