"""An exponential moving average of a model's weights, which is evaluated and saved in their place.

The average generalises better than the last weights (Polyak and Juditsky 1992; Tarvainen and
Valpola, Mean Teacher, NeurIPS 2017), most where a training is short or its batches are small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proscale.checkpoint import Checkpointer


class AveragedWeights:
    """Average of all parameters and buffers of ``model`` over the steps of a training.

    average ← d · average + (1 - d) · weights, with d = min(``decay``, (1 + t) / (10 + t)) at step
    t, so that the first steps are soon forgotten. Whole numbers, such as counts of batches, are
    those of the weights.

    Args:
        model: may be wrapped for several processes, or sharded.
        decay: from 0 to below 1; 0 keeps no average, and all methods do nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._is_restored = False

    def start(self) -> None:
        """Begin with the weights as they are, unless an average was restored."""
        if self._decay and not self._is_restored:
            self._average = {name: t.detach().clone() for name, t in self._weights().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after ``step``, a number from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = self._weights() if self._average else {}
        for name, average in self._average.items():
            if average.is_floating_point():
                average.lerp_(weights[name].detach(), 1 - decay)
            else:
                average.copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the average, and :meth:`state_dict` is its own weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that the model does not have at the moment: the average or, within
        :meth:`in_place`, its own."""
        return dict(self._average)

    def load_state_dict(self, own: dict[str, Tensor]) -> None:
        """Restore a training whose checkpoint has the average, which the model has loaded.

        Args:
            own: the model's own weights, as :meth:`state_dict` gave them.
        """
        if self._decay:
            self._average = {name: t.detach().clone() for name, t in self._weights().items()}
            self._is_restored = True
        self._model.load_state_dict(own, strict=False)

    @torch.no_grad()
    def _swap(self) -> None:
        weights = self._weights()
        for name, average in self._average.items():
            own = weights[name].detach().clone()
            weights[name].copy_(average)
            average.copy_(own)

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}


class AveragingHook(HookBase):
    """Updates ``averaged`` after every step."""

    def __init__(self, averaged: AveragedWeights) -> None:
        self._averaged = averaged

    def before_train(self) -> None:
        self._averaged.start()

    def after_step(self) -> None:
        self._averaged.update(self.trainer.iter)


class AveragingCheckpointer(Checkpointer):
    """Saves the average as the model; the training's state has the model's own weights.

    Args:
        averaged: of the same model.
        arguments: see :class:`~proscale.checkpoint.Checkpointer`.
    """

    def __init__(self, averaged: AveragedWeights, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._averaged = averaged

    def save(self, name: str, **kwargs: Any) -> None:
        with self._averaged.in_place():
            super().save(name, **kwargs)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        with self._averaged.in_place():
            super().save_weights(name, **kwargs)
