"""Shared by the evaluators: means over classes, tables, files of results, completeness."""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from proscale.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def nan_mean(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def metrics_table(rows: Any, headers: Any = "keys") -> str:
    """A table for the log: ``rows`` are dicts, or sequences under ``headers``."""
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")


def write_results(output_dir: str | None, file_name: str, results: dict[str, Any]) -> None:
    """Write ``results`` to ``output_dir/file_name`` as JSON, nan as null; None writes nothing.

    Raises:
        ValueError: a number is infinite.
    """
    if output_dir is None:
        return
    text = json.dumps(_without_nan(results), indent=2, allow_nan=False)
    PathManager.mkdirs(output_dir)
    with PathManager.open(os.path.join(output_dir, file_name), "w") as file:
        file.write(text + "\n")


def _without_nan(value: Any) -> Any:
    # JSON has no nan; readers in other languages stop at the one that Python would write.
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def numbers_only(results: dict[str, Any]) -> dict[str, Any]:
    """Nested results without the texts among them, such as whose boxes persons were in."""
    return {
        key: numbers_only(value) if isinstance(value, dict) else value
        for key, value in results.items()
        if not isinstance(value, str)
    }


def prediction_dir(content: dict, file: str, output_dir: str | None, save: bool) -> str | None:
    """The folder for predictions; None if they are not saved. ``content`` is that of ``file``.

    Raises:
        ConfigError: there is no ``output_dir`` to save to.
        DataError: ``file`` has no annotations to score with, and nothing is saved either.
    """
    if save and output_dir is None:
        raise ConfigError("TEST.SAVE_PREDICTIONS is True: expected an output folder")
    if "annotations" not in content and not save:
        raise DataError(
            f"{file} has no annotations: expected some, or TEST.SAVE_PREDICTIONS True "
            "to write predictions for a test server"
        )
    return output_dir if save else None


def write_predictions(folder: str, file_name: str, texts: Iterable[str]) -> None:
    """Write predictions, each as JSON text, as one list to ``folder/file_name``."""
    PathManager.mkdirs(folder)
    path = os.path.join(folder, file_name)
    with PathManager.open(path, "w") as file:
        file.write("[" + ",\n".join(texts) + "]\n")
    logger.info("Predictions: %s", path)


def check_every_image_once(expected: Collection[Any], scored: Iterable[Any], name: str) -> None:
    """Raise a ValueError if images of the data set ``name`` were scored never or repeatedly."""
    # Samplers may leave images out of a shard, or repeat some to make shards of equal length.
    times = Counter(scored)
    problems = {
        "have no prediction": [image for image in expected if image not in times],
        "were predicted more than once": [image for image in times if times[image] > 1],
    }
    for problem, images in problems.items():
        if images:
            raise ValueError(
                f"{len(images)} of the {len(expected)} images of data set {name!r} "
                f"{problem}, the first being image_id {', '.join(map(str, images[:5]))}: expected "
                "one prediction for each"
            )
