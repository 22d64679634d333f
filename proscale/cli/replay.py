"""``proscale replay``: a training step that was recorded because something was not finite, again.

Rebuilds the model of FILE (fault_*.pth in OUTPUT_DIR) with its weights, runs forward and backward
pass on the recorded batch with the random numbers of that step, and prints the losses or the first
module whose output is not finite. Only the batch of the rank that wrote the file is known: losses
are normalised by its targets alone.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._pytree import tree_leaves

from proscale.cli.arguments import add_overrides
from proscale.config import setup_cfg
from proscale.engine.recorded_step import RecordedStep
from proscale.engine.train_loop import TrainLoop, resolve_amp_dtype
from proscale.errors import ConfigError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="fault_*.pth of a training")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    step = RecordedStep.read(options.file)
    # From a file, so that it is checked as any configuration.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(step.config, "utf-8", "replace")
        try:
            cfg = setup_cfg(str(file), options.opts, saved=True)
        except ConfigError as error:
            # That file is gone when the message is read.
            reason = str(error).removeprefix(f"{file}: ")
            raise ConfigError(f"{options.file}: config: {reason}") from error
    step.check_batch(cfg, options.file)
    model = build_model(cfg)
    step.load_weights(model, options.file)
    files = ", ".join(printable(sample.get("file_name", "(unnamed)")) for sample in step.batch)
    print(f"Iteration {step.iteration} of process {step.rank}: {files}")

    # A step of the training itself; without a learning rate it changes no weight.
    loop = TrainLoop(
        model,
        [step.batch],
        torch.optim.SGD(model.parameters(), lr=0.0),
        amp_dtype=resolve_amp_dtype(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    # These seed the step's random numbers.
    loop.seed, loop.iter, loop.rank = step.seed, step.iteration, step.rank
    outputs = _OutputWatch(model)
    with EventStorage(step.iteration) as storage:
        try:
            loop.run_step()
        except FloatingPointError as error:
            print(str(error).partition("; images of this process")[0])
            print(f"first output that is not finite: {outputs.first or 'none of a module'}")
        else:
            for name, (value, _) in storage.latest().items():
                if "loss" in name or name == "grad_norm":
                    print(f"{name} = {value:.6g}")
            print("everything is finite")


class _OutputWatch:
    """Watches the outputs of all modules for the first that is not finite."""

    def __init__(self, model: nn.Module):
        self.first = ""
        # Hooks run in the order in which modules finish: the first one found is the cause.
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(partial(self._look, name))

    def _look(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        # Modules return tensors, and tuples, lists and dictionaries of them.
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if not self.first and not all(tensor.isfinite().all() for tensor in tensors):
            self.first = f"{name} ({type(module).__name__})"
