"""Train a model, or evaluate one with --eval-only; on the CPU, one GPU or several.

python train_net.py --config-file FILE [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS FILE
"""

import proscale  # noqa: F401  first, because it tells in a sentence what is not installed

# isort: split
import argparse
import sys

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from proscale.checkpoint import CheckpointError
from proscale.data.own_data import register_own_data
from proscale.engine import Checkpointer, ConfigError, Trainer, check_weights, setup_cfg


def main(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train or evaluate; runs once in every process."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="proscale")
    # `launch` starts processes that have not seen `setup_cfg`.
    register_own_data(cfg.DATASETS.OWN)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, fine_tune=False)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results = {**results, **Trainer.test_with_TTA(cfg, model)}
        if comm.is_main_process():
            verify_results(cfg, results)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if cfg.TEST.AUG.ENABLED:
            trainer.register_hooks(
                [hooks.EvalHook(0, lambda: Trainer.test_with_TTA(cfg, trainer.model))]
            )
        trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the configuration and refuse what cannot run.

    Raises:
        ConfigError: see ``proscale.engine.setup_cfg`` and ``check_weights``; or --num-gpus asks for
            more than there are.
    """
    if args.num_gpus > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs"
        )
    cfg = setup_cfg(args.config_file, args.opts)
    check_weights(cfg, resume=args.resume, required=args.eval_only)
    return cfg


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    try:
        cfg = setup(args)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
        )
    except (ConfigError, CheckpointError) as error:
        sys.exit(f"train_net.py: {error}")
