"""train_net.py with what tests want to see of it, and with faults; run as a program.

``python observed_train_net.py ORDERS …``: the rest are arguments of train_net.py. ORDERS are JSON:

- ``notes``: a folder for ``losses_RANK.txt``, a line of iteration and total loss, to the last bit,
  for every step, and with ``gradients`` for ``gradients_RANK.pt``, those of every step;
- ``fixed_points``: whether random points are the same for all masks, processes and steps;
- ``fault``: ``{"kind", "rank", "iteration"}``, what happens there, once, at that time behind the
  step; see ``_FAULTS``. The file ``fault`` in ``notes`` tells that it has happened.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from proscale.engine.sharding import whole
from proscale.engine.trainer import Trainer

ROOT = Path(__file__).parents[2]


class Notes(HookBase):
    def __init__(self, folder: Path, *, gradients: bool):
        self._folder = folder
        self._gradients: list[dict[str, torch.Tensor]] | None = [] if gradients else None

    def after_step(self) -> None:
        loss = float(get_event_storage().latest()["total_loss"][0]) if comm.get_rank() == 0 else 0.0
        with (self._folder / f"losses_{comm.get_rank()}.txt").open("a") as file:
            file.write(f"{self.trainer.iter} {loss.hex()}\n")
        if self._gradients is not None:
            model = self.trainer.model
            parameters = getattr(model, "module", model).named_parameters()
            self._gradients.append({n: whole(p.grad.clone(), kept=True) for n, p in parameters})

    def after_train(self) -> None:
        if self._gradients is not None:
            torch.save(self._gradients, self._folder / f"gradients_{comm.get_rank()}.pt")


class Fault(HookBase):
    def __init__(self, folder: Path, kind: str, rank: int, iteration: int):
        self._mark = folder / "fault"
        self._happen = _FAULTS[kind]
        self._place = (rank, iteration)

    def after_step(self) -> None:
        if (comm.get_rank(), self.trainer.iter) == self._place and not self._mark.exists():
            self._mark.touch()
            self._happen()


def _raise() -> None:
    raise KeyError("the reason of process 1")


def _kill_soon() -> None:
    """At a moment that nothing in the program determines."""
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _kill_loader_worker() -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [
        pid
        for pid in map(int, children)
        if b"train_net" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[0], signal.SIGKILL)


_FAULTS = {
    "raise": _raise,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill soon": _kill_soon,
    "kill loader worker": _kill_loader_worker,
    "hang": lambda: time.sleep(600),
}


def fixed_points(*size: int, **options) -> torch.Tensor:
    """As ``torch.rand``, but whatever is in front of the points' number does not matter."""
    generator = torch.Generator().manual_seed(0)
    return _rand(*size[-2:], generator=generator, **options).expand(size).contiguous()


_rand = torch.rand


def main() -> None:
    orders = json.loads(sys.argv.pop(1))
    folder = Path(orders["notes"])
    folder.mkdir(parents=True, exist_ok=True)
    built_by_trainer = Trainer.build_hooks

    def build_hooks(trainer: Trainer) -> list[HookBase]:
        added: list[HookBase] = [Notes(folder, gradients=orders.get("gradients", False))]
        if "fault" in orders:
            added.append(Fault(folder, **orders["fault"]))
        return [*added, *built_by_trainer(trainer)]

    Trainer.build_hooks = build_hooks
    if orders.get("fixed_points"):
        torch.rand = fixed_points
    runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")


if __name__ == "__main__":
    main()
