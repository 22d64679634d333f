"""A training from Python: what ``proscale train`` does, as a function."""

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from proscale.config import as_overrides
from proscale.engine.console import close_logs
from proscale.engine.distributed import launch
from proscale.engine.run import argument_parser, main, setup


def train(
    config: str | os.PathLike[str],
    *,
    hooks: Sequence[HookBase] = (),
    resume: bool = False,
    overwrite: bool = False,
    **keys: Any,
) -> dict[str, Any]:
    """Train a model, in this process.

    ::

        results = proscale.train(
            "demo/proscale_r18_111", SOLVER={"MAX_ITER": 100}, OUTPUT_DIR="output/run"
        )
        model = proscale.load("output/run/model_final.pth")

    Several processes: ``torchrun --nproc_per_node N SCRIPT`` starts a script that calls this.

    Args:
        config: a YAML file or its name, or a model whose training goes on from its weights; see
            ``proscale models``.
        hooks: called beside the trainer's own (``detectron2.engine.HookBase``), behind them; their
            ``trainer`` has ``iter``, ``model``, ``storage``.
        resume: go on from the last checkpoint in ``OUTPUT_DIR``.
        overwrite: begin anew in an ``OUTPUT_DIR`` with a training, which is removed.
        keys: configuration keys, blocks as dictionaries.

    Returns:
        the metrics of the last evaluation by kind of result, such as ``panoptic_seg``, and those of
        several data sets by their names before that; empty without ``DATASETS.TEST``, and on other
        ranks than 0.

    Raises:
        ConfigError: a key or value is wrong, or ``OUTPUT_DIR`` has a training already.
        DataError, CheckpointError: data or weights cannot be read.
    """
    words = ["--config-file", os.fspath(config)]
    words += [f"--{name}" for name, on in (("resume", resume), ("overwrite", overwrite)) if on]
    args = argument_parser().parse_args(words)
    args.opts = as_overrides(keys)
    results: dict[str, Any] = {}

    def job(args: Any, cfg: CfgNode) -> None:
        results.update(main(args, cfg, hooks))

    try:
        launch(job, args, setup(args))
    finally:
        close_logs()
    return results
