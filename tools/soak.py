"""Train and predict for long on images of changing size, and check that memory does not grow.

``python tools/soak.py [--iterations N] [--predictions N]``: the trainer with its hooks and
checkpoints, then the predictor with the trained weights, on random images from 40 to 128 pixels
a side. The model is the demo's with a small Swin, and smaller in every part. Prints the resident
memory of the process every 200 steps, and fails where it grows: by more than ``--tolerance`` from
the first of these lines to the last.
"""

import argparse
import gc
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.structures import Instances

from proscale import Predictor
from proscale.config import setup_cfg
from proscale.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
PERIOD = 200
SMALL = {
    "DATASETS.TEST": ("shapes_val",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 16,
    "MODEL.SWIN.DEPTHS": [1, 1, 2, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 4, 4],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 256,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "SOLVER.CHECKPOINTS_TO_KEEP": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2000, help="of training")
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--tolerance", type=float, default=30.0, help="growth accepted, MiB")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    warnings.simplefilter("ignore")
    # Freed memory of all threads' arenas would be counted as used.
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        cfg = build_cfg(Path(folder), options.iterations)
        memories = {"training": Memory("training"), "prediction": Memory("prediction")}
        train(cfg, memories["training"])
        predict(cfg, options.predictions, memories["prediction"])
    grown = [m for m in memories.values() if m.growth() > options.tolerance]
    for memory in memories.values():
        print(f"{memory.name}: {memory.growth():+.1f} MiB after the first {PERIOD}")
    sys.exit(f"memory grows in {' and '.join(m.name for m in grown)}" if grown else 0)


def build_cfg(folder: Path, iterations: int) -> CfgNode:
    settings = SMALL | {
        "SOLVER.MAX_ITER": iterations,
        "OUTPUT_DIR": str(folder),
        "MODEL.WEIGHTS": "",
    }
    return setup_cfg(
        str(ROOT / "configs" / "demo" / "proscale_r18_111.yaml"),
        [item for pair in settings.items() for item in pair],
    )


class Memory:
    """Resident memory of this process, noted every ``PERIOD`` steps."""

    def __init__(self, name: str):
        self.name = name
        self.mebibytes: list[float] = []

    def after(self, steps: int) -> None:
        if steps % PERIOD:
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mebibytes.append(pages * 4096 / 2**20)
        print(f"{self.name} {steps:6d}: {self.mebibytes[-1]:7.1f} MiB", flush=True)

    def growth(self) -> float:
        return self.mebibytes[-1] - self.mebibytes[0] if self.mebibytes else 0.0


def random_sizes(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    while True:
        yield tuple(int(side) for side in rng.integers(40, 129, 2))


def train(cfg: CfgNode, memory: Memory) -> None:
    class NoteMemory(HookBase):
        def after_step(self) -> None:
            memory.after(self.trainer.iter + 1)

    class SoakTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Iterator[list[dict]]:
            return random_batches(cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

        @classmethod
        def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: None = None) -> dict:
            return {}

    trainer = SoakTrainer(cfg)
    trainer.register_hooks([NoteMemory()])
    trainer.train()


def random_batches(images: int, classes: int) -> Iterator[list[dict]]:
    rng = np.random.default_rng(0)
    sizes = random_sizes(rng)
    while True:
        yield [random_sample(rng, next(sizes), classes) for _ in range(images)]


def random_sample(rng: np.random.Generator, size: tuple[int, int], classes: int) -> dict:
    instances = Instances(size)
    count = int(rng.integers(0, 6))
    instances.gt_classes = torch.from_numpy(rng.integers(0, classes, count))
    instances.gt_masks = torch.from_numpy(rng.random((count, *size)) < 0.3)
    image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def predict(cfg: CfgNode, predictions: int, memory: Memory) -> None:
    predictor = Predictor(cfg, str(Path(cfg.OUTPUT_DIR, "model_final.pth")))
    rng = np.random.default_rng(1)
    for step, size in zip(range(1, predictions + 1), random_sizes(rng), strict=False):
        predictor(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        memory.after(step)


if __name__ == "__main__":
    main()
