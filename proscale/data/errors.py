"""The error of what is wrong with the files of a data set."""

import json


class DataError(ValueError):
    """A file of a data set is wrong; the message is one sentence that names it."""


def shown(value: object, most: int = 60) -> str:
    """``value`` as a message quotes it: as JSON has it, and shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= most else text[: most - 1] + "…"
