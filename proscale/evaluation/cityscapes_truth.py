"""Cityscapes' labels and the truth on disk, as its benchmark reads them.

`cityscapesscripts` 2.3 cannot evaluate with NumPy 2.4, keeps all masks on disk, and writes into the
working folder; so the evaluators here compute its figures themselves.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from proscale.data.datasets.cityscapes import IMAGE_SUFFIX, INSTANCES_SUFFIX
from proscale.data.formats.label_image import read_label_image

CLASSES = tuple(c["name"] for c in CITYSCAPES_CATEGORIES)
"""The 19 classes that are evaluated, in the order of their train ids."""
LABEL_IDS = np.array([c["id"] for c in CITYSCAPES_CATEGORIES])
THINGS = tuple(c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"])
GROUPS = {
    "flat": CLASSES[0:2],
    "construction": CLASSES[2:5],
    "object": CLASSES[5:8],
    "nature": CLASSES[8:10],
    "sky": CLASSES[10:11],
    "human": CLASSES[11:13],
    "vehicle": CLASSES[13:19],
}
"""Categories of classes, as the benchmark groups them."""

LABELS_SUFFIX = "_gtFine_labelIds.png"


class CityscapesTruth:
    """Label and instance maps of a split.

    Args:
        gt_dir: `gtFine/(split)`, with a folder for each city.

    Raises:
        FileNotFoundError: there are no instance maps below it.
    """

    def __init__(self, gt_dir: str) -> None:
        self._root = Path(gt_dir)
        paths = sorted(self._root.glob(f"*/*{INSTANCES_SUFFIX}"))
        if not paths:
            raise FileNotFoundError(f"no instance maps {self._root}/(city)/*{INSTANCES_SUFFIX}")
        self.frames = [f"{p.parent.name}/{p.name.removesuffix(INSTANCES_SUFFIX)}" for p in paths]

    def frame(self, file_name: str) -> str:
        """(city)/(frame) of an image file.

        Raises:
            ValueError: the split has no such frame.
        """
        path = Path(file_name)
        frame = f"{path.parent.name}/{path.name.removesuffix(IMAGE_SUFFIX)}"
        if frame not in self.frames:
            raise ValueError(f"image {file_name}: there is no truth for {frame} in {self._root}")
        return frame

    def label_ids(self, frame: str) -> np.ndarray:
        """(H, W) label ids."""
        return self._read(frame + LABELS_SUFFIX)

    def instance_ids(self, frame: str) -> np.ndarray:
        """(H, W) instance ids, see `proscale.data.datasets.cityscapes.INSTANCES_PER_CLASS`."""
        return self._read(frame + INSTANCES_SUFFIX)

    def _read(self, name: str) -> np.ndarray:
        return read_label_image(self._root / name).astype(np.int64)


def check_classes(names: Sequence[str], accepted: Sequence[str], dataset_name: str) -> None:
    """Make sure that a data set's classes are classes of Cityscapes.

    Raises:
        ValueError: names that are unknown.
    """
    unknown = [name for name in names if name not in accepted]
    if unknown:
        raise ValueError(
            f"data set {dataset_name!r}: {', '.join(unknown)} are no classes of Cityscapes: "
            f"expected {', '.join(accepted)}"
        )
