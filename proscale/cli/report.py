"""``proscale report``: from the folder of a training to one page that shows how it went.

Curves, results with every class, the best and worst images with their annotations, cost,
configuration and versions, in a single HTML file that needs no server and no network. Folders of a
training that still runs, or of an evaluation alone, have a page with the parts that are there.
"""

import argparse
from pathlib import Path

from proscale.errors import ConfigError, printable
from proscale.report import write_report
from proscale.utils.whole_files import try_file

PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of the training")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page (default: RUN_DIR/{PAGE})"
    )
    parser.add_argument(
        "--images",
        type=_count,
        default=4,
        metavar="N",
        help="best and as many worst images of every data set, predicted with the final weights "
        "(default: %(default)s; 0 for none)",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    output = options.output or options.run_dir / PAGE
    if options.output and not output.parent.is_dir():
        raise ConfigError(f"--output is {output}: there is no folder {output.parent}: expected one")
    if options.run_dir.is_dir():
        try_file(output, "--output" if options.output else "RUN_DIR")
    for sentence in write_report(options.run_dir, output, images=options.images):
        print(printable(sentence, limit=None))
    print(f"Report: {output}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers from 0")
    return int(text)
