"""The command ``proscale``: its commands by name, and the call of one.

A module beside the package: importing anything of ``proscale`` imports PyTorch and Detectron2, for
seconds, which ``--help``, ``--version`` and a mistyped name have no need of.
"""

import argparse
import difflib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "setup": "install Detectron2, which pip does not find",
    "models": "list configurations and weights by name",
    "train": "train a model",
    "evaluate": "evaluate a model",
    "demo": "train and evaluate a small model on generated images",
    "flops": "count multiply-adds, parameters, activations and tokens",
    "benchmark": "time models part by part, and measure their memory",
    "predict": "segment images and videos, and show the results on a page",
    "prepare": "make the files that a data set's names read",
    "check-dataset": "check every image and mask of data sets",
    "compare-merging": "a trained model with every kind of token merging",
    "train-gate": "let an elastic model choose a budget for each image",
    "convert": "rename the tensors of a checkpoint file, or adapt them to a model",
    "export": "write a model as ONNX or torch.export file, checked",
    "replay": "repeat a training step that was not finite",
    "report": "show a training on a page: curves, results, images, cost",
    "completion": "have bash complete the names of commands",
}
"""Help line by name. Each is a module of :mod:`proscale.cli` with ``add_arguments(parser)`` and
``run(options)``; its docstring, from the second paragraph, is the command's description. ``setup``
and ``completion`` are beside the package, which cannot be imported before the first has run, and
takes seconds."""


def main(arguments: list[str] | None = None) -> None:
    """Run ``proscale COMMAND …``; ``arguments`` are those of the command line when None."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="proscale", description="Efficient image segmentation.")
    parser.add_argument("--version", action="version", version=f"proscale {version('proscale')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in words[:1]:
            _fill(command, module_of(name))
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected {', '.join(COMMANDS)}"
        parser.error(f"there is no command {words[0]!r}: {hint}")
    options = parse(parser, words)
    # Warnings of libraries go to the log, not between a command's lines.
    logging.captureWarnings(True)
    with errors_in_one_sentence("proscale"):
        options.run(options)


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command, with KEY VALUE pairs anywhere among the words."""
    options, rest = parser.parse_known_args(words)
    # argparse takes words that are no options in one row only.
    if rest and ("opts" not in options or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.opts = [*options.opts, *rest]
    return options


@contextmanager
def errors_in_one_sentence(program: str) -> Iterator[None]:
    """End the program with the message alone of an error that the user can repair: wrong input, or
    files and folders that the operating system refuses."""

    def tell(failure: threading.ExceptHookArgs) -> None:
        from proscale.errors import UserError, one_sentence

        if isinstance(failure.exc_value, (UserError, OSError)):
            print(f"{program}: {one_sentence(failure.exc_value)}", file=sys.stderr)
        else:
            hook(failure)

    # Names of files may have bytes that are no text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # A log that cannot be written is no reason for a traceback of each of its lines.
    logging.raiseExceptions = False
    # TensorBoard writes on a thread, and raises the error in the main one as well.
    hook, threading.excepthook = threading.excepthook, tell
    try:
        yield
    except BrokenPipeError:
        # The reader of a pipe, such as head, has had enough: nothing more can be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # Not before: `proscale setup` runs where the package cannot be imported yet.
        from proscale.errors import UserError, one_sentence

        if isinstance(error, (UserError, OSError)):
            sys.exit(f"{program}: {one_sentence(error)}")
        raise
    finally:
        threading.excepthook = hook


def module_of(name: str) -> str:
    """The module of a command."""
    if name in ("setup", "completion"):
        return f"proscale_{name}"
    return f"proscale.cli.{name.replace('-', '_')}"


def _fill(parser: argparse.ArgumentParser, module_name: str) -> None:
    """Import a command, and give its parser the arguments and the function to call."""
    try:
        module = import_module(module_name)
    except ImportError as error:
        # A package that is missing is told with the command that installs it.
        if error.name == "proscale":
            sys.exit(f"proscale: {error}")
        raise
    parser.description = (module.__doc__ or "").split("\n\n", 1)[1]
    parser.set_defaults(run=module.run)
    module.add_arguments(parser)
