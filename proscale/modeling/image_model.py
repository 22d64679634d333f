"""Base of the meta-architectures: images to features, in one size, layout and number format."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn

from proscale.ops.fused import fold_frozen_norms

#: Number formats of inference by name; None leaves autocast as it is.
INFERENCE_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ImageModel(nn.Module):
    """A backbone and what is done with images before it.

    Args:
        backbone: Detectron2 backbone.
        pixel_mean, pixel_std: of each channel, in the range of the input.
        size_divisibility: images are padded to a multiple of it; the backbone's own when negative.
        inference_dtype: number format of autocast in inference, for backbone and head: one of
            :data:`INFERENCE_DTYPES`.
        channels_last: keep images and convolutions' weights with channels as the innermost axis;
            see :meth:`use_layout`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        inference_dtype: str,
        channels_last: bool,
    ):
        super().__init__()
        if inference_dtype not in INFERENCE_DTYPES:
            raise ValueError(
                f"inference_dtype is {inference_dtype!r}: expected {', '.join(INFERENCE_DTYPES)}"
            )
        self.backbone = backbone
        # Not persistent: checkpoints do not hold them.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.size_divisibility: int = (
            backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        )
        self.inference_dtype = INFERENCE_DTYPES[inference_dtype]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def use_layout(self) -> None:
        """Bring the weights into the layout of ``channels_last``, once they are all there."""
        # A backbone may have chosen a layout of its own.
        if self.memory_format == torch.channels_last:
            self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    def normalise(self, image: Tensor) -> Tensor:
        """``(3, H, W)`` in the range of ``pixel_mean``, as the backbone takes it."""
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def features(self, batch: Tensor) -> dict[str, Tensor]:
        """The backbone's, of ``(B, 3, H, W)``, normalised and padded."""
        return self.backbone(batch.contiguous(memory_format=self.memory_format))

    def inference_precision(self) -> AbstractContextManager:
        """Autocast in the number format of inference; parameters keep theirs."""
        if self.inference_dtype is None:  # whatever autocast the caller may have chosen
            return nullcontext()
        return torch.autocast(self.device.type, self.inference_dtype)

    def groups_of_size(self, images: Sequence[Tensor]) -> list[list[int]]:
        """Numbers of the images ``(3, H, W)`` that are padded to the same size: they go through the
        network together, so that an image's result does not depend on its batch."""
        step = max(self.size_divisibility, 1)
        groups = defaultdict(list)
        for index, image in enumerate(images):
            groups[tuple(-(-length // step) for length in image.shape[-2:])].append(index)
        return list(groups.values())


def image_model_arguments(cfg: CfgNode) -> dict:
    """Arguments of :class:`ImageModel` by name, but for ``size_divisibility``."""
    backbone = build_backbone(cfg)
    # Frozen norms of ResNets cost no pass over the maps, in training either.
    fold_frozen_norms(backbone)
    return {
        "backbone": backbone,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "inference_dtype": cfg.MODEL.MASK_FORMER.TEST.DTYPE,
        "channels_last": cfg.MODEL.CHANNELS_LAST,
    }
