"""Two processes on the CPU, each with half of the images; this file is also what they run."""

import sys

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from proscale.engine.train_loop import TrainLoop


class PerImageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, batch):
        return {"loss": torch.stack([(s["image"] * self.weight).sum().cos() for s in batch]).mean()}


def make_batch(start: int, end: int) -> list[dict]:
    return [{"image": torch.tensor([0.1 * i, 0.3])} for i in range(start, end)]


def train(model: nn.Module, batch: list[dict], steps: int) -> dict:
    """One step of SGD; returns the weights after it and the figures logged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, [batch], optimizer, accumulation_steps=steps, clip_norm=0.1)
    with EventStorage() as storage:
        loop.run_step()
    figures = {name: value for name, (value, _) in storage.latest().items()}
    return {"weight": next(model.parameters()).detach(), **figures}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    exchanges = []
    model = DistributedDataParallel(PerImageModel())

    def average(state, bucket):
        exchanges.append(1)
        return (
            dist.all_reduce(bucket.buffer() / 2, async_op=True)
            .get_future()
            .then(lambda future: future.value()[0])
        )

    model.register_comm_hook(None, average)
    result = train(model, make_batch(4 * rank, 4 * rank + 4), steps=2)
    torch.save({**result, "exchanges": len(exchanges)}, f"{folder}/{rank}.pt")
    dist.barrier()  # a process whose peer has gone may be aborted
    dist.destroy_process_group()


def test_two_processes_equal_one(run_two_processes, tmp_path):
    run_two_processes(__file__)
    expected = train(PerImageModel(), make_batch(0, 8), steps=1)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for result in (first, second):
        torch.testing.assert_close(result["weight"], expected["weight"])
        assert result["exchanges"] == 1
        assert result["grad_norm"] == pytest.approx(expected["grad_norm"])
    assert first["total_loss"] == pytest.approx(expected["total_loss"])


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
