"""Batches are a function of seed and iteration."""

import random
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from PIL import Image

from proscale.data.training_loader import build_training_loader
from proscale.errors import DataError

NAME = "training_loader_toy"
SIZE = 13


def map_entry(entry: dict) -> dict:
    """What it draws stands for augmentation, by each of the generators."""
    drawn = random.random(), float(np.random.rand()), float(torch.rand(1))
    return {"id": entry["image_id"], "wide": entry["width"] > entry["height"], "drawn": drawn}


@pytest.fixture
def entries():
    return [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "width": 4 + 2 * (i % 3 == 0),
            "height": 5,
            "annotations": [{"category_id": int(i == 4)}],
        }
        for i in range(SIZE)
    ]


@pytest.fixture
def make(cfg, entries):
    """Returns a function: KEY VALUE overrides → loader."""
    DatasetCatalog.register(NAME, lambda: entries)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SEED = 5

    def make(*overrides, mapper=map_entry):
        changed = cfg.clone()
        changed.merge_from_list(list(overrides))
        return build_training_loader(changed, mapper)

    yield make
    DatasetCatalog.remove(NAME)


SAMPLERS = pytest.mark.parametrize(
    "sampler",
    [
        ("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
        + ("DATALOADER.REPEAT_THRESHOLD", 0.5),
        ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler")
        + ("DATALOADER.RANDOM_SUBSET_RATIO", 0.6),
    ],
    ids=["all", "repeat", "subset"],
)
GROUPING = pytest.mark.parametrize("grouping", [False, True], ids=["mixed", "grouped"])


@SAMPLERS
@GROUPING
def test_starting_late_gives_the_batches_of_starting_early(make, sampler, grouping):
    overrides = (*sampler, "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    straight = list(islice(make(*overrides), 12))
    resumed = make(*overrides)
    resumed.first_iteration = 7
    assert list(islice(resumed, 5)) == straight[7:]


@SAMPLERS
@GROUPING
def test_workers_make_no_difference(make, sampler, grouping):
    overrides = (*sampler, "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    alone = make(*overrides)
    helped = make(*overrides, "DATALOADER.NUM_WORKERS", 2)
    helped.first_iteration = 2
    assert list(islice(helped, 4)) == list(islice(alone, 2, 6))


def test_every_epoch_has_every_sample_once_in_another_order_and_augmentation(make):
    stream = [s for batch in islice(make("SOLVER.IMS_PER_BATCH", 1), 2 * SIZE) for s in batch]
    first, second = stream[:SIZE], stream[SIZE:]
    assert sorted(s["id"] for s in first) == sorted(s["id"] for s in second) == list(range(SIZE))
    assert [s["id"] for s in first] != [s["id"] for s in second]
    for draws in zip(*(s["drawn"] for s in stream), strict=True):
        assert len(set(draws)) == 2 * SIZE


def test_seed_changes_order_and_augmentation(make):
    one, other = next(iter(make())), next(iter(make("SEED", 6)))
    assert [s["id"] for s in one] != [s["id"] for s in other]
    assert not {s["drawn"] for s in one} & {s["drawn"] for s in other}


def test_seed_may_be_set_until_the_first_batch(make):
    loader = make()
    batches = iter(loader)
    loader.seed = 6
    assert next(batches) == next(iter(make("SEED", 6)))


def test_groups_have_one_shape_and_lose_nothing(make):
    batches = list(islice(make("SOLVER.IMS_PER_BATCH", 2), 13))
    assert all(len({sample["wide"] for sample in batch}) == 1 for batch in batches)
    assert {sample["wide"] for batch in batches for sample in batch} == {True, False}
    assert len({sample["drawn"] for batch in batches for sample in batch}) == 26


def test_shape_is_read_from_the_file_where_the_data_set_does_not_state_it(make, entries, tmp_path):
    upright = Image.new("RGB", (8, 4))
    upright.save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "turned.jpg", exif=exif)
    for entry in entries:
        del entry["width"], entry["height"]
        name = "wide.png" if entry["image_id"] % 2 else "turned.jpg"
        entry["file_name"] = str(tmp_path / name)
    loader = make("SOLVER.IMS_PER_BATCH", 2, mapper=lambda entry: entry["image_id"] % 2)
    parities = [tuple(batch) for batch in islice(loader, 8)]
    assert set(parities) == {(0, 0), (1, 1)}

    entries[0]["file_name"] = str(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(islice(make(mapper=lambda entry: 0), 8))


def test_processes_share_the_stream(make, monkeypatch):
    whole = list(islice(make("SOLVER.IMS_PER_BATCH", 4, *UNGROUPED), 4))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(islice(make("SOLVER.IMS_PER_BATCH", 4, *UNGROUPED), 4)))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert [batch[0::2], batch[1::2]] == [first, second]


UNGROUPED = ("DATALOADER.ASPECT_RATIO_GROUPING", False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("SEED", -1), r"SEED is -1"),
        (("DATALOADER.SAMPLER_TRAIN", "Other"), r"SAMPLER_TRAIN is 'Other': expected Train"),
        (("SOLVER.IMS_PER_BATCH", 0), r"IMS_PER_BATCH is 0"),
    ],
)
def test_wrong_values_are_refused(make, overrides, message):
    with pytest.raises(ValueError, match=message):
        make(*overrides)


def test_repeating_by_class_needs_instances(make, entries):
    del entries[3]["annotations"]
    with pytest.raises(ValueError, match=r"which counts instances: .*RandomSubset"):
        make("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")


@pytest.mark.parametrize("annotations", [None, [], [{"category_id": 0, "iscrowd": 1}]])
def test_no_images_to_train_on_is_one_sentence(make, entries, annotations):
    if annotations is None:
        entries.clear()
    for entry in entries:
        entry["annotations"] = annotations
    with pytest.raises(DataError, match=f"DATASETS.TRAIN is {NAME}: .*: expected images with"):
        make("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True)


FAULTY = """
import sys
from torch.utils.data.sampler import SequentialSampler
from proscale.data.training_loader import TrainingLoader

def fail(entry):
    raise ValueError("cannot be read")

loader = TrainingLoader(
    range(4), fail, lambda seed: SequentialSampler(range(4)),
    seed=0, batch_size=1, groups_aspect_ratios=False, num_workers=2,
)
try:
    next(iter(loader))
except ValueError as error:
    kept = error  # and with it the iterator, which has the workers
    sys.exit(3)
"""


def test_a_process_ends_although_an_error_keeps_the_workers():
    done = subprocess.run(
        [sys.executable, "-c", FAULTY], timeout=100, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert not done.stderr
