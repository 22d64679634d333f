"""Errors that a user can cause: the message is one sentence that names the file or key."""

import json
from itertools import islice


class UserError(ValueError):
    """Something outside of the program is wrong; the message is one printable sentence."""

    def __str__(self) -> str:
        # Names from outside may hold line breaks, escape sequences and bytes that are no text.
        return printable(super().__str__(), limit=None)


class ConfigError(UserError):
    """A key, value or file of a configuration, or an option of a command, is wrong."""


class CheckpointError(UserError):
    """A checkpoint is not what it should be."""


class DataError(UserError):
    """A file of a data set is wrong."""


class MissingFileError(DataError, FileNotFoundError):
    """A file of a data set is not there."""


class ExportError(UserError):
    """A model cannot be exported, or its file does not compute the same."""


class OutputError(UserError):
    """A file cannot be written."""


class RunFolderError(UserError):
    """A folder is not that of a training or an evaluation."""


class RenderError(UserError):
    """A picture of a report cannot be drawn."""


class TrainingFault(UserError, FloatingPointError):
    """A training stopped because a cost, a loss or a gradient is not finite."""


class ProcessFailed(UserError):
    """A process that was started here has failed; the message is the first one's reason."""


def one_sentence(error: Exception) -> str:
    """The message of an error, of one in a data loader's worker without its traceback."""
    # Of the operating system's errors the file, if they have one, and the reason.
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return printable(": ".join([*names, error.strerror]), limit=None)
    message = str(error)
    if "Original Traceback" not in message:
        return message
    return message.rstrip().splitlines()[-1].partition(": ")[2]


def shown(value: object, limit: int = 60) -> str:
    """``value`` as a message quotes it: as JSON has it, and :func:`printable`."""
    try:
        # In steps: a list of lists of lists, the same one each time, would be written out.
        parts = json.JSONEncoder(ensure_ascii=False).iterencode(value)
        text = "".join(islice(parts, limit + 1))
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return printable(text, limit)


def printable(text: object, limit: int | None = 120) -> str:
    """``text`` from outside on one line, for messages.

    What is not printable is escaped as in Python's strings: control characters, line breaks,
    surrogates, marks that turn the direction of text. Longer texts end with ``…`` at ``limit``
    characters; None keeps all.
    """
    text = str(text)
    # Shortened first: a text may have gigabytes.
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
