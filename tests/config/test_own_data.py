"""The blocks of DATASETS.OWN: what is accepted, and how the rest is refused."""

import pytest

from proscale.config.own_data import TASKS, parse_blocks


@pytest.mark.parametrize("task", TASKS)
def test_a_block_becomes_paths(own_data, own_block, task):
    (dataset,) = parse_blocks([own_block(task)])
    assert (dataset.name, dataset.task, dataset.labels.classes) == (f"own_{task}", task, None)
    train, val = dataset.splits["TRAIN"], dataset.splits["VAL"]
    assert (train.name, val.name) == (f"own_{task}_train", f"own_{task}_val")
    assert train.images == own_data / "train"
    assert (train.annotations is None) == (task == "semantic")
    assert (val.masks is None) == (task not in ("panoptic", "semantic"))


def test_variables_home_and_relative_paths(own_data, own_block, monkeypatch):
    block = own_block("semantic")
    monkeypatch.setenv("MY_DATA", str(own_data))
    variable = parse_blocks([{**block, "ROOT": "$MY_DATA"}])
    monkeypatch.setenv("HOME", str(own_data))
    home = parse_blocks([{**block, "ROOT": "~"}])
    monkeypatch.chdir(own_data)
    relative = parse_blocks([{key: value for key, value in block.items() if key != "ROOT"}])
    assert variable == home
    assert relative[0].splits["VAL"].images.samefile(own_data / "val")


@pytest.mark.parametrize("split", ["TRAIN", "VAL"])
def test_one_split_is_enough(own_block, split):
    block = own_block("panoptic")
    del block[split]
    (dataset,) = parse_blocks([block])
    assert list(dataset.splits) == [{"TRAIN": "VAL", "VAL": "TRAIN"}[split]]


WRONG = {
    "no block": (lambda b: "pets", r"OWN\[0\] is 'pets': expected a block with NAME, TASK"),
    "misspelt key": (
        lambda b: {**b, "TRIAN": 1},
        r"no key DATASETS\.OWN\[0\]\.TRIAN \(did you mean TRAIN\?\): expected NAME, TASK, ROOT",
    ),
    "lower case": (lambda b: {**b, "name": "x"}, r"OWN\[0\]\.name \(did you mean NAME\?\)"),
    "misspelt path": (
        lambda b: {**b, "VAL": {**b["VAL"], "MASK": "x"}},
        r"OWN\[0\]\.VAL\.MASK \(did you mean MASKS\?\): expected IMAGES, ANNOTATIONS, MASKS",
    ),
    "no name": (lambda b: {"TASK": "panoptic"}, r"OWN\[0\] has no NAME"),
    "name": (lambda b: {**b, "NAME": "a b"}, r"NAME is 'a b': expected letters, digits"),
    "number": (lambda b: {**b, "NAME": 3}, r"NAME is 3: expected a text"),
    "task": (lambda b: {**b, "TASK": "boxes"}, "TASK is 'boxes': expected panoptic, instance"),
    "no split": (lambda b: {"NAME": "a", "TASK": "semantic"}, "neither TRAIN nor VAL"),
    "split": (lambda b: {**b, "TRAIN": "x"}, r"TRAIN is 'x': expected a block with IMAGES"),
    "no masks": (
        lambda b: {**b, "TRAIN": {"IMAGES": b["TRAIN"]["IMAGES"]}},
        r"TRAIN has no ANNOTATIONS, which must be given",
    ),
    "no folder": (
        lambda b: {**b, "VAL": {**b["VAL"], "MASKS": "nowhere"}},
        r"OWN\[0\]\.VAL\.MASKS: there is no folder .*nowhere",
    ),
    "no file": (
        lambda b: {**b, "VAL": {**b["VAL"], "ANNOTATIONS": "train"}},
        r"OWN\[0\]\.VAL\.ANNOTATIONS: there is no file .*train",
    ),
    "variable": (lambda b: {**b, "ROOT": "$NOT_SET/a"}, "environment variable NOT_SET is not set"),
    "a file name that is too long": (
        lambda b: {**b, "VAL": {**b["VAL"], "ANNOTATIONS": "n" * 300}},
        r"OWN\[0\]\.VAL\.ANNOTATIONS: there is no file",
    ),
    "no such user": (lambda b: {**b, "ROOT": "~nosuchuser"}, "there is no folder ~nosuchuser/"),
    "class names": (
        lambda b: {**b, "CLASSES": ["a"]},
        "CLASSES is for TASK semantic only; TASK is panoptic",
    ),
    "twice": (lambda b: None, "has the NAME own_panoptic twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_block_is_refused(own_block, case):
    change, message = WRONG[case]
    block = own_block("panoptic")
    changed = change(block)
    with pytest.raises(ValueError, match=message):
        parse_blocks([block, block] if changed is None else [changed])


@pytest.mark.parametrize("classes", ["cat", [], [1, 2], ["cat", "cat"]])
def test_class_names_must_be_different_texts(own_block, classes):
    with pytest.raises(ValueError, match=r"OWN\[0\]\.CLASSES"):
        parse_blocks([{**own_block("semantic"), "CLASSES": classes}])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MASK_SUFFIX", "/../x.png", "MASK_SUFFIX is .*: expected the ending of a file's name"),
        ("IMAGE_SUFFIX", "\0.jpg", "IMAGE_SUFFIX is .*: expected the ending of a file's name"),
        ("CLASSES", ["a", "b\nc"], "CLASSES is .*: expected a list of texts on one line"),
        ("CLASSES", ["\ud800"], "CLASSES is .*: expected a list of texts on one line"),
    ],
)
def test_a_wrong_semantic_block_is_refused(own_block, key, value, message):
    with pytest.raises(ValueError, match=message):
        parse_blocks([{**own_block("semantic"), key: value}])


def test_what_is_said_of_keypoints(own_block):
    given = {"FLIP_PAIRS": [["left_side", "right_side"]], "SIGMAS": [1, 0.5, 0.05]}
    (dataset,) = parse_blocks([{**own_block("keypoints"), **given}])
    assert dataset.flip_pairs == (("left_side", "right_side"),)
    assert dataset.sigmas == (1.0, 0.5, 0.05)
    (dataset,) = parse_blocks([own_block("keypoints")])
    assert dataset.flip_pairs is dataset.sigmas is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("FLIP_PAIRS", value) for value in ("a", [["a"]], [["a", 3]], [["a", "a"]], ["ab"])),
        *(("FLIP_PAIRS", value) for value in ([["a", "b"], ["b", "c"]], [{"a": "b"}], None)),
        *(("SIGMAS", value) for value in (0.1, [], [0], [-1], [True], ["a"], [1e9], None)),
    ],
)
def test_wrong_keypoint_keys_are_refused(own_block, key, value):
    with pytest.raises(ValueError, match=rf"OWN\[0\]\.{key} is .*: expected a list of "):
        parse_blocks([{**own_block("keypoints"), key: value}])
    with pytest.raises(ValueError, match=rf"{key} is for TASK keypoints only; TASK is instance"):
        parse_blocks([{**own_block("instance"), key: value}])
