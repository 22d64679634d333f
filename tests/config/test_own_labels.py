"""What a semantic block says of its labels: what is accepted, and how the rest is refused."""

import pytest

from proscale.config.own_labels import OwnLabels, parse_labels
from proscale.data.formats.label_table import LabelTable

WHERE = "DATASETS.OWN[0]"


def test_nothing_said():
    assert parse_labels({}, WHERE) == OwnLabels(None, None, (255,), ())


def test_255_is_ignored_unless_it_has_a_name():
    assert parse_labels({"LABELS": {"a": 3}}, WHERE).table == LabelTable({3: 0, 255: 255})
    assert parse_labels({"LABELS": {"a": 255}}, WHERE).table == LabelTable({255: 0})


def test_several_labels_may_be_one_class():
    labels = parse_labels({"LABELS": {"a": [3, 2], "b": 1}, "IGNORE_LABEL": []}, WHERE)
    assert labels.classes == ("b", "a")
    assert labels.table == LabelTable({1: 0, 2: 1, 3: 1})


def test_order_does_not_depend_on_that_of_the_file():
    for key, values in {"LABELS": {"z": 0, "a": 1}, "COLORS": {"z": [0] * 3, "a": [1] * 3}}.items():
        turned = dict(reversed(values.items()))
        assert parse_labels({key: values}, WHERE) == parse_labels({key: turned}, WHERE)


def test_several_colours_may_be_ignored():
    block = {"COLORS": {"a": [1, 0, 0]}, "IGNORE_LABEL": [[0, 1, 0], [0, 0, 1]]}
    table = parse_labels(block, WHERE).table
    assert table == LabelTable({1: 0, 256: 255, 65536: 255}, in_color=True)
    assert table.accepted == "[1, 0, 0], [0, 1, 0], [0, 0, 1]"


WRONG = {
    "two ways": ({"CLASSES": ["a"], "LABELS": {"a": 1}}, "has CLASSES and LABELS: expected one"),
    "list": ({"LABELS": ["a"]}, r"LABELS is .*: expected \{name: label, …\}"),
    "empty": ({"LABELS": {}}, "LABELS is"),
    "text": ({"LABELS": {"a": "1"}}, "LABELS is"),
    "truth": ({"LABELS": {"a": True}}, "LABELS is"),
    "negative": ({"LABELS": {"a": -1}}, "labels of 0 to 65535"),
    "too large": ({"LABELS": {"a": 2**16}}, "labels of 0 to 65535"),
    "name": ({"LABELS": {"a\n": 1}}, "LABELS is"),
    "no label": ({"LABELS": {"a": []}}, "LABELS is"),
    "twice": ({"LABELS": {"a": 1, "b": [2, 1]}}, "LABELS has a label twice"),
    "too many": ({"LABELS": {f"c{n}": n for n in range(256)}}, "LABELS has 256 classes: expected"),
    "both": ({"LABELS": {"a": 1}, "IGNORE_LABEL": 1}, "IGNORE_LABEL has 1, which is one of LABELS"),
    "ignored text": ({"IGNORE_LABEL": "void"}, "IGNORE_LABEL is .void.: expected a label of 0 to"),
    "ignored twice": ({"IGNORE_LABEL": [1, 1]}, "IGNORE_LABEL is"),
    "ignored colour": ({"COLORS": {"a": [0, 0, 0]}, "IGNORE_LABEL": 0}, r"expected \[R, G, B\]"),
    "colour": ({"COLORS": {"a": [0, 0, 256]}}, r"COLORS is .*: expected \{name: \[R, G, B\]"),
    "colour text": ({"COLORS": {"a": "#ff0000"}}, "COLORS is"),
    "colours": ({"COLORS": {"a": [0, 0, 1], "b": [0, 0, 1]}}, "have a colour twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    block, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"DATASETS\.OWN\[0\].*{message}"):
        parse_labels(block, WHERE)
