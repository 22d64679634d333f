"""What the classes of a model are called, and which colours they have: a data set's metadata."""

from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap

from proscale.config.schema import nearest_names

Color = tuple[int, int, int]
"""Red, green, blue, each 0 to 255."""


@dataclass(frozen=True)
class Classes:
    """The classes that a model tells apart; each field has one entry for each of them.

    Attributes:
        names: for people.
        category_ids: of the data set's annotation files; the positions in ``names`` if it has none.
        isthing: whether objects of the class are counted.
        colors: of the data set; chosen if it has none.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    isthing: tuple[bool, ...]
    colors: tuple[Color, ...]

    @classmethod
    def of_dataset(cls, name: str, task: str) -> "Classes":
        """The classes of a registered data set.

        Args:
            name: of ``DATASETS.TEST``.
            task: panoptic, instance or semantic.

        Raises:
            ValueError: the data set is unknown, or has no classes for the task.
            FileNotFoundError: its classes are in a file that is not there.
        """
        if name not in MetadataCatalog.list():
            raise ValueError(
                f"DATASETS.TEST has {name!r}, which is not registered; nearest are "
                f"{nearest_names(name, DatasetCatalog.list())}"
            )
        metadata = MetadataCatalog.get(name)
        if task == "instance" and metadata.get("thing_classes") is None:
            DatasetCatalog.get(name)  # Detectron2 learns the names when it loads such a data set
        return cls.of_metadata(metadata, task)

    @classmethod
    def of_metadata(cls, metadata: Metadata, task: str) -> "Classes":
        """The classes that ``metadata`` describes; see :meth:`of_dataset`."""
        names = metadata.get(_names_key(task))
        if not names:
            raise ValueError(
                f"data set {metadata.name} has no {_names_key(task)}, the names of the classes of "
                f"{task} results: choose another as DATASETS.TEST"
            )
        things, stuff = (
            {
                contiguous: id_
                for id_, contiguous in (
                    metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
                ).items()
            }
            for kind in ("thing", "stuff")
        )
        # Detectron2's data sets of stuff number it without the things, which they list as well.
        ids = stuff | things if task == "instance" else things | stuff
        chosen = colormap(rgb=True).astype(int).tolist()
        colors = metadata.get(_names_key(task).replace("classes", "colors")) or [
            chosen[i % len(chosen)] for i in range(len(names))
        ]
        indices = range(len(names))
        return cls(
            names=tuple(names),
            category_ids=tuple(ids.get(i, i) for i in indices),
            isthing=tuple(task == "instance" or (i in things and i not in stuff) for i in indices),
            colors=tuple((red, green, blue) for red, green, blue in colors),
        )

    def __len__(self) -> int:
        return len(self.names)


def _names_key(task: str) -> str:
    return "thing_classes" if task == "instance" else "stuff_classes"
