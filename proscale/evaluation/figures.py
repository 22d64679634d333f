"""What the evaluators share on the way from counts to figures: means, tables, completeness."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from tabulate import tabulate


def nan_mean(values: np.ndarray) -> float:
    """The mean of what is not nan; nan if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def confusion_metrics(
    confusion: np.ndarray,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Figures of a (C, C) confusion matrix [truth, prediction], in percent.

    Returns:
        mIoU, fwIoU, mACC and pACC; and every class's `IoU` and `ACC`, (C,) each. What is not
        defined is nan.
    """
    right = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou = 100 * right / (true + predicted - right)
        accuracy = 100 * right / true
        summary = {
            "mIoU": nan_mean(iou),
            "fwIoU": float(np.nansum(iou * true) / true.sum()),
            "mACC": nan_mean(accuracy),
            "pACC": float(100 * right.sum() / true.sum()),
        }
    return summary, {"IoU": iou, "ACC": accuracy}


def table(rows: Any, headers: Any = "keys") -> str:
    """A table for the log: `rows` are dicts, or sequences under `headers`."""
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")


def check_every_image_once(
    expected: Collection[Any], scored: Iterable[Any], *, dataset_name: str
) -> None:
    """Make sure that figures are those of the whole data set.

    Args:
        expected: the data set's images, by an id or name.
        scored: those that came, repetitions included.

    Raises:
        ValueError: some never came or came more than once; names the first.
    """
    times = Counter(scored)
    missing = [image for image in expected if image not in times]
    repeated = [image for image, count in times.items() if count > 1]
    for images, fault in (
        (missing, "have no prediction"),
        (repeated, "were predicted more than once"),
    ):
        if images:
            raise ValueError(
                f"{len(images)} of the {len(expected)} images of data set {dataset_name!r} "
                f"{fault}, the first being image_id {', '.join(map(str, images[:5]))}: every image "
                "counts exactly once"
            )
