"""A detector's file of boxes, in which a pose estimator looks for persons."""

from collections.abc import Callable
from typing import Any

from proscale.predict.persons import MAX_PERSONS, read_boxes
from tests.hostile.cases import Case, Place

BOX = {"image_id": 1, "category_id": 1, "bbox": [4, 2, 20, 40], "score": 0.9}


def _read(content: Any) -> Callable[[Place], object]:
    """The boxes of persons, of category 1, in a file of this content."""
    return lambda place: read_boxes(place.write("boxes.json", content), [1])


def _refused(name: str, content: Any, *words: str) -> Case:
    return Case(name, _read(content), ("boxes.json", *words))


def _with(**values: Any) -> list[dict[str, Any]]:
    return [BOX | values]


_WITHOUT_SCORE = [{key: value for key, value in BOX.items() if key != "score"}]

CASES = [
    _refused("no JSON", "boxes", "not a JSON file"),
    _refused("empty", "", "not a JSON file"),
    _refused("an object", {"annotations": [BOX]}, "expected a list"),
    _refused("a list of numbers", [1, 2], "[0]"),
    _refused("nested deeply", "[" * 100_000, "nested too deeply"),
    _refused("NaN", '[{"image_id": 1, "category_id": 1, "bbox": [NaN, 2, 3, 4]}]', "NaN"),
    _refused("infinity", '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, Infinity, 4]}]'),
    _refused("a number of 400 digits", f"[{'9' * 400}]"),
    _refused("an image id that is a fraction", _with(image_id=1.5), "image_id"),
    _refused("an image id that is true", _with(image_id=True), "image_id"),
    _refused("an image id that is a list", _with(image_id=[1]), "image_id"),
    _refused("no score", _WITHOUT_SCORE, "score"),
    _refused("a score that is a text", _with(score="0.9"), "score"),
    _refused("a score above 1", _with(score=7), "a score from 0 to 1"),
    _refused("three numbers", _with(bbox=[1, 2, 3]), "bbox"),
    _refused("a box without width", _with(bbox=[1, 2, 0, 4]), "x0 < x1"),
    _refused("a box with a negative height", _with(bbox=[1, 2, 3, -4]), "y0 < y1"),
    _refused("a box far outside", _with(bbox=[1e9, 2, 3, 4]), "1000000 pixels"),
    _refused("a box as large as numbers are", _with(bbox=[0, 0, 1e299, 1e299]), "1000000 pixels"),
    _refused("too many boxes", [BOX] * (MAX_PERSONS + 1), f"at most {MAX_PERSONS}"),
    Case(
        "boxes of another category",
        _read([*_with(category_id=2, bbox=[1, 2, 0, 4])]),
        is_refused=False,
        is_right=lambda place, found: found == {},
    ),
    Case(
        "an image id with control characters",
        _read(_with(image_id="a\n\x1b[31m", bbox=[1, 2, 0, 4])),
        ("boxes.json", r"a\n\x1b[31m"),
    ),
    Case("no file", lambda place: read_boxes(place / "boxes.json", [1]), ("boxes.json",)),
    Case(
        "a folder",
        lambda place: read_boxes((place / "boxes.json").mkdir() or place / "boxes.json", [1]),
        ("boxes.json",),
    ),
]
