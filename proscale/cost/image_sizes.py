"""Sizes of real images, as a model sees them in evaluation. No pixel is read."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from proscale.errors import ConfigError
from proscale.utils.types import Size


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
        entries = DatasetCatalog.get(name)[:limit]
        return [_size(entry) for entry in entries]
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
    if "height" in entry and "width" in entry:
        return entry["height"], entry["width"]
    with Image.open(entry["file_name"]) as image:  # reads the header
        return image.height, image.width
