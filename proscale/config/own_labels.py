"""What a semantic block of ``DATASETS.OWN`` says of the pixels of its label images.

Without any of these keys label 0 is the first class, 1 the second, and 255 is ignored:

    CLASSES: [road, car]                                  # names of the labels 0 and 1
    LABELS: {background: 0, road: [1, 255]}               # any numbers
    COLORS: {road: [128, 64, 128], car: [64, 0, 128]}     # RGB
    IGNORE_LABEL: 11                                      # or a list; with COLORS a colour

Classes of ``LABELS`` are in the order of their lowest labels, those of ``COLORS`` in that of their
names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from proscale.data.formats.label_table import IGNORE_LABEL, MAX_CLASSES, LabelTable
from proscale.errors import ConfigError, shown
from proscale.utils.untrusted import is_name

KEYS = ("CLASSES", "LABELS", "COLORS", "IGNORE_LABEL")
_MAX_LABEL = 2**16 - 1

Color = tuple[int, int, int]


@dataclass(frozen=True)
class OwnLabels:
    """The keys of a block, typed.

    Attributes:
        classes: names by class id; None takes the labels found.
        table: see :class:`LabelTable`; None: it follows from ``ignored`` and the classes.
        ignored: values without a class.
        colors: RGB of the classes, or none.
    """

    classes: tuple[str, ...] | None = None
    table: LabelTable | None = None
    ignored: tuple[int, ...] = (IGNORE_LABEL,)
    colors: tuple[Color, ...] = ()


def parse_labels(block: Mapping[str, Any], where: str) -> OwnLabels:
    """Check and type the ``KEYS`` of a block, whose full name is ``where``.

    Raises:
        ConfigError: a value is not as above, is there twice, or more than one key names classes.
    """
    naming = [key for key in KEYS[:3] if key in block]
    if len(naming) > 1:
        raise ConfigError(f"{where} has {' and '.join(naming)}: expected one of them")
    if "LABELS" in block:
        return _numbers(block, where)
    if "COLORS" in block:
        return _colors(block, where)
    classes: Any = block.get("CLASSES")
    if "CLASSES" in block:
        is_list = isinstance(classes, (list, tuple)) and len(classes) > 0
        if not is_list or not all(map(is_name, classes)):
            expected = "a list of texts on one line, the names of the labels 0, 1, …"
            raise ConfigError(f"{where}.CLASSES is {classes!r}: expected {expected}")
        if len(set(classes)) < len(classes):
            raise ConfigError(f"{where}.CLASSES has a name twice: expected each once")
    ignored = _ignored_numbers(block, where)
    return OwnLabels(classes=tuple(classes) if classes else None, ignored=ignored)


def _numbers(block: Mapping[str, Any], where: str) -> OwnLabels:
    labels = block["LABELS"]
    of_names: dict[str, list[int]] = {}
    if isinstance(labels, Mapping):
        # Several labels may be one class.
        of_names = {
            name: list(value) if isinstance(value, (list, tuple)) else [value]
            for name, value in labels.items()
        }
    is_accepted = all(is_name(n) and v and all(map(_is_label, v)) for n, v in of_names.items())
    if not of_names or not is_accepted:
        expected = f"expected {{name: label, …}}, labels of 0 to {_MAX_LABEL}, or lists of them"
        raise ConfigError(f"{where}.LABELS is {shown(labels)}: {expected}")
    values = list(chain(*of_names.values()))
    if len(set(values)) < len(values):
        raise ConfigError(f"{where}.LABELS has a label twice: expected each once")
    _check_number(tuple(of_names), f"{where}.LABELS")
    # By their labels: a saved configuration has the names in another order.
    of_names = dict(sorted(of_names.items(), key=lambda item: min(item[1])))
    ignored = _ignored_numbers(block, where)
    if both := set(values) & set(ignored):
        # 255 is ignored unless it has a name.
        if "IGNORE_LABEL" in block:
            raise ConfigError(f"{where}.IGNORE_LABEL has {min(both)}, which is one of LABELS")
        ignored = ()
    classes = {number: class_ for class_, of in enumerate(of_names.values()) for number in of}
    table = LabelTable(classes | dict.fromkeys(ignored, IGNORE_LABEL))
    return OwnLabels(tuple(of_names), table, ignored)


def _colors(block: Mapping[str, Any], where: str) -> OwnLabels:
    colors = block["COLORS"]
    is_map = isinstance(colors, Mapping) and len(colors) > 0
    if not is_map or not all(is_name(n) and _is_color(color) for n, color in colors.items()):
        expected = "expected {name: [R, G, B], …}, values of 0 to 255"
        raise ConfigError(f"{where}.COLORS is {shown(colors)}: {expected}")
    _check_number(tuple(colors), f"{where}.COLORS")
    # By name: a saved configuration has them in this order.
    colors = dict(sorted(colors.items()))
    ignored: Any = block.get("IGNORE_LABEL", [])
    # One colour, or several.
    ignored = [ignored] if _is_color(ignored) else ignored
    if not isinstance(ignored, (list, tuple)) or not all(map(_is_color, ignored)):
        expected = "expected [R, G, B], or a list of such colours, because COLORS is given"
        raise ConfigError(f"{where}.IGNORE_LABEL is {shown(ignored)}: {expected}")
    values = [red | green << 8 | blue << 16 for red, green, blue in [*colors.values(), *ignored]]
    if len(set(values)) < len(values):
        raise ConfigError(
            f"{where}.COLORS and IGNORE_LABEL have a colour twice: expected each once"
        )
    classes = [*range(len(colors)), *[IGNORE_LABEL] * len(ignored)]
    table = LabelTable(dict(zip(values, classes, strict=True)), in_color=True)
    of_classes = tuple((red, green, blue) for red, green, blue in colors.values())
    return OwnLabels(tuple(colors), table, tuple(values[len(colors) :]), of_classes)


def _ignored_numbers(block: Mapping[str, Any], where: str) -> tuple[int, ...]:
    value = block.get("IGNORE_LABEL", IGNORE_LABEL)
    ignored = value if isinstance(value, (list, tuple)) else [value]
    if not all(map(_is_label, ignored)) or len(set(ignored)) < len(ignored):
        expected = f"expected a label of 0 to {_MAX_LABEL}, or a list of them, each once"
        raise ConfigError(f"{where}.IGNORE_LABEL is {shown(value)}: {expected}")
    return tuple(ignored)


def _check_number(names: tuple[str, ...], where: str) -> None:
    if len(names) > MAX_CLASSES:
        raise ConfigError(f"{where} has {len(names)} classes: expected {MAX_CLASSES} at most")


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_LABEL


def _is_color(value: Any) -> bool:
    is_triple = isinstance(value, (list, tuple)) and len(value) == 3
    return is_triple and all(type(v) is int and 0 <= v <= 255 for v in value)
