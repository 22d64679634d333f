"""Semantic segmentation by overlapping windows, as SegFormer is evaluated on Cityscapes.

A model that was trained on crops sees crops of the same size in evaluation, too. The windows' class
scores are averaged where they overlap (Xie et al., SegFormer, NeurIPS 2021, §4.1).
"""

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from proscale.utils.types import Size

Span = tuple[int, int]
"""First place, and the one after the last."""


class SlidingWindow(nn.Module):
    """Wraps a model that returns ``sem_seg`` scores; for evaluation.

    Args:
        model: Detectron2's ``SemanticSegmentor`` or this project's ``MaskFormer``.
        crop_size: (height, width) of a window, pixels of the model's input. An image that is
            smaller is one window.
        stride: (height, width) from one window to the next. The last one ends with the image.
    """

    def __init__(self, model: nn.Module, *, crop_size: Size, stride: Size):
        super().__init__()
        if any(not 0 < step <= size for step, size in zip(stride, crop_size, strict=True)):
            raise ValueError(
                f"stride is {stride}: expected pixels from 1 to those of crop_size, {crop_size}"
            )
        self.model = model
        self.crop_size = crop_size
        self.stride = stride

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """For every image ``sem_seg``, the classes' scores ``(K, height, width)``; inputs as the
        model takes them."""
        return [{"sem_seg": self._segment(sample)} for sample in batched_inputs]

    def windows(self, height: int, width: int) -> tuple[list[Span], list[Span]]:
        """(top, bottom) of the rows of windows over an image, and (left, right) of the columns."""
        rows = _windows(height, self.crop_size[0], self.stride[0])
        return rows, _windows(width, self.crop_size[1], self.stride[1])

    def _segment(self, sample: dict) -> Tensor:
        image = sample["image"]
        height, width = image.shape[-2:]
        rows, columns = self.windows(height, width)
        # Scores of all windows are added up. One window at a time is in the model, so that memory
        # grows with the image only by its class scores.
        total: Tensor | None = None
        for top, bottom in rows:
            for left, right in columns:
                (result,) = self.model([{"image": image[:, top:bottom, left:right]}])
                scores = result["sem_seg"]
                if total is None:
                    total = scores.new_zeros(len(scores), height, width)
                total[:, top:bottom, left:right] += scores
        assert total is not None
        # Windows form a grid, so that their number over a pixel is a product.
        total /= _counts(rows, height).to(total)[:, None]
        total /= _counts(columns, width).to(total)
        # To the size that is asked for, as Detectron2 does with any semantic scores.
        size = sample.get("height", height), sample.get("width", width)
        if size == (height, width):
            return total
        return sem_seg_postprocess(total, (height, width), *size)


def with_sliding_window(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` as ``TEST.SLIDING_WINDOW`` has it evaluated: wrapped, or as it is."""
    node = cfg.TEST.SLIDING_WINDOW
    if not node.ENABLED:
        return model
    return SlidingWindow(model, crop_size=tuple(node.CROP_SIZE), stride=tuple(node.STRIDE))


def _windows(length: int, size: int, stride: int) -> list[Span]:
    """The windows along a side."""
    # The last one is moved back inside; a side shorter than a window is one.
    starts = [*range(0, max(length - size, 0), stride), max(length - size, 0)]
    return [(start, min(start + size, length)) for start in starts]


def _counts(windows: list[Span], length: int) -> Tensor:
    """``(length,)``: how many windows cover each place."""
    # Divisor of the summed scores along one side.
    counts = torch.zeros(length)
    for begin, end in windows:
        counts[begin:end] += 1
    return counts
