"""The command ``proscale``."""

import argparse
import logging
import sys

from proscale.cli import (
    benchmark,
    check_dataset,
    compare_merging,
    convert,
    demo,
    export,
    flops,
    predict,
    prepare,
    replay,
    report,
)
from proscale.errors import ConfigError

_COMMANDS = (
    demo,
    flops,
    benchmark,
    predict,
    prepare,
    check_dataset,
    compare_merging,
    convert,
    export,
    replay,
    report,
)


def main(arguments: list[str] | None = None) -> None:
    """Run ``proscale COMMAND …``; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(prog="proscale", description="Efficient image segmentation.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes words that are no options in one row only, but KEY VALUE may stand anywhere.
    if rest and ("opts" not in options or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.opts = [*options.opts, *rest]
    # What libraries warn about while they work goes to the log, not between a command's lines.
    logging.captureWarnings(True)
    try:
        options.run(options)
    except ConfigError as error:
        sys.exit(f"proscale: {error}")
