"""Detectron2's ``DefaultTrainer`` with this project's data, optimiser, step and evaluation.

The constructor is replaced because Detectron2's chooses the training step itself, and training
state is written out here because Detectron2 0.6 leaves the optimiser out of its checkpoints. Hooks
are Detectron2's, besides an orderly stop and metrics that survive resuming.
"""

import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import detectron2.engine.train_loop
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.projects import deeplab
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from proscale.checkpoint import Checkpointer, ModelDescription
from proscale.config.schema import check_values
from proscale.data import build_mapper
from proscale.data.persons import evaluated_persons
from proscale.data.training_loader import (
    TrainingLoader,
    build_training_loader,
    find_dead_worker,
)
from proscale.engine.averaging import AveragedWeights, AveragingCheckpointer, AveragingHook
from proscale.engine.best import BestHook, EarlyStop
from proscale.engine.distributed import all_reduce_max
from proscale.engine.optimizer import build_optimizer, full_model_clip_norm
from proscale.engine.output_dir import writing_to
from proscale.engine.recorded_step import record_fault
from proscale.engine.resuming import check_optimizer, compare_settings, training_settings
from proscale.engine.sharding import divide_loaded_state, gathered, shard
from proscale.engine.trackers import build_trackers
from proscale.engine.train_loop import TrainLoop, resolve_amp_dtype
from proscale.errors import CheckpointError, ConfigError, ProcessFailed, UserError, one_sentence
from proscale.evaluation import build_evaluator
from proscale.evaluation.results import numbers_only, write_results
from proscale.modeling import with_sliding_window
from proscale.modeling.test_time_augmentation import with_test_time_augmentation

logger = logging.getLogger(__name__)

RESULTS_FILE, RESULTS_TTA_FILE = "results.json", "results_TTA.json"
"""In ``OUTPUT_DIR``: {data set: {task: {metric: value}}} of the latest ``test`` and
``test_with_TTA``."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

SECONDS_OF_ONE_REQUEST = 3.0
"""A signal so soon behind the first asks for the same. SLURM sends one to all processes of a job,
torchrun among them, which passes it on to those that have it already."""

_LOGGED_STEPS = 20
_KEPT_STEPS = 1000

_SCHEDULE_SETTINGS = (
    *("max_iters", "power", "constant_ending"),
    *("warmup_factor", "warmup_iters", "warmup_method"),
)
"""Saved by DeepLab's schedule besides its progress. ``MAX_ITER`` may have been raised since."""


def _without_traceback(record: logging.LogRecord) -> bool:
    """Detectron2 logs every exception of a training: of some a sentence says all."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (UserError, OSError)):
        record.exc_info, record.msg = None, f"{record.msg} {one_sentence(error)}"
    return True


logging.getLogger(TrainerBase.__module__).addFilter(_without_traceback)


class Trainer(DefaultTrainer):
    """Trains and evaluates the model of ``cfg``, on the CPU, one GPU or several.

    Resuming restores the iteration, the parameters, the optimiser, the schedule and the loss scale.
    Random numbers follow from the seed and the iteration: a resumed run equals one that was not
    interrupted, and two runs of a seed are equal, with any number of loader workers.

    Attributes:
        seed: ``SEED``; a drawn one, which checkpoints keep, where that is negative.
    """

    _hooks: list[HookBase]

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ConfigError: a key of ``cfg`` has a value that is not accepted.
        """
        TrainerBase.__init__(self)
        # 1. Refuse what cannot be trained, before anything is built.
        world_size = comm.get_world_size()
        cfg = self.auto_scale_workers(cfg, world_size)
        check_values(cfg)
        node = cfg.MODEL.PROSCALE
        if node.BUDGET and not node.ELASTIC:
            raise ConfigError(
                f"MODEL.PROSCALE.BUDGET is {list(node.BUDGET)}: expected [] in a training, which "
                "would leave the other layers as they are; for fewer layers set PROSCALE_NUM_LAYERS"
            )
        if node.GATE:
            raise ConfigError(
                f"MODEL.PROSCALE.GATE is {list(node.GATE)}: expected [] in a training; "
                "`proscale train-gate` trains the gate of a trained model"
            )
        if cfg.TEST.BEST_METRIC and not cfg.TEST.EVAL_PERIOD:
            raise ConfigError(
                f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC}: expected TEST.EVAL_PERIOD above 0, "
                "iterations between the evaluations that are compared"
            )
        if cfg.SOLVER.EARLY_STOPPING and not cfg.TEST.BEST_METRIC:
            raise ConfigError(
                f"SOLVER.EARLY_STOPPING is {cfg.SOLVER.EARLY_STOPPING}: expected TEST.BEST_METRIC, "
                "such as panoptic_seg/PQ"
            )
        # Every rank gets an equal number of the batch's images, and splits them into the parts.
        steps, images = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH // world_size
        if steps > images:
            raise ConfigError(
                f"SOLVER.ACCUMULATION_STEPS is {steps}: expected 1 to {images}, the images per "
                f"process (SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, processes {world_size})"
            )

        # 2. Seed every rank: parameters are rank 0's, data and point samples differ. A seed that
        # is drawn is the same on all ranks.
        self._draws_seed = cfg.SEED < 0
        if self._draws_seed:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SEED = int(comm.shared_random_seed())
            cfg.freeze()
            logger.info("SEED is drawn: SEED %d gives this run again", cfg.SEED)
        self.seed: int = cfg.SEED
        seed_all_rng(self.seed + comm.get_rank())

        # 3. Model and optimiser, distributed: sharded, or with a copy on every rank (DDP).
        model = self.build_model(cfg)
        is_sharded = cfg.DISTRIBUTED.SHARDED and world_size > 1
        if is_sharded:
            shard(model)
        optimizer = self.build_optimizer(cfg, model)
        if is_sharded:
            divide_loaded_state(optimizer)
        else:
            # Running statistics are those of rank 0, which saves them: no broadcast in every step.
            # Detectron2 assumes a GPU for every rank.
            on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
            devices = {"device_ids": None} if on_cpu else {}
            model = create_ddp_model(model, broadcast_buffers=False, **devices)

        # 4. The training step, the schedule, and what resuming needs of them.
        self._trainer = TrainLoop(
            model,
            self.build_train_loader(cfg),
            optimizer,
            amp_dtype=resolve_amp_dtype(cfg),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            clip_norm=full_model_clip_norm(cfg),
            norm_type=cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE,
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
            record_fault=partial(record_fault, cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._averaged = AveragedWeights(model, cfg.SOLVER.EMA_DECAY)
        self.checkpointer = AveragingCheckpointer(
            self._averaged,
            model,
            cfg.OUTPUT_DIR,
            fine_tune=True,
            keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            trust=cfg.MODEL.TRUST_WEIGHTS,
            describe=partial(ModelDescription.of, cfg),
            # A cycle would keep the model's memory after the training.
            trainer=weakref.proxy(self),
        )
        self._stop_request = StopRequest()
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names, stepped every iteration.

        WarmupMultiStepLR multiplies by ``GAMMA`` at each of ``STEPS``, WarmupCosineLR follows half
        a cosine to 0, WarmupPolyLR is (1 - iteration / ``MAX_ITER``) ** ``POLY_LR_POWER``, not less
        than ``POLY_LR_CONSTANT_ENDING``. The first ``WARMUP_ITERS`` warm up by ``WARMUP_METHOD``.
        """
        # DeepLab's function passes the names that are not its own on to Detectron2's.
        return deeplab.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        return build_training_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        mapper = build_mapper(cfg, is_train=False)
        if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
            persons, workers = evaluated_persons(cfg, dataset_name), cfg.DATALOADER.NUM_WORKERS
            return build_detection_test_loader(persons, mapper=mapper, num_workers=workers)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, output_dir)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """Evaluate ``model`` on all of ``DATASETS.TEST`` and write ``RESULTS_FILE``.

        It sees whole images, or those of ``TEST.SLIDING_WINDOW``. The evaluators log tables and
        write the metrics of every class to ``OUTPUT_DIR``/inference/(data set).

        Returns:
            {task: {metric: value}} for one data set, {data set: {task: {metric: value}}} for
            several; empty on ranks other than 0.
        """
        with gathered(model), _dead_workers_told():
            results = super().test(cfg, with_sliding_window(cfg, model), evaluators)
        if comm.is_main_process() and results:
            names = cfg.DATASETS.TEST
            by_dataset = {names[0]: results} if len(names) == 1 else results
            write_results(cfg.OUTPUT_DIR, RESULTS_FILE, by_dataset)
        # Detectron2's hooks take numbers alone.
        return numbers_only(results)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate ``model`` with the views of ``TEST.AUG`` and write ``RESULTS_TTA_FILE``.

        The views are made from the image as it is on disk, not as ``INPUT.MIN_SIZE_TEST`` has it.
        The evaluators write to ``OUTPUT_DIR``/inference_TTA/(data set).

        Returns:
            as :meth:`test`, with ``_TTA`` behind every outer key.

        Raises:
            ValueError: if a key of ``TEST.AUG`` has a value not accepted.
        """
        original_size = cfg.clone()
        original_size.defrost()
        original_size.INPUT.MIN_SIZE_TEST = 0
        evaluators = [
            build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA", name))
            for name in cfg.DATASETS.TEST
        ]
        wrapped = with_test_time_augmentation(cfg, with_sliding_window(cfg, model))
        with gathered(model), _dead_workers_told():
            results = super().test(original_size, wrapped, evaluators)
        results = {f"{key}_TTA": metrics for key, metrics in (results or {}).items()}
        if results:
            write_results(cfg.OUTPUT_DIR, RESULTS_TTA_FILE, results)
        return results

    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        # A stop comes after the step's checkpoint, which it need not save again, and before an
        # evaluation, which may take longer than there is time.
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        # Detectron2 lets rank 0 save; of a sharded model every rank has a part.
        saves = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        # The average is evaluated, and the best of it kept.
        every, metric = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.BEST_METRIC
        best: list[HookBase] = []
        if metric:
            patience = self.cfg.SOLVER.EARLY_STOPPING
            best = [BestHook(self.checkpointer, metric, period=every, patience=patience)]
        return [
            MetricHistory(),
            AveragingHook(self._averaged),
            *built[:place],
            *([] if saves else [hooks.PeriodicCheckpointer(self.checkpointer, period)]),
            StopHook(self._stop_request, self.checkpointer),
            hooks.EvalHook(every, self._evaluate),
            *best,
            *built[place + 1 :],
        ]

    def build_writers(self) -> list[EventWriter]:
        return [*super().build_writers(), *build_trackers(self.cfg)]

    def _evaluate(self) -> dict:
        with self._averaged.in_place():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> dict | None:
        """Train from where ``resume_or_load`` left off, and evaluate; see Detectron2.

        Raises:
            ConfigError: see :func:`~proscale.engine.output_dir.writing_to`.
            TrainingFault: see ``TrainLoop.run_step``.
            ProcessFailed: a worker of the data loader died.
            SystemExit: SIGTERM or SIGINT came; the step was finished, and a checkpoint saved.
        """
        self._trainer.seed = self.seed
        loader = self._trainer.data_loader
        # A subclass may bring its own loader.
        if isinstance(loader, TrainingLoader):
            loader.seed, loader.first_iteration = self.seed, self.start_iter
        with writing_to(self.cfg.OUTPUT_DIR), self._stop_request, _told_once():
            try:
                with _dead_workers_told():
                    return super().train()
            except EarlyStop:
                return self._last_eval_results
            except ProcessFailed as error:
                # A signal to all processes of a job may reach a worker before it is left alone.
                if number := self._stop_request.received:
                    raise SystemExit(128 + number) from error
                raise

    def after_train(self) -> None:
        if self.iter < self.max_iter:
            # Detectron2 would evaluate even if the last step was not finished.
            self._hooks = [h for h in self._hooks if not isinstance(h, hooks.EvalHook)]
        super().after_train()

    def state_dict(self) -> dict:
        """Everything but the parameters that resuming needs."""
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            # Within a checkpoint the model is the average, if there is one.
            "own_weights": self._averaged.state_dict(),
            "seed": self.seed,
            "settings": training_settings(self.cfg),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore ``state_dict``.

        Raises:
            CheckpointError: it holds no optimiser state, as files of Detectron2 0.6's trainer.
            UserError: see :mod:`proscale.engine.resuming`.
        """
        if "_trainer" not in state_dict:
            raise CheckpointError(
                f"the last checkpoint in OUTPUT_DIR {self.cfg.OUTPUT_DIR} holds no optimiser state "
                "to resume from; to start from its weights, leave --resume out and give the file "
                "as MODEL.WEIGHTS"
            )
        compare_settings(self.cfg, state_dict.get("settings", {}), state_dict["iteration"])
        check_optimizer(self.optimizer, state_dict["_trainer"]["optimizer"]["param_groups"])
        # The schedule's settings follow from the configuration, its progress from the checkpoint.
        states = dict(state_dict.get("hooks", {}))
        schedule = states.get("LRScheduler", {})
        states["LRScheduler"] = {k: v for k, v in schedule.items() if k not in _SCHEDULE_SETTINGS}
        TrainerBase.load_state_dict(self, {**state_dict, "hooks": states})
        self._trainer.load_state_dict(state_dict["_trainer"])
        if own := state_dict.get("own_weights"):
            self._averaged.load_state_dict(own)
        # Checkpoints of earlier versions have no seed.
        seed = state_dict.get("seed", self.seed)
        if self._draws_seed:
            self.seed = seed
        elif seed != self.seed:
            logger.warning(
                f"SEED is {self.seed}, but the checkpoint is of a run with {seed}: the order of "
                "images and all that is random will not be what that run would have had"
            )


@contextmanager
def _dead_workers_told() -> Iterator[None]:
    """Within it a worker of a data loader that dies is a ProcessFailed."""
    try:
        yield
    except RuntimeError as error:
        if sentence := find_dead_worker(error):
            raise ProcessFailed(sentence) from error
        raise


@contextmanager
def _told_once() -> Iterator[None]:
    """Within it Detectron2 logs one sentence of an error that the program ends with, and the
    traceback of others alone."""

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        sentence = find_dead_worker(error)
        if isinstance(error, UserError):
            sentence = one_sentence(error)
        if sentence:
            record.msg, record.args, record.exc_info = sentence, (), None
        return True

    source = logging.getLogger(detectron2.engine.train_loop.__name__)
    source.addFilter(shorten)
    try:
        yield
    finally:
        source.removeFilter(shorten)


class StopRequest:
    """Within it the first SIGTERM or SIGINT is noted, not obeyed; another one, more than
    ``SECONDS_OF_ONE_REQUEST`` later, kills at once.

    A signal that was ignored before, as SIGINT is in a shell's background jobs, stays so. Outside
    of the main thread, where Python allows no handlers, it does nothing. ``received`` is the number
    of the signal; 0 before it came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # The handler only notes: a checkpoint is consistent between steps.
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        # An impatient user, or a scheduler at the end of its grace period.
        elif now - self._received_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class StopHook(HookBase):
    """Saves a checkpoint and exits after the step in which a process was asked to stop.

    ``after_step`` raises SystemExit in every process, with status 128 + signal, as shells have it.
    """

    def __init__(self, request: StopRequest, checkpointer: Checkpointer):
        self._request = request
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        # Only some ranks may have got the signal; all have to stop after the same step.
        number = all_reduce_max(self._request.received)
        if not number:
            return
        iteration = self.trainer.iter
        # PeriodicCheckpointer may have saved this step.
        if self._checkpointer.saved_iteration != iteration:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logger.warning(
            "%s: stopped and saved after iteration %d; --resume goes on from there",
            *(signal.Signals(number).name, iteration),
        )
        raise SystemExit(128 + number)


class MetricHistory(HookBase):
    """Keeps the latest values of smoothed metrics in the checkpoint, and drops old ones.

    Detectron2's writers log the median of the last 20 steps, and estimate the time left by the last
    1000; its storage keeps a million of each metric, in a long run more than a gigabyte. With the
    last 20 restored, a resumed run logs what an uninterrupted one would. Times are not restored.
    """

    def __init__(self) -> None:
        self._restored: dict[str, list[float]] = {}

    def before_train(self) -> None:
        storage = self.trainer.storage
        storage._history.default_factory = partial(HistoryBuffer, max_length=_KEPT_STEPS)
        # Later versions of Detectron2 take the median of the last iterations, not values.
        start = storage.iter
        for name, values in self._restored.items():
            for i, value in enumerate(values, start - len(values)):
                storage.iter = i
                storage.put_scalar(name, value)
        storage.iter = start

    def state_dict(self) -> dict[str, list[float]]:
        # A checkpoint may be saved before the training has begun.
        if not hasattr(self.trainer, "storage"):
            return self._restored
        storage = self.trainer.storage
        return {
            name: [value for value, _ in storage.history(name).values()[-_LOGGED_STEPS:]]
            for name, smoothed in storage.smoothing_hints().items()
            if smoothed and not name.endswith("time")
        }

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        self._restored = state_dict
