"""Train a model, or evaluate one with --eval-only; on the CPU, one GPU or several, many machines.

python train_net.py --config-file FILE [--num-gpus N] [--resume | --overwrite] [KEY VALUE ...]
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS FILE
torchrun --nproc_per_node N train_net.py --config-file FILE [--resume] [KEY VALUE ...]
"""

import proscale  # noqa: F401  first, because it names a missing dependency in one sentence

# isort: split
import argparse

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks
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
from proscale.engine.distributed import check_processes, launch
from proscale.engine.output_dir import check_unused, remove_training, writing_to
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.utils.malloc import disable_malloc_trim
from proscale_cli import errors_in_one_sentence


def main(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train or evaluate; runs once in every process."""
    with writing_to(cfg.OUTPUT_DIR):
        default_setup(without_trust(cfg), args)  # which saves it
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="proscale")
        if cfg.DATASETS.OWN:
            # `launch` starts processes in which `setup_cfg` has not registered them.
            register_own_data(cfg.DATASETS.OWN)
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            disable_malloc_trim()
        (evaluate if args.eval_only else train)(args, cfg)


def train(args: argparse.Namespace, cfg: CfgNode) -> None:
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
    trainer.train()


def evaluate(args: argparse.Namespace, cfg: CfgNode) -> None:
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
        verify_results(cfg, results)


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
    # Detectron2 logs the file, too, and knows no names.
    args.config_file = find_config(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts)
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
def run() -> None:
    """Run the command."""
    args = argument_parser().parse_args()
    launch(main, args, setup(args))


if __name__ == "__main__":
    with errors_in_one_sentence("train_net.py"):
        run()
