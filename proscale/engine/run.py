"""A training or an evaluation from the command line: its options, and what every process does."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_argument_parser, default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.distributed.elastic.multiprocessing.errors import record

from proscale.checkpoint import Checkpointer, check_weights
from proscale.config import (
    built_from_keys,
    check_datasets,
    check_output_dir,
    find_config,
    setup_cfg,
    without_trust,
)
from proscale.data.datasets.own import register_own_data
from proscale.engine.console import ProgressLine, leave_to_log, print_results, print_start
from proscale.engine.distributed import check_processes, launch
from proscale.engine.output_dir import check_unused, remove_training, writing_to
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.utils.malloc import disable_malloc_trim
from proscale.zoo import is_model


def main(
    args: argparse.Namespace, cfg: CfgNode, extra_hooks: Sequence[HookBase] = ()
) -> dict[str, Any]:
    """Train, with ``extra_hooks`` beside the trainer's own, or evaluate; runs once in every
    process, and returns the results of the last evaluation."""
    with writing_to(cfg.OUTPUT_DIR):
        # Detectron2's loggers, as it makes them, before it prints all of the configuration.
        rank = comm.get_rank()
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
        for name in ("fvcore", "proscale"):
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
        leave_to_log()
        default_setup(without_trust(cfg), args)  # which saves it
        if cfg.DATASETS.OWN:
            # `launch` starts processes in which `setup_cfg` has not registered them.
            register_own_data(cfg.DATASETS.OWN)
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            disable_malloc_trim()
        return evaluate(args, cfg) if args.eval_only else train(args, cfg, extra_hooks)


def train(
    args: argparse.Namespace, cfg: CfgNode, extra_hooks: Sequence[HookBase] = ()
) -> dict[str, Any]:
    """Train from the weights or the last checkpoint."""
    with built_from_keys():
        trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.overwrite:
        # All processes have read the weights, which may be of the training that is removed.
        comm.synchronize()
        if comm.is_main_process():
            remove_training(cfg.OUTPUT_DIR)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: Trainer.test_with_TTA(cfg, trainer.model))]
        )
    if comm.is_main_process():
        print_start(cfg, trainer)
        # Detectron2 writes every 20 iterations; the console has fewer lines in a long training.
        lines = ProgressLine(trainer.start_iter, trainer.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter([lines], period=lines.period)])
    trainer.register_hooks(list(extra_hooks))
    trainer.train()
    results = getattr(trainer, "_last_eval_results", None) or {}
    if comm.is_main_process():
        print_results(results)
        print(f"Weights, curves and log: {cfg.OUTPUT_DIR}")
    return results


def evaluate(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Evaluate the weights, or with ``--resume`` the last checkpoint."""
    with built_from_keys():
        model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(
        model, cfg.OUTPUT_DIR, fine_tune=False, trust=cfg.MODEL.TRUST_WEIGHTS
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **Trainer.test_with_TTA(cfg, model)}
    if comm.is_main_process():
        print_results(results)
        print(f"Every class: {cfg.OUTPUT_DIR}")
        verify_results(cfg, results)
    return results


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the configuration and refuse a run that would fail, or overwrite another.

    Raises:
        UserError: see the functions that are called.
    """
    check_processes(args)
    if not args.config_file:
        # Detectron2's defaults are those of a Faster R-CNN.
        raise ConfigError(
            "--config-file is missing: expected a file, or a name such as demo/proscale_r18_111"
        )
    cfg = setup_cfg(args.config_file, args.opts)
    # Detectron2 logs the file, too, and knows neither names nor models.
    args.config_file = "" if is_model(args.config_file) else find_config(args.config_file)
    if args.overwrite and (args.resume or args.eval_only):
        raise ConfigError(
            "--overwrite removes a training: expected neither --resume nor --eval-only"
        )
    check_weights(cfg, resume=args.resume, required=args.eval_only)
    if not args.eval_only:
        check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", required=True)
    check_datasets(cfg.DATASETS.TEST, "DATASETS.TEST", required=args.eval_only)
    check_output_dir(cfg)
    if not (args.resume or args.eval_only or args.overwrite):
        check_unused(cfg.OUTPUT_DIR)
    return cfg


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's, with ``--overwrite``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew in an OUTPUT_DIR with a training, whose checkpoints and metrics are "
        "removed once the new one has its weights",
    )
    return parser


# By this torchrun reports the error of the rank that raised first.
@record
def run(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``, those of the command line when None."""
    args = argument_parser().parse_args(words)
    launch(main, args, setup(args))
