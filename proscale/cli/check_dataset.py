"""``proscale check-dataset``: look at every image and mask before hours are spent on them.

Checks that every image opens and has the stated size, that every mask is there and matches its
annotation file, that labels and categories are known, and that no picture is in two data sets;
counts classes; warns of unusual files. Ends with a summary, and with exit status 1 if there are
errors.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from proscale.cli.arguments import try_outputs
from proscale.config import check_datasets as check_registered
from proscale.config import setup_cfg
from proscale.data.check import as_document, check_datasets, histogram, summary
from proscale.errors import ConfigError
from proscale.utils.whole_files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="check the data sets of its DATASETS.TRAIN and TEST, own data included",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found, too")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes"
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="registered data sets; with --config-file KEY VALUE, its overrides",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}: expected 1 or more")
    # Warnings of unreadable files are part of the report.
    logging.getLogger("proscale.data.formats.semantic_folders").setLevel(logging.ERROR)
    names = options.names
    if options.config_file:
        cfg = setup_cfg(options.config_file, [*names, "MODEL.DEVICE", "cpu"])
        names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ConfigError("nothing to check: expected names of data sets, or --config-file")
    check_registered(names)
    try_outputs(json=options.json)
    report = check_datasets(list(dict.fromkeys(names)), workers=options.workers)
    for dataset in report.datasets:
        print(f"\n{dataset.name}: {dataset.task}, {dataset.num_images} images")
        print(f"{histogram(dataset)}\n")
    print(summary(report))
    if options.json is not None:
        write_text(options.json, json.dumps(as_document(report), indent=2) + "\n")
        print(f"Everything found: {options.json}")
    if report.has_errors:
        sys.exit(1)
