"""Training that is killed again and again ends with the curve of one that is not.

This file is also the program that is killed: it trains a small model, with batch norm, dropout and
random points, on generated images by the real trainer, loader and mapper. One process imports all
that is needed, and every life of the training is a fork of it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

PERIOD = 4
STEPS_PER_LIFE = 12


@pytest.fixture
def lives(own_block, tmp_path):
    """A function: what ``serve`` reads → exit status of a life, negative if it was killed."""
    python_path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    server = subprocess.Popen(
        [sys.executable, __file__, json.dumps(own_block("semantic")), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": python_path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def live(
        folder: str,
        iterations: int,
        *,
        workers: int = 0,
        steps: int | None = None,
        delay: float = 0.0,
        save_call: int = 0,
        processes: int = 1,
    ) -> int:
        steps = 10**6 if steps is None else steps
        order = (folder, iterations, workers, steps, delay, save_call, processes)
        print(*order, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield live
    server.stdin.close()
    assert server.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("kills", "processes"),
    [
        (3, 1),
        pytest.param(20, 1, marks=pytest.mark.slow),
        pytest.param(10, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_training_has_the_curve_of_an_uninterrupted_one(lives, tmp_path, kills, processes):
    iterations = STEPS_PER_LIFE * kills
    lives = partial(lives, processes=processes)
    assert lives("straight", iterations) == 0
    draw = random.Random(kills)
    for life in range(kills):
        workers = 2 * (life % 2)
        if life % 3 == 2:  # within a save
            status = lives("killed", iterations, workers=workers, save_call=draw.randrange(1, 9))
        else:
            steps, delay = draw.randrange(STEPS_PER_LIFE + 3), draw.uniform(0, 0.03)
            status = lives("killed", iterations, workers=workers, steps=steps, delay=delay)
        assert status == -signal.SIGKILL, life
    assert lives("killed", iterations) == 0

    straight = read_curves(tmp_path / "straight")
    assert [list(life) for life in straight] == [list(range(iterations))]
    end = 0
    for life in read_curves(tmp_path / "killed"):
        assert life == {i: straight[0][i] for i in life}
        if life:
            assert end - PERIOD <= min(life) <= end  # at most one period is lost
            end = max(life) + 1
    assert end == iterations
    assert not list((tmp_path / "killed").glob(".*.partial*"))
    first, last = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("straight", "killed")
    )
    assert all(torch.equal(value, last[name]) for name, value in first.items())


def read_curves(folder: Path) -> list[dict[int, str]]:
    """Of every life, the loss of each step to the last bit."""
    curves = []
    for line in (folder / "losses.txt").read_text().splitlines():
        if line == "start":
            curves.append({})
        elif line.endswith(";"):
            iteration, loss = line[:-1].split()
            curves[-1][int(iteration)] = loss
    return curves


def serve(block: dict, root: Path) -> None:
    """Live once for each line of standard input, and answer with the exit status.

    A line is: folder, iterations, loader workers, steps after which this life is killed, seconds
    that it has then, which of the calls to the system that make up saves it dies at (0: none), and
    how many processes train together; all are killed.
    """
    train = build_program(block)
    for line in sys.stdin:
        name, *numbers = line.split()
        iterations, workers, steps, save_call, processes = map(int, numbers[:3] + numbers[4:])
        losses = root / name / "losses.txt"
        before = count_lines(losses)
        pid = os.fork()
        if pid == 0:
            os.setsid()  # with the loader's workers, as a machine that fails takes them along
            if processes == 2:
                join_two(root / name)
            train(root / name, iterations, workers, save_call)
            os._exit(0)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if count_lines(losses) - before >= steps:
                time.sleep(float(numbers[3]))
                os.killpg(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)


def join_two(folder: Path) -> None:
    """Fork another process, and have both train together."""
    from detectron2.utils import comm
    from torch import distributed

    folder.mkdir(exist_ok=True)
    place = f"file://{folder}/rendezvous_{os.getpid()}"
    rank = int(os.fork() == 0)
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    comm.create_local_process_group(2)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b";") if path.exists() else 0


def build_program(block: dict):
    """Imports all, and returns what a life does."""
    from detectron2.engine import HookBase
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.utils import comm
    from detectron2.utils.events import get_event_storage
    from torch import nn

    from proscale.config import setup_cfg
    from proscale.engine.trainer import Trainer
    from proscale.utils import whole_files

    torch.set_num_threads(1)

    @META_ARCH_REGISTRY.register()
    class KilledModel(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
                *(nn.Dropout(0.2), nn.Conv2d(8, 1, 1)),
            )

        def forward(self, batch):
            images = torch.stack([sample["image"] for sample in batch]) / 255
            points = torch.randint(256, (len(batch), 64))
            counts = torch.tensor([float(len(sample["instances"])) for sample in batch])
            logits = self.layers(images).flatten(1).gather(1, points)
            return {"loss": (logits - counts[:, None]).pow(2).mean()}

    class Losses(HookBase):
        def write(self, text: str) -> None:
            with Path(self.trainer.cfg.OUTPUT_DIR, "losses.txt").open("a") as file:
                file.write(text)

        def before_train(self):
            if comm.is_main_process():
                self.write("\nstart\n")  # behind what may be left of a line

        def after_step(self):
            if not comm.is_main_process():  # which has the mean of all
                return
            loss = get_event_storage().latest()["total_loss"][0]
            self.write(f"{self.trainer.iter} {float(loss).hex()};\n")

    def train(folder: Path, iterations: int, workers: int, save_call: int) -> None:
        folder.mkdir(exist_ok=True)
        calls = 0

        def dying(call):
            def count(*arguments):
                nonlocal calls
                calls += 1
                if calls == save_call:
                    os.killpg(0, signal.SIGKILL)
                return call(*arguments)

            return count

        if save_call:
            whole_files.os.fsync, whole_files.os.replace = dying(os.fsync), dying(os.replace)
        settings = {
            "DATASETS.OWN": [block],
            "INPUT.IMAGE_SIZE": 32,
            "INPUT.MIN_SIZE_TRAIN": (32, 40),
            "INPUT.CROP.ENABLED": True,
            "INPUT.CROP.TYPE": "absolute",
            "INPUT.CROP.SIZE": (32, 32),
            "INPUT.COLOR_AUG_SSD": True,
            "INPUT.FORMAT": "RGB",
            "MODEL.META_ARCHITECTURE": "KilledModel",
            "MODEL.DEVICE": "cpu",
            "MODEL.WEIGHTS": "",
            "DATASETS.TEST": (),
            "DATALOADER.NUM_WORKERS": workers,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.BASE_LR": 0.001,
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.STEPS": (20,),
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.CHECKPOINT_PERIOD": PERIOD,
            "SOLVER.CHECKPOINTS_TO_KEEP": 3,
            "OUTPUT_DIR": str(folder),
            "SEED": 3,
        }
        trainer = Trainer(setup_cfg("", [item for pair in settings.items() for item in pair]))
        trainer.register_hooks([Losses()])
        # Losses are noted before the step is saved.
        trainer._hooks.insert(0, trainer._hooks.pop())
        trainer.resume_or_load(resume=True)
        trainer.train()

    return train


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]), Path(sys.argv[2]))
