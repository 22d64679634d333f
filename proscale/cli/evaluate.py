"""``proscale evaluate``: evaluate a model on its data set, or on DATASETS.TEST.

CONFIG is a checkpoint that describes its model, a name of ``proscale models``, or a configuration
with MODEL.WEIGHTS. Metrics are printed and written to OUTPUT_DIR.
"""

import argparse

from proscale.cli.arguments import add_job, words_of_job
from proscale.engine.run import run as run_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "Example: proscale evaluate output/run/model_final.pth"
    add_job(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    words = words_of_job(options)
    words.append("--eval-only")
    run_job([*words, *options.opts])
