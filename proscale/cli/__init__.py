"""The command ``proscale``."""

import argparse
import logging
import sys

from proscale.cli import benchmark, check_dataset, compare_merging, convert, demo, flops, prepare
from proscale.engine import ConfigError

_COMMANDS = (demo, flops, benchmark, prepare, check_dataset, compare_merging, convert)


def main(arguments: list[str] | None = None) -> None:
    """Run ``proscale COMMAND …``; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(prog="proscale", description="Efficient image segmentation.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    # What libraries warn about while they work goes to the log, not between a command's lines.
    logging.captureWarnings(True)
    try:
        options.run(options)
    except ConfigError as error:
        sys.exit(f"proscale: {error}")
