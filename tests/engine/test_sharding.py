"""Two processes on the CPU that hold a part each train as two that hold all; this file is also what
they run. Equal means: but for the order of sums over the parts of a parameter."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from proscale.checkpoint import Checkpointer
from proscale.engine.sharding import divide_loaded_state, gathered, shard, whole
from proscale.engine.train_loop import TrainLoop
from proscale.engine.trainer import StopHook, StopRequest
from proscale.errors import CheckpointError

LOOPS = {
    "plain": {},
    "clipped": {"clip_norm": 0.1},
    "in parts": {"accumulation_steps": 2},
    "bfloat16": {"amp_dtype": torch.bfloat16},
    "float16": {"amp_dtype": torch.float16},
    "skipped": {"max_skipped_steps": 2, "accumulation_steps": 2},
}
"""Arguments of the training loops that are compared."""
KINDS = {"replicated": False, "sharded": True}
STEPS = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 7)
        self.outer = nn.Linear(7, 4)

    def forward(self, features):
        return features + self.outer(self.inner(features).relu())


class Model(nn.Module):
    """Blocks, a parameter that is read, frozen ones, fewer rows than processes, and buffers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Block(), nn.BatchNorm1d(4)).requires_grad_(False)
        self.blocks = nn.ModuleList([Block(), nn.Sequential(Block(), Block())])
        self.query = nn.Embedding(1, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, batch):
        features = self.stem(torch.stack([sample["image"] for sample in batch]))
        for block in self.blocks:
            features = block(features)
        scores = self.head(features + self.query.weight[0])
        if any(sample["fails"] for sample in batch):
            raise FloatingPointError("matching the last output: mask cost of image 0 of the batch")
        return {"loss": scores.cos().mean()} if self.training else scores


def batches(rank: int, fails: bool) -> list[list[dict]]:
    """Of ``STEPS`` steps; with ``fails`` two of them cannot be made, in one process each."""
    generator = torch.Generator().manual_seed(rank)
    result = [
        [{"image": torch.rand(4, generator=generator), "fails": False} for _ in range(4)]
        for _ in range(STEPS)
    ]
    if fails:
        result[1][3]["fails"] = rank == 1  # in the second part
        result[2][0]["image"] *= float("nan") if rank == 0 else 1.0
    return result


def make_loop(
    sharded: bool, rank: int, name: str = "plain", *, seed: int = 0, first: int = 0, **arguments
) -> TrainLoop:
    torch.manual_seed(seed + rank)  # the weights of the main process have to reach the others
    model = Model().train()
    if sharded:
        shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    if sharded:
        divide_loaded_state(optimizer)
    else:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    data = batches(rank, fails=name == "skipped")[first:]
    return TrainLoop(model, data, optimizer, **LOOPS[name], **arguments)


def run(loop: TrainLoop, steps: range) -> list[dict[str, float]]:
    """The figures that are logged, of every step."""
    figures = []
    for loop.iter in steps:
        with EventStorage(loop.iter) as storage:
            loop.run_step()
        latest = storage.latest().items()
        figures.append({key: value for key, (value, _) in latest if not key.endswith("data_time")})
    return figures


def train(sharded: bool, rank: int, name: str) -> dict:
    """What a training leaves behind."""
    recorded = []

    def record(loop, batch, weights):
        recorded.append((loop.iter, {name: tensor.clone() for name, tensor in weights.items()}))
        return "recorded"

    loop = make_loop(sharded, rank, name, record_fault=record)
    figures = run(loop, range(STEPS))
    model = getattr(loop.model, "module", loop.model)
    state = {"weights": model.state_dict(), "state": loop.state_dict()}
    return {"figures": figures, "recorded": recorded, **whole(state, kept=True)}


def shares(rank: int) -> dict:
    """Numbers in this process, by what they are numbers of, and shares of all there are."""
    loop = make_loop(True, rank)
    run(loop, range(1))
    trained = [p for p in loop.model.parameters() if p.requires_grad]
    kinds = {
        "parameters": list(loop.model.parameters()),
        "gradients": [p.grad for p in trained],
        "moments": [loop.optimizer.state[p]["exp_avg"] for p in trained],
    }
    assert all(isinstance(t, DTensor) for tensors in kinds.values() for t in tensors)
    return {
        kind: sum(t.to_local().numel() for t in tensors) / sum(t.numel() for t in tensors)
        for kind, tensors in kinds.items()
    }


def evaluate(rank: int) -> dict:
    """Before training and in its midst, on more images in one process than in the other."""
    loop = make_loop(True, rank)
    batch = batches(0, fails=False)[0]
    found, expected = [], []
    for step in range(2):
        loop.model.eval()
        with torch.no_grad(), gathered(loop.model):
            found += [loop.model(batch) for _ in range(1 + rank)]
        assert all(isinstance(parameter, DTensor) for parameter in loop.model.parameters())
        plain = Model().eval()
        plain.load_state_dict(whole(loop.model.state_dict(), kept=True))
        expected += [plain(batch).detach()] * (1 + rank)
        loop.model.train()
        run(loop, range(step, step + 1))
    return {"found": found, "expected": expected}


def interchange(rank: int, folder: Path) -> dict:
    """The figures of the second half of a training: of both kinds, and of each from the other's
    checkpoint of the first half."""
    result = {}
    for kind, sharded in KINDS.items():
        loop = make_loop(sharded, rank)
        checkpointer = Checkpointer(loop.model, str(folder / kind), fine_tune=False, loop=loop)
        run(loop, range(2))
        checkpointer.save("model_0000001", iteration=1)
        result[kind] = run(loop, range(2, STEPS))
    dist.barrier()
    for kind, other in zip(KINDS, reversed(KINDS), strict=True):
        loop = make_loop(KINDS[kind], rank, seed=7, first=2)
        checkpointer = Checkpointer(loop.model, str(folder / other), fine_tune=False, loop=loop)
        checkpointer.resume_or_load("")
        result[f"{kind} from {other}"] = run(loop, range(2, STEPS))
    return result


def refuse_damaged_weights(folder: Path) -> str:
    model = Model()
    shard(model)
    weights = Model().state_dict()
    weights["blocks.0.inner.bias"][0] = float("nan")  # in the part of the first process
    if dist.get_rank() == 0:
        torch.save({"model": weights}, folder / "damaged.pth")
    dist.barrier()
    try:
        Checkpointer(model, fine_tune=False).load(str(folder / "damaged.pth"))
    except CheckpointError as error:
        return str(error)
    return ""


def stop(rank: int, folder: Path) -> int:
    """Saved was this step, when a process gets the signal, and not the next."""
    model = Model()
    shard(model)
    checkpointer = Checkpointer(model, str(folder / "stopped"), fine_tune=False)
    checkpointer.save("model_0000003", iteration=3)
    with StopRequest() as signals:
        hook = StopHook(signals, checkpointer)
        os.kill(os.getpid(), signal.SIGTERM)
        for hook.trainer in (SimpleNamespace(iter=3), SimpleNamespace(iter=4)):
            with pytest.raises(SystemExit):
                hook.after_step()
    return signals.received


def worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    result = {
        "trained": {name: [train(kind, rank, name) for kind in KINDS.values()] for name in LOOPS},
        "shares": shares(rank),
        "evaluated": evaluate(rank),
        "resumed": interchange(rank, folder),
        "refused": refuse_damaged_weights(folder),
        "stopped": stop(rank, folder),
    }
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()  # a process whose peer has gone may be aborted
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(run_two_processes_in, tmp_path_factory) -> tuple[list[dict], Path]:
    """What the two processes tell, and the folder with their files."""
    folder = tmp_path_factory.mktemp("sharding")
    for name in (*KINDS, "stopped"):
        (folder / name).mkdir()
    run_two_processes_in(__file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], folder


@pytest.mark.parametrize("name", LOOPS)
def test_trains_as_replicas_do(results, name):
    for result in results[0]:
        replicated, sharded = result["trained"][name]
        torch.testing.assert_close(sharded, replicated)


def test_step_that_is_left_out_is_recorded_whole_where_it_is_at_fault(results):
    first, second = (result["trained"]["skipped"][1] for result in results[0])
    assert first["recorded"] == []
    [(iteration, weights)] = second["recorded"]
    assert iteration == 1
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in Model().state_dict().items()
    }
    assert [figures["skipped_steps"] for figures in first["figures"]] == [0, 1, 2, 2]


def test_every_process_holds_about_half(results):
    shares = [result["shares"] for result in results[0]]
    for kind in ("parameters", "gradients", "moments"):
        assert sum(share[kind] for share in shares) == 1
        # The first one has the odd rows: 2 of 3 where there are three.
        assert 0.5 < shares[0][kind] < 0.6


def test_evaluation_gathers_the_weights(results):
    for result in results[0]:
        torch.testing.assert_close(result["evaluated"]["found"], result["evaluated"]["expected"])


def test_checkpoints_are_interchangeable(results):
    both, folder = results
    files = [torch.load(folder / kind / "model_0000001.pth") for kind in KINDS]
    torch.testing.assert_close(*files)
    assert [[str(key) for key in file] for file in files] == [["model", "loop", "iteration"]] * 2
    Checkpointer(Model(), fine_tune=False).load(str(folder / "sharded" / "model_0000001.pth"))
    for result in both:
        resumed = result["resumed"]
        expected = resumed.pop("replicated")
        assert len(resumed) == 3
        for figures in resumed.values():
            torch.testing.assert_close(figures, expected)


def test_weights_that_are_not_finite_are_refused_in_all_processes(results):
    for result in results[0]:
        assert "1 of" in result["refused"] and "blocks.0.inner.bias" in result["refused"]


def test_all_processes_save_when_stopped(results):
    both, folder = results
    assert [result["stopped"] for result in both] == [signal.SIGTERM] * 2
    names = sorted(path.name for path in (folder / "stopped").iterdir())
    assert names == ["last_checkpoint", "model_0000003.pth", "model_0000004.pth"]


def test_refuses_a_norm_that_parts_do_not_have(toy_cfg, toy_trainer):
    key = "SOLVER.CLIP_GRADIENTS.NORM_TYPE"
    toy_trainer(toy_cfg(key, float("inf")))
    with pytest.raises(ValueError, match=rf"^{key} is inf: expected .* DISTRIBUTED.SHARDED"):
        toy_trainer(toy_cfg("DISTRIBUTED.SHARDED", True, key, float("inf")))


def test_one_process_holds_all(toy_cfg, toy_trainer):
    trainer = toy_trainer(toy_cfg("DISTRIBUTED.SHARDED", True))
    assert not any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
