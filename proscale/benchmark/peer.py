"""Hugging Face's Mask2Former with Swin-T, random weights, to compare with: the model alone.

Built from configuration classes, so that nothing is downloaded. It ends, as our network does, in
classes and masks, and predicts after every decoder layer, too.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn

from proscale.benchmark.latency import Stopwatch
from proscale.benchmark.model_benchmark import ModelSettings, lap_after, precision
from proscale.cost.parts import BACKBONE, ENCODER_PART, TRANSFORMER_DECODER

NAME = "transformers_mask2former_swin_tiny"
NUM_CLASSES = 133  # of COCO panoptic, as in our configurations
SIZE_DIVISIBILITY = 32


def is_installed() -> bool:
    """Whether the package ``transformers`` is there."""
    return find_spec("transformers") is not None


class PeerRun:
    """Hugging Face's model and its input, see :class:`~proscale.benchmark.model_benchmark.Run`.

    Args:
        settings: as for ours; there is no training and no plain path.
        device: where to run.

    Raises:
        ValueError: ``settings`` asks for training.
    """

    def __init__(self, settings: ModelSettings, device: torch.device):
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

        if settings.train:
            raise ValueError("the peer is compared at inference only")
        torch.manual_seed(0)
        self.settings, self.device = settings, device
        swin = SwinConfig(
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=7,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = Mask2FormerConfig(backbone_config=swin, num_labels=NUM_CLASSES)
        self.model: nn.Module = Mask2FormerForUniversalSegmentation(config).eval().to(device)
        height, width = (
            -(-side // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY for side in settings.size
        )
        self.images = torch.randn(settings.batch, 3, height, width, device=device)
        if settings.compiled:
            for module in (self._levels.encoder, self._levels.decoder, self._decoder):
                module.forward = torch.compile(module.forward)

    @property
    def _levels(self) -> nn.Module:
        return self.model.model.pixel_level_module

    @property
    def _decoder(self) -> nn.Module:
        return self.model.model.transformer_module

    @torch.no_grad()
    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        seams = (
            (self._levels.encoder, BACKBONE),
            (self._levels.decoder, ENCODER_PART),
            (self._decoder, TRANSFORMER_DECODER),
        )
        hooks = [module.register_forward_hook(lap_after(watch, part)) for module, part in seams]
        try:
            with precision(self.device, self.settings.dtype):
                self.model(pixel_values=self.images)
        finally:
            for hook in hooks:
                hook.remove()
        # The class head, and the wrapping of outputs.
        watch.lap(TRANSFORMER_DECODER)

    def again(self) -> "Callable[[], PeerRun]":
        """What makes the same in another process."""
        return partial(PeerRun, self.settings, self.device)

    def multiply_adds(self) -> dict[str, int]:
        """Not counted."""
        return {}
