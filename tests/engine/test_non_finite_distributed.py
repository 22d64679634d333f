"""Two processes go on, stop and resume together; this file is also what they run."""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from proscale.checkpoint import Checkpointer
from proscale.engine.train_loop import TrainLoop
from proscale.engine.trainer import StopHook, StopRequest
from proscale.errors import CheckpointError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, batch):
        if any(sample["fails"] for sample in batch):
            raise FloatingPointError("matching the last output: mask cost of image 0 of the batch")
        return {"loss": torch.stack([(s["image"] * self.weight).sum().cos() for s in batch]).mean()}


def make_batch(value: float = 0.5, fails: bool = False) -> list[dict]:
    good = {"image": torch.tensor([0.1, 0.3]), "fails": False}
    return [good, {"image": torch.tensor([0.2, value]), "fails": fails, "file_name": "bad.jpg"}]


def skip_steps(rank: int) -> dict:
    """Steps that fail in one process: in the second part of forward, by the loss, and too often."""
    good, nan = make_batch(), make_batch(float("nan"))
    fails = make_batch(fails=True)
    batches = [[good, fails], [nan, good], [good, good], [fails, good]]
    model = DistributedDataParallel(Model())
    loop = TrainLoop(
        model,
        [batch[rank] for batch in batches],
        torch.optim.SGD(model.parameters(), lr=0.1),
        accumulation_steps=2,
        max_skipped_steps=2,
    )
    weights, error = [], ""
    with EventStorage():
        for step in range(len(batches)):
            loop.iter = step
            try:
                loop.run_step()
            except FloatingPointError as fault:
                error = str(fault)
            weights.append(model.module.weight.tolist())
    return {"weights": weights, "error": error, "skipped": loop.skipped_steps}


def stop(rank: int, folder: Path) -> dict:
    """Only the second process gets the signal."""
    checkpointer = Checkpointer(Model(), str(folder), fine_tune=False)
    with StopRequest() as signals:
        hook = StopHook(signals, checkpointer)
        hook.trainer = SimpleNamespace(iter=4)
        hook.after_step()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            hook.after_step()
        except SystemExit as status:
            return {"status": status.code}
    return {}


def find_checkpoint(rank: int, folder: Path) -> dict:
    """The main process tells all what is damaged."""
    checkpointer = Checkpointer(Model(), str(folder), fine_tune=False)
    found = Path(checkpointer.get_checkpoint_file()).name
    dist.barrier()
    if rank == 0:
        (folder / found).write_bytes(b"")
    try:
        checkpointer.get_checkpoint_file()
    except CheckpointError as error:
        return {"found": found, "then": str(error)}
    return {}


def worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    result = {
        **skip_steps(rank),
        **stop(rank, folder / "output"),
        **find_checkpoint(rank, folder / "output"),
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()  # a process whose peer has gone may be aborted
    dist.destroy_process_group()


def test_processes_agree(run_two_processes, tmp_path):
    (tmp_path / "output").mkdir()
    run_two_processes(__file__)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))

    start = [2.0, 3.0]
    assert first["weights"] == second["weights"]
    assert first["weights"][:2] == [start, start]
    assert first["weights"][2] == first["weights"][3] != start
    assert first["skipped"] == second["skipped"] == 2
    assert first["error"] == (
        "not finite at iteration 3: matching the last output: mask cost of image 0 of the batch; "
        "images of this process: (unnamed), bad.jpg"
    )
    assert second["error"].startswith("not finite at iteration 3: on another rank")

    assert first["status"] == second["status"] == 128 + signal.SIGTERM
    names = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert names == ["last_checkpoint", "model_0000004.pth"]
    assert first["found"] == second["found"] == "model_0000004.pth"
    assert "no checkpoint to resume from that is not damaged" in first["then"]
    assert first["then"] == second["then"]


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
