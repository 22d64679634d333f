"""The training step: mixed precision, gradient accumulation and clipping in one place.

Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` fix float16, CUDA and one backward pass per step.
This step works in parts whose gradients add up to the whole batch's, in any number format. Where a
cost, loss or gradient is not finite, it skips the step or stops: on all ranks alike.
"""

import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import reduce
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from proscale.engine.distributed import all_reduce_max
from proscale.engine.sharding import whole
from proscale.errors import ConfigError, TrainingFault
from proscale.utils.random_state import Purpose, seed_generators

Sample = dict
"""Output of the mappers: ``image``, ``file_name``, ``instances`` …"""

RecordFault = Callable[["TrainLoop", list[Sample], dict[str, torch.Tensor]], str]
"""Keeps a step in a file; see ``TrainLoop``."""


class TrainLoop(SimpleTrainer):
    """One optimiser step per batch of the data loader.

    Losses of a part are weighted by its fraction of the batch and added up. That equals the whole
    batch's loss where the model averages over images; Mask2Former's mask losses are averages over
    targets instead. So a model whose ``forward`` has an argument ``target_counts`` gets the number
    of targets of every image of the step on this rank, and normalises by those.

    Logged every step: ``data_time`` (seconds), every loss, ``total_loss``; ``grad_norm``, the
    gradients' norm before clipping; ``skipped_steps``, how many were skipped so far because
    something was not finite; with loss scaling ``overflowed_steps``, how many for the search of
    the scale.

    Attributes:
        seed, rank: of the run and of this process. What is random in a step depends on them and on
            ``iter`` alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[Sample]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
        clip_norm: float | None = None,
        norm_type: float = 2.0,
        max_skipped_steps: int = 0,
        record_fault: RecordFault | None = None,
    ):
        """
        Args:
            model: returns a dict of scalar losses, already weighted; is put into training mode.
            data_loader: endless; yields batches of at least ``accumulation_steps`` samples.
            optimizer: of the model's parameters.
            amp_dtype: number format of mixed precision; None computes in the parameters' own.
                float16 comes with loss scaling.
            accumulation_steps: parts that a batch is processed in.
            clip_norm: bound on the norm of all gradients together; None leaves them.
            norm_type: p of that norm.
            max_skipped_steps: steps that may be skipped; the next one ends the training.
            record_fault: keeps what is needed to see a fault again; called with this loop, the
                batch and the model's ``state_dict``, returns where that is, for the message. For
                the first step that is skipped, and for the one that ends the training.
        """
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype, self.accumulation_steps = amp_dtype, accumulation_steps
        self.clip_norm, self.norm_type = clip_norm, norm_type
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = self.overflowed_steps = 0
        self.seed, self.rank = 0, comm.get_rank()
        self._record_fault = record_fault
        self.device_type = next(model.parameters()).device.type
        # Switched off, a scaler passes everything through.
        is_scaled = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=is_scaled)
        # Whose parameter names are those of checkpoints.
        self._inner = model.module if isinstance(model, DistributedDataParallel) else model
        signature = inspect.signature(self._inner.forward)
        self._takes_target_counts = "target_counts" in signature.parameters
        if isinstance(model, (DistributedDataParallel, FSDPModule)):
            self._inner.register_forward_hook(_raise_on_all_ranks, always_call=True)
        if accumulation_steps > 1 and not self._takes_target_counts:
            logging.getLogger(__name__).warning(
                "This model's forward has no argument target_counts: with "
                "SOLVER.ACCUMULATION_STEPS %d a step equals the whole batch's only if the losses "
                "are averages over images",
                accumulation_steps,
            )

    def run_step(self) -> None:
        """Process one batch.

        Raises:
            TrainingFault: a matching cost, a loss, or without loss scaling the gradients' norm, is
                not finite on some rank, and ``max_skipped_steps`` were skipped before.
                The parameters are those from before the step.
        """
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        # After the loader, which may draw from the same generators. A resumed run draws the same.
        seed_generators(self.seed, Purpose.STEP, self.iter, self.rank)
        self.optimizer.zero_grad()
        # The running statistics of norms change in the forward pass: a skipped step restores them.
        may_skip = self.skipped_steps < self.max_skipped_steps
        buffers = [buffer.clone() for buffer in self.model.buffers()] if may_skip else []
        try:
            losses, grad_norm = self._compute_gradients(batch)
        except FloatingPointError as fault:
            for buffer, before in zip(self.model.buffers(), buffers, strict=False):
                buffer.copy_(before)
            self._skip(fault, batch)
            return
        self._write_metrics(losses, data_time)
        if torch.isfinite(grad_norm):
            get_event_storage().put_scalar("grad_norm", grad_norm.item())
        self._write_skipped()
        # With loss scaling, a step whose gradients overflow changes the scale alone.
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _compute_gradients(
        self, batch: list[Sample]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Losses of the batch and the gradients' norm before clipping, scalars on the CPU.

        Raises:
            FloatingPointError: something is not finite; on all ranks, if it is so on one.
        """
        losses = self._accumulate_gradients(batch)
        # The clipping bound applies to gradients of the losses, not of the scaled losses.
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        bound = float("inf") if self.clip_norm is None else self.clip_norm
        grad_norm = nn.utils.clip_grad_norm_(parameters, bound, norm_type=self.norm_type)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        # One transfer for all numbers: each one would wait for the device.
        *values, norm = torch.stack([*losses.values(), grad_norm]).cpu()
        losses = dict(zip(losses, values, strict=True))
        wrong = [f"{name} = {loss}" for name, loss in losses.items() if not torch.isfinite(loss)]
        # With loss scaling an overflow is part of the search for the scale.
        overflows = self.grad_scaler.is_enabled() and not wrong and not torch.isfinite(norm)
        if not wrong and not overflows and not torch.isfinite(norm):
            wrong = [f"norm of the gradients = {norm}"]
        if all_reduce_max(bool(wrong)):
            self.grad_scaler.update()  # closes what unscale_ has opened
            raise FloatingPointError(", ".join(wrong)) if wrong else _OtherRankFault
        self.overflowed_steps += overflows
        return losses, norm

    def _accumulate_gradients(self, batch: list[Sample]) -> dict[str, torch.Tensor]:
        """Add the gradients of all parts up in the parameters; returns the batch's losses."""
        extra = {}
        if self._takes_target_counts:
            extra["target_counts"] = [len(sample["instances"]) for sample in batch]
        losses: dict[str, torch.Tensor] = {}
        # Gradient accumulation: the sum of the parts' gradients is the whole batch's gradient.
        parts = split_evenly(batch, self.accumulation_steps)
        for i, part in enumerate(parts):
            # Copies of a model average their gradients over the ranks once, after the last part; a
            # sharded model does after every part, because a rank has no room for all of them.
            is_alone = isinstance(self.model, DistributedDataParallel) and i < len(parts) - 1
            with self.model.no_sync() if is_alone else nullcontext():
                autocast = torch.autocast(
                    self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                )
                try:
                    with autocast:
                        part_losses = self.model(part, **extra)
                except ValueError as error:
                    # Batch norm's own message names neither a key nor an image.
                    if "more than 1 value per channel" not in str(error):
                        raise
                    sizes = ", ".join("x".join(map(str, s["image"].shape[-2:])) for s in part)
                    raise ConfigError(
                        f"batch norm has a single value per channel, of images of {sizes} pixels "
                        "together: expected more images in each process and part "
                        "(SOLVER.IMS_PER_BATCH, SOLVER.ACCUMULATION_STEPS), larger images (INPUT), "
                        "or another norm (MODEL.RESNETS.NORM, MODEL.TIMM.NORM)"
                    ) from error
                # Parts may differ by one image; the mean over images weights them by their size.
                fraction = len(part) / len(batch)
                part_losses = {name: loss * fraction for name, loss in part_losses.items()}
                total = reduce(torch.add, part_losses.values())
                self.grad_scaler.scale(total).backward()
            for name, loss in part_losses.items():
                losses[name] = losses.get(name, 0.0) + loss.detach().float()
        return losses

    def _skip(self, fault: FloatingPointError, batch: list[Sample]) -> None:
        """Report the fault, and count the step as skipped or raise."""
        files = ", ".join(str(sample.get("file_name", "(unnamed)")) for sample in batch)
        message = f"not finite at iteration {self.iter}: {fault}; images of this process: {files}"
        # Record the first skipped step and the one that ends the training: two files at most.
        ends = self.skipped_steps >= self.max_skipped_steps
        if self._record_fault and (ends or not self.skipped_steps):
            # All ranks gather a sharded model's weights; the one with the fault writes them.
            is_own = not isinstance(fault, _OtherRankFault)
            weights = whole(self._inner.state_dict(), kept=is_own)
            if is_own:
                message += f"; {self._record_fault(self, batch, weights)}"
        if ends:
            raise TrainingFault(message) from fault
        self.skipped_steps += 1
        self._write_skipped()
        logging.getLogger(__name__).warning(
            "%s; skipped, step %d of at most %d (SOLVER.MAX_SKIPPED_STEPS)",
            *(message, self.skipped_steps, self.max_skipped_steps),
        )

    def _write_skipped(self) -> None:
        storage = get_event_storage()
        storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        if self.grad_scaler.is_enabled():
            storage.put_scalar("overflowed_steps", self.overflowed_steps, smoothing_hint=False)

    def state_dict(self) -> dict:
        """Iteration, optimiser, loss scale, and how many steps were skipped."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "overflowed_steps": self.overflowed_steps,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore ``state_dict``; without a loss scale in it the scale starts afresh."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        # Checkpoints of earlier versions have no counts.
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        self.overflowed_steps = state_dict.get("overflowed_steps", 0)


class _OtherRankFault(FloatingPointError):
    """Something is not finite on another rank, which reports it."""

    def __init__(self) -> None:
        super().__init__("on another rank, which reports it")


def _raise_on_all_ranks(model: nn.Module, inputs: Any, losses: Any) -> None:
    """Forward hook, also called after an exception: a fault of one rank's losses is one of all.

    It is called within DistributedDataParallel's forward pass, which all ranks leave alike: one
    that went on would wait in its next pass for gradients of the rank that raised.
    """
    if not model.training:
        return
    error = sys.exception() if losses is None else None
    if error is not None and not isinstance(error, FloatingPointError):
        return  # it ends this rank, and the launcher then ends the others
    if all_reduce_max(error is not None) and error is None:
        raise _OtherRankFault


def resolve_amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The format of automatic mixed precision on ``MODEL.DEVICE``; None if it is off.

    ``SOLVER.AMP.DTYPE`` auto is float16 on CUDA, as published, and bfloat16 on the CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    automatic = "bfloat16" if torch.device(cfg.MODEL.DEVICE).type == "cpu" else "float16"
    name = cfg.SOLVER.AMP.DTYPE
    return getattr(torch, automatic if name == "auto" else name)


def split_evenly(batch: list[Sample], parts: int) -> list[list[Sample]]:
    """Cut ``batch`` into ``parts`` runs whose lengths differ by at most one, the longer ones first.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    if not 1 <= parts <= len(batch):
        raise ValueError(f"{len(batch)} images cannot be split into {parts} parts")
    length, longer = divmod(len(batch), parts)
    samples = iter(batch)
    return [list(islice(samples, length + (i < longer))) for i in range(parts)]
