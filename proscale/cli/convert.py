"""``proscale convert``: a checkpoint file under the names of another scheme.

The scheme of INPUT is recognised by its names. Files are PyTorch's (.pth, .pt, .bin) or
safetensors, chosen by suffix.
"""

import argparse
from pathlib import Path

from proscale.checkpoint import (
    PROSCALE,
    SCHEMES,
    CheckpointError,
    convert,
    read_checkpoint,
    write_checkpoint,
)
from proscale.checkpoint.files import check_suffix
from proscale.engine import ConfigError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to ``proscale``."""
    parser = commands.add_parser(
        "convert",
        help="rename the tensors of a checkpoint file",
        description=__doc__.split("\n\n", 1)[1],
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="file to read")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to write")
    parser.add_argument(
        "--to",
        choices=(PROSCALE, *SCHEMES),
        default=PROSCALE,
        help="naming scheme of OUTPUT (default: %(default)s); huggingface is that of files, "
        "transformers that of models in memory",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    try:
        check_suffix(options.output)  # before the work
        content = read_checkpoint(options.input)
        try:
            conversion = convert(content, to=options.to)
        except CheckpointError as error:
            raise CheckpointError(f"{options.input}: {error}") from error
        container = "model" if options.to == PROSCALE else SCHEMES[options.to].container
        write_checkpoint(options.output, conversion.state_dict, container=container)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error

    print(
        f"{options.input}: names of scheme {conversion.source}\n"
        f"{options.output}: {len(conversion.state_dict)} tensors under the names of {options.to}"
    )
    if conversion.unknown:
        what = "kept under their names" if options.to == PROSCALE else "left out"
        print(f"Without a counterpart, {what}:")
        print("\n".join(f"  {name}" for name in conversion.unknown))
