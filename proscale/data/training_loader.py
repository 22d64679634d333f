"""Training batches as a function of seed and iteration, so that a run can go on in the middle.

Detectron2's loader lets every worker walk through the samples on its own, so that their order and
augmentation depend on the number of workers and on earlier random numbers. Here the main process
decides which samples make a batch, and a sample's augmentation is seeded by its place in the stream
of samples. To start at a later batch, the stream is walked through without reading any image.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from proscale.data.formats.image_file import stored_size
from proscale.data.persons import person_records
from proscale.errors import ConfigError, DataError
from proscale.utils.random_state import Purpose, seed_generators

# From an entry of a data set to a training sample.
Mapper = Callable[[dict], dict]

_JOB_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# In PyTorch's messages about a worker that died, and about an error in one that did not.
_DEAD_WORKER, _ORIGINAL = "DataLoader worker", "Original Traceback"

_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


class Place(NamedTuple):
    """A sample's ``entry`` in the data set, and ``position`` in the stream of all processes."""

    entry: int
    position: int


@dataclass(eq=False)
class TrainingLoader:
    """Endless batches of this process; batch i depends on the seed and i alone.

    Attributes:
        dataset: of entries as Detectron2 describes them.
        mapper: makes a sample of an entry; may draw from the global generators.
        sampler: from a seed to the indices that this process takes, without end.
        seed: of the order of samples and of their augmentation.
        batch_size: samples per batch, in this process.
        groups_aspect_ratios: a batch has only wide or only other images.
        num_workers: processes that load; 0 loads in this one.
        first_iteration: the batch to start with, read like ``seed`` when the first is asked for.
    """

    dataset: Dataset
    mapper: Mapper
    sampler: Callable[[int], Sampler]
    _: KW_ONLY
    seed: int
    batch_size: int
    groups_aspect_ratios: bool
    num_workers: int
    first_iteration: int = field(default=0, init=False)
    _is_wide: dict[int, bool] = field(default_factory=dict, init=False)

    def __iter__(self) -> Iterator[list[dict]]:
        """
        Raises:
            DataError: an image whose shape must be known cannot be read; and see the mapper.
            RuntimeError: a worker was killed; see :func:`find_dead_worker`.
        """
        # Workers ignore signals, see below: they are ended when the process ends.
        if self.num_workers:
            atexit.register(_end_workers)
        # A run that goes on passes over the earlier batches as places: no image of them is read.
        loader = DataLoader(
            _Samples(self.dataset, self.mapper, self.seed),
            batch_sampler=islice(self._batches(), self.first_iteration, None),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_leave_signals_to_main_process,
            generator=torch.Generator(),  # PyTorch draws from it, to no effect here
        )
        # A worker that has not yet left them to the main process would die of a job's signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from batches
        except (ConnectionError, EOFError) as error:
            # PyTorch notices a worker that dies, but not while it hands a batch over.
            if not self.num_workers or _ORIGINAL in str(error):
                raise
            raise RuntimeError(f"{_DEAD_WORKER} is killed") from error

    def _batches(self) -> Iterator[list[Place]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        # Two batches are open, one of wide and one of other images; the first full one is next.
        batches: dict[bool, list[Place]] = {False: [], True: []}
        for step, index in enumerate(self.sampler(self.seed)):
            batch = batches[self.groups_aspect_ratios and self._is_wide_at(index)]
            # A sampler takes every world_size-th sample, beginning with its rank.
            batch.append(Place(index, step * world_size + rank))
            if len(batch) == self.batch_size:
                yield batch[:]
                batch.clear()

    def _is_wide_at(self, index: int) -> bool:
        """Whether the image of an entry is wider than high."""
        if index not in self._is_wide:
            entry = self.dataset[index]
            # Semantic data sets do not state sizes: the head of the image file does, read once.
            if "width" not in entry or "height" not in entry:
                entry = dict(zip(("height", "width"), stored_size(entry["file_name"]), strict=True))
            self._is_wide[index] = entry["width"] > entry["height"]
        return self._is_wide[index]


def build_training_loader(cfg: CfgNode, mapper: Mapper) -> TrainingLoader:
    """Build the loader of ``DATASETS.TRAIN`` by ``DATALOADER``, ``SOLVER.IMS_PER_BATCH``, ``SEED``.

    Raises:
        ConfigError: one of these keys has a value not accepted.
        DataError: there are no images to train on, or a file of them is wrong.
    """
    world_size = comm.get_world_size()
    # Each process loads an equal part of a batch.
    batch_size, left_over = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if left_over or not batch_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: expected a multiple of "
            f"{world_size}, the number of processes"
        )
    if cfg.SEED < 0:
        raise ConfigError(f"SEED is {cfg.SEED}: expected 0, 1, 2, … in training")
    try:
        entries = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    # Detectron2 asserts that something is left.
    except AssertionError as error:
        raise DataError(
            f"DATASETS.TRAIN is {', '.join(cfg.DATASETS.TRAIN)}: {error}: expected images with "
            "annotations that are no crowds"
        ) from error
    # Top-down pose estimation: a sample is one person.
    if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
        entries = person_records(entries)
        if not entries:
            raise DataError(
                f"DATASETS.TRAIN is {', '.join(cfg.DATASETS.TRAIN)}: expected persons with a box "
                "and labelled keypoints"
            )
    return TrainingLoader(
        # Packed, so that workers share its memory.
        DatasetFromList(entries, copy=False) if isinstance(entries, list) else entries,
        mapper,
        _choose_sampler(cfg, entries),
        seed=cfg.SEED,
        batch_size=batch_size,
        groups_aspect_ratios=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


@dataclass(eq=False)
class _Samples(Dataset):
    """Samples by their :class:`Place`."""

    dataset: Dataset
    mapper: Mapper
    seed: int

    def __getitem__(self, place: Place) -> dict[str, Any]:
        # Augmentation follows from the place in the stream, not from the worker or the process.
        seed_generators(self.seed, Purpose.SAMPLE, place.position)
        return self.mapper(self.dataset[place.entry])


def _choose_sampler(cfg: CfgNode, entries: Collection[dict]) -> Callable[[int], Sampler]:
    """From a seed to the sampler that ``DATALOADER.SAMPLER_TRAIN`` names."""
    node, size = cfg.DATALOADER, len(entries)
    name = node.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise ConfigError(f"DATALOADER.SAMPLER_TRAIN is {name!r}: expected {', '.join(_SAMPLERS)}")
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        return lambda seed: RandomSubsetTrainingSampler(
            size, node.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
        )
    # Repeat factors follow from how many images have instances of a class (LVIS).
    if any("annotations" not in entry for entry in entries):
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {name}, which counts instances: expected one of "
            f"{', '.join(other for other in _SAMPLERS if other != name)} with DATASETS.TRAIN "
            f"{cfg.DATASETS.TRAIN}, which lists none"
        )
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        entries, node.REPEAT_THRESHOLD
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)


def find_dead_worker(error: BaseException | None) -> str:
    """The sentence for an error that is about a data loader's worker that died; empty for others.

    PyTorch raises it in the main process at any moment.
    """
    if not isinstance(error, RuntimeError) or _DEAD_WORKER not in str(error):
        return ""
    # The error behind it has the process and its signal.
    text = str(error.__cause__ if _DEAD_WORKER in str(error.__cause__) else error)
    return (
        f"{text.splitlines()[0].rstrip(' .')}: perhaps for want of memory: expected fewer "
        "DATALOADER.NUM_WORKERS, smaller images (INPUT) or more memory, in containers also "
        "for /dev/shm"
    )


def _leave_signals_to_main_process(worker: int) -> None:
    # A job that is stopped may signal all its processes; workers end when the main process does.
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)


def _end_workers() -> None:
    """End the workers that an error's traceback still keeps when the main process ends.

    Python would send them the signal that they leave to the main process, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes it for an accident
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
