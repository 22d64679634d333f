"""``proscale prepare``: make of a downloaded data set the files that its registered names read.

Works in parallel, keeps what is complete, and leaves no half-written file when interrupted: call it
again to go on. Layouts and names are in datasets/README.md.
"""

import argparse
import os
from pathlib import Path

from proscale.data.datasets.registration import data_root
from proscale.data.prepare import PREPARATIONS, prepare
from proscale.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument(
        "dataset",
        choices=PREPARATIONS,
        metavar="DATASET",
        help=f"one of {', '.join(PREPARATIONS)}; a name without a task makes all of its files",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=data_root(),
        metavar="DIR",
        help="folder of all data sets, as $DETECTRON2_DATASETS names it; of labelme and yolo the "
        "folder of the export",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="images converted at a time"
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}: expected 1 or more")
    try:
        tallies = prepare(options.dataset, options.root, workers=options.workers)
    except OSError as error:  # no space, no permission, or a source is missing
        raise DataError(f"prepare {options.dataset}: {error}") from error
    for tally in tallies:
        print(f"{tally.target}: {tally.made} images converted, {tally.kept} were there")
