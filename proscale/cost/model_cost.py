"""Cost of a model for an image of one size, or on average over the images of a data set, which are
resized as in evaluation. No pixel is read."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from proscale.cost.flops import count_flops, padded_size
from proscale.cost.parts import ModelPart, list_parts
from proscale.cost.shape_tracing import build_without_weights
from proscale.errors import ConfigError
from proscale.utils.types import Size


@dataclass(frozen=True)
class MeanStd:
    """Mean and (population) standard deviation over images."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class PartCost:
    """A :class:`~proscale.cost.parts.ModelPart` over images, on which parameters do not depend."""

    name: str
    within: str
    multiply_adds: MeanStd
    activations: MeanStd
    parameters: int


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model.

    Attributes:
        parts: see :func:`~proscale.cost.parts.list_parts`.
        operators: multiply-adds of the network by operator.
        queries: tokens that ask in each attention layer of the encoder, in order.
        uncounted: calls of the operators without a count, by name, in one image.
    """

    parts: list[PartCost]
    operators: dict[str, MeanStd]
    queries: dict[str, MeanStd]
    uncounted: dict[str, int]

    def has(self, name: str) -> bool:
        """Whether the network has a part of this name."""
        return any(part.name == name and not part.within for part in self.parts)

    def part(self, name: str) -> PartCost:
        """The part of the network with this name.

        Raises:
            KeyError: the model has no such part.
        """
        return {part.name: part for part in self.parts if not part.within}[name]


def cost_at_size(cfg: CfgNode, size: Size) -> ModelCost:
    """For one image of ``size`` (height, width), which is not resized.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """
    return _average(cfg, [(size, size)])


def cost_over_images(cfg: CfgNode, sizes: Sequence[Size]) -> ModelCost:
    """On average over images of ``sizes``, resized as the configuration says for evaluation;
    results have the sizes of the images."""
    return _average(cfg, [(resize_for_test(size, cfg), size) for size in sizes])


def dataset_sizes(name: str, limit: int) -> list[Size]:
    """(height, width) of the first ``limit`` images of a data set, pixels.

    Raises:
        ConfigError: there is no such data set, or its files are not where it says.
    """
    if name not in DatasetCatalog:
        raise ConfigError(
            f"--dataset is {name}: expected registered ones: {', '.join(DatasetCatalog.list())}"
        )
    try:
        return [_size(entry) for entry in DatasetCatalog.get(name)[:limit]]
    except OSError as error:
        raise ConfigError(
            f"--dataset {name}: {error}; $DETECTRON2_DATASETS names the folder of the data sets"
        ) from error


def resize_for_test(size: Size, cfg: CfgNode) -> Size:
    """The size to which ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` resize an image; 0 for
    the first leaves it."""
    if not cfg.INPUT.MIN_SIZE_TEST:
        return size
    height, width = ResizeShortestEdge.get_output_shape(
        *size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    return height, width


def _size(entry: Mapping) -> Size:
    # Annotation files may state the size.
    if "height" in entry and "width" in entry:
        return entry["height"], entry["width"]
    with Image.open(entry["file_name"]) as image:  # reads the header
        return image.height, image.width


def _average(cfg: CfgNode, sizes: Sequence[tuple[Size, Size]]) -> ModelCost:
    """Over pairs of image and result sizes."""
    model = build_without_weights(cfg)
    # Only results depend on more than the padded size: each padded size is traced once.
    groups = Counter((padded_size(model, image), result) for image, result in sizes)
    networks = {padded: count_flops(model, padded) for padded in {padded for padded, _ in groups}}
    # An image counts as often as its sizes occur.
    counts = [networks[padded].with_result(model, result) for padded, result in groups]
    weights = list(groups.values())

    def mean_std(values: Iterable[int]) -> MeanStd:
        numbers = np.array(list(values))
        mean = np.average(numbers, weights=weights)
        variance = np.average((numbers - mean) ** 2, weights=weights)
        return MeanStd(float(mean), float(variance**0.5))

    def part_cost(same: Sequence[ModelPart]) -> PartCost:
        return PartCost(
            name=same[0].name,
            within=same[0].within,
            multiply_adds=mean_std(part.multiply_adds for part in same),
            activations=mean_std(part.activations for part in same),
            parameters=same[0].parameters,
        )

    # Parts and operators are the same for all sizes.
    first = counts[0]
    parts = zip(*(list_parts(model, count) for count in counts), strict=True)
    return ModelCost(
        parts=list(map(part_cost, parts)),
        operators={
            name: mean_std(count.by_operator[name] for count in counts)
            for name in first.by_operator
        },
        queries={name: mean_std(count.queries[name] for count in counts) for name in first.queries},
        uncounted=first.uncounted,
    )
