"""The training step: mixed precision, gradient accumulation and clipping in one place.

Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` fix float16, CUDA and one backward pass per step.
This step does the same work in parts whose gradients add up to the whole batch's, in any number
format, and tells which images were at hand when a loss or gradient stopped being finite.
"""

import inspect
import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Sample = dict
"""What the mappers make of a data set entry: ``image``, ``file_name``, ``instances`` …"""


class TrainLoop(SimpleTrainer):
    """One optimiser step per batch of the data loader.

    Losses of a part are weighted by its share of the batch and added up. That equals the whole
    batch's loss where the model averages over images; Mask2Former's mask losses are averages over
    targets instead. So a model whose ``forward`` has an argument ``target_counts`` is told how many
    targets every image of the step on this process has, and normalises by those.

    Logged every step: ``data_time`` (seconds), every loss, ``total_loss``, and ``grad_norm``, the
    gradients' norm before clipping.
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
        """
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype = amp_dtype
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.norm_type = norm_type
        self.device_type = next(model.parameters()).device.type
        # Switched off, a scaler passes everything through.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )
        forward = model.module.forward if _is_distributed(model) else model.forward
        self._takes_target_counts = "target_counts" in inspect.signature(forward).parameters
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
            FloatingPointError: a loss, or without loss scaling the gradients' norm, is not finite.
                The parameters are those from before the step.
        """
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses = self._accumulate_gradients(batch)
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = self._clip_gradients()
        # One transfer for all figures: every other one would wait for the device again.
        *values, norm = torch.stack([*losses.values(), grad_norm]).cpu()
        losses = dict(zip(losses, values, strict=True))
        self._check_finite(losses, norm, batch)
        self._write_metrics(losses, data_time)
        if torch.isfinite(norm):
            get_event_storage().put_scalar("grad_norm", norm.item())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _accumulate_gradients(self, batch: list[Sample]) -> dict[str, torch.Tensor]:
        """Add the gradients of all parts up in the parameters; returns the batch's losses."""
        extra = {}
        if self._takes_target_counts:
            extra["target_counts"] = [len(sample["instances"]) for sample in batch]
        losses: dict[str, torch.Tensor] = {}
        parts = split_evenly(batch, self.accumulation_steps)
        for i, part in enumerate(parts):
            with self._gradient_exchange(last=i == len(parts) - 1):
                with torch.autocast(
                    self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    part_losses = self.model(part, **extra)
                share = len(part) / len(batch)
                part_losses = {name: loss * share for name, loss in part_losses.items()}
                self.grad_scaler.scale(sum(part_losses.values())).backward()
            for name, loss in part_losses.items():
                losses[name] = losses.get(name, 0.0) + loss.detach().float()
        return losses

    def _gradient_exchange(self, *, last: bool) -> AbstractContextManager:
        """Between processes, gradients are averaged once per step, after the last part."""
        return self.model.no_sync() if _is_distributed(self.model) and not last else nullcontext()

    def _clip_gradients(self) -> torch.Tensor:
        """Clip to ``clip_norm``; returns the norm before, a scalar."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        bound = float("inf") if self.clip_norm is None else self.clip_norm
        return nn.utils.clip_grad_norm_(parameters, bound, norm_type=self.norm_type)

    def _check_finite(
        self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor, batch: list[Sample]
    ) -> None:
        wrong = [f"{name} = {loss}" for name, loss in losses.items() if not torch.isfinite(loss)]
        # With loss scaling an overflow is part of the search for the scale: the step is left out.
        if not wrong and not self.grad_scaler.is_enabled() and not torch.isfinite(grad_norm):
            wrong = [f"norm of the gradients = {grad_norm}"]
        if wrong:
            files = ", ".join(str(sample.get("file_name", "(unnamed)")) for sample in batch)
            raise FloatingPointError(
                f"not finite at iteration {self.iter}: {', '.join(wrong)}; "
                f"images of this process: {files}"
            )

    def state_dict(self) -> dict:
        """Iteration, optimiser and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore ``state_dict``; without a loss scale in it the scale starts afresh."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def split_evenly(batch: list[Sample], parts: int) -> list[list[Sample]]:
    """Cut ``batch`` into ``parts`` runs whose lengths differ by at most one, the longer ones first.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    if not 1 <= parts <= len(batch):
        raise ValueError(f"{len(batch)} images cannot be split into {parts} parts")
    length, longer = divmod(len(batch), parts)
    ends = [(i + 1) * length + min(i + 1, longer) for i in range(parts)]
    return [batch[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _is_distributed(model: nn.Module) -> bool:
    return isinstance(model, DistributedDataParallel)
