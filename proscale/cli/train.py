"""``proscale train``: train a model, from a configuration or from another model's weights.

CONFIG is a file or a name of ``proscale models``. The console has a line of progress now and then;
OUTPUT_DIR gets the log, curves and checkpoints, which describe their model. Several processes of
one machine: --num-gpus, or torchrun --no-python proscale train CONFIG.
"""

import argparse

from proscale.cli.arguments import add_job, words_of_job
from proscale.engine.run import run as run_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "Example: proscale train demo/proscale_r18_111 OUTPUT_DIR output/run"
    add_job(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    help_ = "begin anew in an OUTPUT_DIR with a training, which is removed"
    parser.add_argument("--overwrite", action="store_true", help=help_)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    words = words_of_job(options)
    words += [f"--{flag}" for flag in ("resume", "overwrite") if getattr(options, flag)]
    run_job([*words, *options.opts])
