"""Which tokens of an image are merged with which, and a picture of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

QUERIES, KEYS_AND_VALUES = "queries", "keys and values"
_OPACITY = 0.6
_PANEL_WIDTH = 5.0  # inches


@dataclass(frozen=True)
class MergedMap:
    """The tokens of a stage's first block.

    Attributes:
        stage: from 1.
        side: :data:`QUERIES` or :data:`KEYS_AND_VALUES`.
        owners: ``(h, w)`` integers: tokens of equal number are merged into one.
    """

    stage: int
    side: str
    owners: np.ndarray

    @property
    def length(self) -> int:
        """Tokens after merging."""
        return len(np.unique(self.owners))


@torch.no_grad()
def merged_maps(model: nn.Module, image: Tensor) -> list[MergedMap]:
    """Run a model on a whole image and note what the first block of every stage merges.

    Args:
        model: with the backbone ``MixVisionTransformer``.
        image: ``(3, H, W)`` as the model takes it.

    Returns:
        the maps of the padded image in the order of the stages, without those in which every token
        stays alone.
    """
    maps: list[MergedMap] = []
    with _recorded(model.backbone, maps):
        model([{"image": image}])
    return [merged for merged in maps if merged.length < merged.owners.size]


def draw_merged_tokens(
    path: Path,
    image: np.ndarray,
    maps: Mapping[str, list[MergedMap]],
    *,
    padded_size: tuple[int, int],
) -> None:
    """Draw every map over the image: tokens that are merged into one have one colour and are
    enclosed by a white line; tokens that stay alone show the image.

    Args:
        path: file to write; its suffix is a picture format's.
        image: ``(H, W, 3)`` uint8 RGB.
        maps: by row of the picture; one picture for each of its maps.
        padded_size: (height, width) of the image that the maps belong to, pixels.
    """
    columns = max(len(row) for row in maps.values())
    height = _PANEL_WIDTH * image.shape[0] / image.shape[1] + 0.35
    figure = Figure(figsize=(columns * _PANEL_WIDTH, len(maps) * height), layout="constrained")
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (name, row_maps) in zip(axes, maps.items(), strict=True):
        for axis, merged in zip(row, row_maps, strict=False):
            tokens = merged.owners.size
            axis.set_title(
                f"{name}, stage {merged.stage}, {merged.side}: {tokens} → {merged.length}",
                fontsize=9,
            )
            axis.imshow(_overlay(image, merged.owners, padded_size))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


@contextmanager
def _recorded(backbone: nn.Module, maps: list[MergedMap]) -> Iterator[None]:
    """Have the first block of every stage append its matchings to ``maps``."""

    def hook(number: int) -> Callable:
        def record_matchings(_block: nn.Module, arguments: tuple) -> tuple:
            x, size, match_query, match_key_value = arguments
            return (
                x,
                size,
                _recording(match_query, maps, number, QUERIES),
                _recording(match_key_value, maps, number, KEYS_AND_VALUES),
            )

        return record_matchings

    hooks = [
        stage.blocks[0].register_forward_pre_hook(hook(number))
        for number, stage in enumerate(backbone.stages, 1)
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _recording(match: Callable, maps: list[MergedMap], stage: int, side: str) -> Callable:
    """``match`` that also appends what it returns, for the first image, to ``maps``."""

    def recording(tokens: Tensor, size: tuple[int, int]) -> object:
        matching = match(tokens, size)
        length = matching.merge(tokens).shape[1]
        # What un-merging copies from where, by copying places. Exact in float32 below 2**24 tokens.
        places = torch.arange(length, dtype=torch.float32, device=tokens.device)
        owners = matching.unmerge(places.expand(len(tokens), length)[..., None])[0, :, 0]
        maps.append(MergedMap(stage, side, owners.long().view(size).cpu().numpy()))
        return matching

    return recording


def _overlay(image: np.ndarray, owners: np.ndarray, padded_size: tuple[int, int]) -> np.ndarray:
    """``(H, W, 3)`` float in [0, 1]."""
    cells = [
        np.arange(length) * tokens // padded
        for length, tokens, padded in zip(image.shape[:2], owners.shape, padded_size, strict=True)
    ]
    _, number, count = np.unique(owners, return_inverse=True, return_counts=True)
    number = number.reshape(owners.shape)
    colors = np.random.default_rng(0).uniform(0.1, 1.0, (len(count), 3))
    number = number[np.ix_(*cells)]
    is_merged = (count > 1)[number]

    picture = image / 255
    picture[is_merged] *= 1 - _OPACITY
    picture[is_merged] += _OPACITY * colors[number[is_merged]]
    border = np.zeros(number.shape, dtype=bool)
    border[:, 1:] |= number[:, 1:] != number[:, :-1]
    border[1:] |= number[1:] != number[:-1]
    picture[border & is_merged] = 1.0
    return picture
