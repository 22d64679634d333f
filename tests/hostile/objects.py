"""Boxes and keypoints: annotation files, boxes of detectors, and tables that are not what they say.

Every fault of an annotation file is met where training, evaluation and ``check-dataset`` meet it.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from proscale import add_proscale_config
from proscale.config import setup_cfg
from proscale.data import build_mapper
from proscale.data.datasets.jbd import KEYPOINT_NAMES
from proscale.data.datasets.own import register_own_data
from proscale.data.persons import evaluated_persons, person_records
from proscale.data.prepare import prepare
from proscale.evaluation import PoseEvaluator
from tests.hostile.cases import Case, OwnData, Place
from tests.hostile.coco import EVERYWHERE, check, meet
from tests.hostile.material import KEYPOINTS, own_block

_NAME = "own_keypoints_train"
Spoil = Callable[[OwnData], object]


def _box(**values: Any) -> Spoil:
    return lambda f: f.edit_instances(lambda c: c["annotations"][0].update(values))


def _person(**values: Any) -> Spoil:
    return lambda f: f.edit(f.keypoints_json, lambda c: c["annotations"][0].update(values))


def _category(**values: Any) -> Spoil:
    def change(f: OwnData) -> None:
        for split in ("train", "val"):
            path = f.root / "annotations" / f"keypoints_{split}.json"
            f.edit(path, lambda c: c["categories"][0].update(values))

    return change


# What is done to the first object, where it is met, and words that are told.
_BOXES: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    name: (_box(bbox=box), where, words)
    for name, box, where, words in (
        ("none", None, EVERYWHERE, ("annotation", "box")),
        ("three numbers", [1, 2, 3], EVERYWHERE, ("annotation", "[1, 2, 3]")),
        ("texts", ["1", "2", "3", "4"], EVERYWHERE, ("annotation", '"1"')),
        ("a text", "1234", EVERYWHERE, ("annotation", '"1234"')),
        ("an object", {"x": 1}, EVERYWHERE, ("annotation",)),
        ("truths", [True, True, True, True], EVERYWHERE, ("annotation",)),
        ("lists", [[1], [2], [3], [4]], EVERYWHERE, ("annotation",)),
        ("no width", [1, 2, 0, 4], ("check",), ("box-empty", "[1, 2, 0, 4]")),
        ("a negative height", [1, 2, 3, -4], ("check",), ("box-empty",)),
        ("far outside", [1e9, 1e9, 5, 5], ("check",), ("box-outside",)),
    )
}
_BOXES["infinity"] = (
    lambda f: f.edit_text(f.instances_json, '"bbox": [', '"bbox": [1e400, '),
    EVERYWHERE,
    ("annotation",),
)
_BOXES["an unknown category"] = (_box(category_id=99), EVERYWHERE, ("99",))

# Boxes that are no targets, or are clipped.
_SOUND_BOXES = {
    "as generated": lambda f: None,
    "without width": _box(bbox=[1, 2, 0, 4]),
    "of negative size": _box(bbox=[30, 30, -20, -20]),
    "far outside": _box(bbox=[1e200, 1e200, 1e200, 1e200]),
    "around everything": _box(bbox=[-1e200, -1e200, 1e201, 1e201]),
    "without segmentation": _box(segmentation=None),
    "nothing": lambda f: f.edit_instances(lambda c: c["annotations"].clear()),
}

_PERSONS: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    "too few numbers": (_person(keypoints=[1, 2, 2]), EVERYWHERE, ("annotation", "keypoints")),
    "too many numbers": (_person(keypoints=[1, 2, 2] * 9), EVERYWHERE, ("annotation", "27")),
    "texts": (_person(keypoints=["1"] * 9), EVERYWHERE, ("keypoints_train.json", "numbers")),
    "truths": (_person(keypoints=[True] * 9), EVERYWHERE, ("keypoints_train.json",)),
    "a text": (_person(keypoints="123456789"), EVERYWHERE, ("keypoints_train.json",)),
    "an object": (_person(keypoints={}), EVERYWHERE, ("keypoints_train.json",)),
    "lists": (_person(keypoints=[[1, 2, 2]] * 3), EVERYWHERE, ("keypoints_train.json",)),
    "infinity": (
        lambda f: f.edit_text(f.keypoints_json, '"keypoints": [', '"keypoints": [1e400, '),
        EVERYWHERE,
        ("keypoints_train.json",),
    ),
    "visibility 7": (_person(keypoints=[1, 2, 7] * 3), ("train", "check"), ("visibility",)),
    "visibility below 0": (_person(keypoints=[1, 2, -1] * 3), ("train", "check"), ("visibility",)),
    "a text as number": (_person(num_keypoints="3"), EVERYWHERE, ("num_keypoints",)),
    "another number": (_person(num_keypoints=2**40), ("check",), ("keypoint-count-differs",)),
    "a box of texts": (_person(bbox=["1", "2", "3", "4"]), EVERYWHERE, ("bbox",)),
    "no box": (lambda f: f.edit(f.keypoints_json, _without_box), ("evaluate", "check"), ("box",)),
    "area that is a text": (_person(area="large"), EVERYWHERE, ("area",)),
    "an unknown category": (_person(category_id=2), ("train", "check"), ("category_id 2",)),
    "an unknown image": (_person(image_id=77), EVERYWHERE, ("77",)),
    "keypoints outside": (_person(keypoints=[999, 999, 2] * 3), ("check",), ("keypoint-outside",)),
    "names that are numbers": (_category(keypoints=[1, 2, 3]), ("train",), ("keypoints is [1,",)),
    "no names": (_category(keypoints=[]), ("train",), ("keypoints is []",)),
    "names twice": (_category(keypoints=["a"] * 3), ("train",), ("there twice",)),
    "a name with an escape": (_category(keypoints=["a\x1b[2J"] * 3), ("train",), ("keypoints",)),
    "a link to nowhere": (_category(skeleton=[[1, 9]]), ("train",), ("skeleton", "from 1 to 3")),
    "a link of three": (_category(skeleton=[[1, 2, 3]]), ("train",), ("skeleton",)),
    "a link of texts": (_category(skeleton=[["a", "b"]]), ("train",), ("skeleton",)),
    "nobody": (
        lambda f: f.edit(f.keypoints_json, lambda c: c["annotations"].clear()),
        ("persons",),
        ("no persons",),
    ),
}

_SOUND_PERSONS = {
    "as generated": lambda f: None,
    "far outside": _person(keypoints=[1e200, -1e200, 2] * 3),
    "without labels": _person(keypoints=[5, 5, 0] * 3, num_keypoints=0),
    "without keypoints": _person(keypoints=[]),
    "a box around everything": _person(bbox=[-1e200, -1e200, 1e201, 1e201]),
    "a box without size": _person(bbox=[5, 5, 0, 0]),
}


def _without_box(content: dict[str, Any]) -> None:
    del content["annotations"][0]["bbox"]


def meet_persons(place: Place, where: str, boxes: str = "") -> list[dict[str, Any]]:
    """Read the persons of the case's own data as training, evaluation or the check does."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PoseEstimator"
    cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS = len(KEYPOINTS)
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = (_NAME,)
    cfg.DATASETS.PERSON_BOXES_TEST = boxes
    register_own_data([own_block(place.own.root, "keypoints") | {"SIGMAS": [0.1] * 3}])
    if where == "check":
        return check(_NAME)
    if where == "persons":
        return evaluated_persons(cfg, _NAME)
    records = person_records(DatasetCatalog.get(_NAME)) if where == "train" else []
    if where == "evaluate":
        # The evaluator reads the annotations itself.
        evaluator, records = PoseEvaluator(_NAME), evaluated_persons(cfg, _NAME)
    mapper = build_mapper(cfg, is_train=where == "train")
    samples = [mapper(record) for record in records]
    if where == "evaluate":
        for sample in samples:
            instances = Instances((sample["height"], sample["width"]))
            instances.pred_keypoints = torch.ones(1, len(KEYPOINTS), 3)
            instances.pred_boxes = Boxes(sample["box"][None])
            instances.scores = instances.box_scores = torch.ones(1)
            evaluator.process([sample], [{"instances": instances}])
        evaluator.evaluate()
    return samples


def _boxes_case(name: str, spoil: Spoil, where: str, words: tuple[str, ...] = ()) -> Case:
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, "detection", where)

    if words:
        return Case(f"boxes: {name}, {where}", run, words)
    return Case(f"boxes: {name}, {where}", run, (), False, lambda _, read: len(read) == 3)


def _persons_case(name: str, spoil: Spoil, where: str, words: tuple[str, ...] = ()) -> Case:
    def run(place: Place) -> object:
        spoil(place.own)
        return meet_persons(place, where)

    refused = bool(words)
    return Case(f"keypoints: {name}, {where}", run, words, refused, None if refused else _any)


def _any(place: Place, read: Any) -> bool:
    return len(read) > 0


DETECTION = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.5}
# Content of the file of a detector's boxes, and words that are told.
_DETECTED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an object": ({"annotations": []}, ("expected a list",)),
    "text": ("boxes", ("not a JSON file",)),
    "nested too deeply": ("[" * 100_000, ("nested too deeply",)),
    "nobody": ([], ("no persons",)),
    "of another category": ([{**DETECTION, "category_id": 2}], ("no persons",)),
    "numbers": ([1, 2], ("boxes.json[0] is 1",)),
    "an unknown image": ([{**DETECTION, "image_id": 99}], ("image_id is 99",)),
    "an image that is a list": ([{**DETECTION, "image_id": []}], ("image_id is []",)),
    "no score": ([{k: v for k, v in DETECTION.items() if k != "score"}], ("no key 'score'",)),
    "a score that is no number": ('[{"image_id": 1, "score": NaN}]', ("NaN",)),
    "an infinite box": (
        json.dumps([DETECTION]).replace("[5,", "[1e400,"),
        ("bbox is",),
    ),
    "a box without size": ([{**DETECTION, "bbox": [5, 5, 0, 9]}], ("width and height above 0",)),
    "a box of texts": ([{**DETECTION, "bbox": ["5"] * 4}], ("bbox is",)),
}


def _detected(name: str, content: Any, words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        place.write("boxes.json", content)
        return meet_persons(place, "evaluate", "boxes.json")

    return Case(f"detected: {name}", run, ("boxes.json", *words))


def _detected_right(place: Place) -> object:
    """Boxes partly outside, far outside and huge are used as they are."""
    boxes = [[-5, -5, 30, 30], [1000, 1000, 5, 5], [-1e6, -1e6, 2e6, 2e6]]
    place.write("boxes.json", [{**DETECTION, "bbox": box} for box in boxes])
    return meet_persons(place, "evaluate", "boxes.json")


_KEYS = {
    "pairs of an unknown name": ({"FLIP_PAIRS": [["top", "x"]]}, "FLIP_PAIRS has x"),
    "pairs of one name": ({"FLIP_PAIRS": [["top", "top"]]}, "FLIP_PAIRS is"),
    "pairs that are a text": ({"FLIP_PAIRS": "top"}, "FLIP_PAIRS is"),
    "pairs that are numbers": ({"FLIP_PAIRS": [[1, 2]]}, "FLIP_PAIRS is"),
    "a tolerance too few": ({"SIGMAS": [0.1, 0.1]}, "SIGMAS has 2 numbers"),
    "a tolerance of 0": ({"SIGMAS": [0, 0.1, 0.1]}, "SIGMAS is"),
    "an infinite tolerance": ({"SIGMAS": [float("inf")] * 3}, "SIGMAS is"),
    "no number": ({"SIGMAS": [float("nan")] * 3}, "SIGMAS is"),
    "tolerances that are a text": ({"SIGMAS": "0.1"}, "SIGMAS is"),
}


def _key(name: str, given: dict[str, Any], word: str) -> Case:
    def run(place: Place) -> object:
        block = own_block(place.own.root, "keypoints") | given
        content = {"_BASE_": "coco/keypoints/segformer_b0", "DATASETS": {"OWN": [block]}}
        return setup_cfg(str(place.write("own.yaml", yaml.safe_dump(content))))

    return Case(f"block: {name}", run, (word,))


_COLUMNS = [f"{name}_{value}" for name in KEYPOINT_NAMES for value in "xys"]
_HEADER = ";".join(["event", "frame_num", *_COLUMNS])
_ROW = ";".join(["0", "7", *["5"] * len(_COLUMNS)])
_FRAMES = "image_id, min_x, min_y, width, height\n0_(00007),1,2,40,30\n"
# The table, the boxes, and words that are told.
_TABLES: dict[str, tuple[str | bytes, str | bytes, tuple[str, ...]]] = {
    "empty": (b"", _FRAMES, ("train.csv", "no column event")),
    "bytes": (b"\xff\x00\xfe", _FRAMES, ("train.csv", "UTF-8")),
    "a field of a megabyte": (f"\n{'a' * 2**20}", _FRAMES, ("train.csv", "field larger")),
    "an event that leads out": (
        f"\n{_HEADER}\n../../outside{_ROW[1:]}",
        _FRAMES,
        ("line 3: event is",),
    ),
    "an escape sequence": (f"\n{_HEADER}\n\x1b[2J{_ROW[1:]}", _FRAMES, ("line 3: event is",)),
    "digits of another script": (f"\n{_HEADER}\n٣{_ROW[1:]}", _FRAMES, ("line 3: event is",)),
    "no number": (f"\n{_HEADER}\n{_ROW[:-1]}nan", _FRAMES, ("ltoe_s", "nan")),
    "a number of 5000 digits": (f"\n{_HEADER}\n{_ROW[:-1]}{'9' * 5000}", _FRAMES, ("ltoe_s",)),
    "an infinite box": (f"\n{_HEADER}\n{_ROW}", _FRAMES.replace("40", "inf"), ("bbox.csv",)),
    "a frame that is not there": (
        f"\n{_HEADER}\n1{_ROW[1:]}",
        _FRAMES + "1_(00007),1,2,3,4",
        ("1_",),
    ),
    "no box of a frame": (f"\n{_HEADER}\n{_ROW}", _FRAMES.replace("0_", "9_"), ("no frame",)),
}


def _table(name: str, table: str | bytes, boxes: str | bytes, words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        place.write("jump_broadcast/train.csv", table)
        place.write("jump_broadcast/bbox.csv", boxes)
        (place / "jump_broadcast/0").mkdir()
        Image.new("RGB", (80, 60)).save(place / "jump_broadcast/0/0_(00007).jpg")
        return prepare("jbd", place.folder, workers=1)

    return Case(f"tables: {name}", run, words)


CASES = [
    *(
        _boxes_case(name, spoil, where, words)
        for name, (spoil, met, words) in _BOXES.items()
        for where in met
    ),
    *(
        _boxes_case(name, spoil, where)
        for name, spoil in _SOUND_BOXES.items()
        for where in ("train", "evaluate")
    ),
    *(
        _persons_case(name, spoil, where, words)
        for name, (spoil, met, words) in _PERSONS.items()
        for where in met
    ),
    *(
        _persons_case(name, spoil, where)
        for name, spoil in _SOUND_PERSONS.items()
        for where in ("train", "evaluate")
    ),
    *(_detected(name, *spec) for name, spec in _DETECTED.items()),
    Case("detected: boxes outside", _detected_right, (), False, lambda _, read: len(read) == 3),
    *(_key(name, *spec) for name, spec in _KEYS.items()),
    *(_table(name, *spec) for name, spec in _TABLES.items()),
]
