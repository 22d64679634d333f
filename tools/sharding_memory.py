"""Train for a few steps on random images and print the memory of every rank.

``torchrun --nproc_per_node 2 tools/sharding_memory.py --config-file FILE [KEY VALUE]``, with
``DISTRIBUTED.SHARDED True`` and without it. Printed are, in MiB, the parameters, gradients and
optimiser state that a rank holds, and the peak of its resident memory in a step, less that before
there was a model.
"""

import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.distributed.tensor import DTensor

from proscale.config import setup_cfg
from proscale.engine.distributed import launch
from proscale.engine.trainer import Trainer

STEPS = 3
SIDE = 64
MEBIBYTE = 2**20


class RandomImages(Trainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[list[dict]]:
        instances = Instances((SIDE, SIDE))
        instances.gt_classes = torch.zeros(1, dtype=torch.int64)
        instances.gt_masks = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
        while True:
            yield [{"image": 255 * torch.rand(3, SIDE, SIDE), "instances": instances}]


def main(args: Namespace, cfg: CfgNode) -> None:
    before = status("VmRSS")
    trainer = RandomImages(cfg)
    trainer.model.train()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with EventStorage():
        for _ in range(STEPS):
            trainer._trainer.run_step()
    peak = status("VmHWM") - before
    parameters = list(trainer.model.parameters())
    state = trainer.optimizer.state.values()
    held = {
        "parameters": size_of(parameters),
        "gradients": size_of(p.grad for p in parameters if p.grad is not None),
        "optimiser": size_of(t for item in state for t in item.values() if torch.is_tensor(t)),
        "peak": peak,
    }
    for line in comm.gather(", ".join(f"{name} {size:.0f}" for name, size in held.items())):
        print(line)


def status(field: str) -> float:
    """A field of this process in MiB, from the system."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def size_of(tensors: Iterable[torch.Tensor]) -> float:
    """MiB that this process holds of ``tensors``."""
    parts = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(part.numel() * part.element_size() for part in parts) / MEBIBYTE


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    options = default_argument_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*options.opts, "MODEL.WEIGHTS", "", "OUTPUT_DIR", folder]
        launch(main, options, setup_cfg(options.config_file, overrides))
