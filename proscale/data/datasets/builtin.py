"""Names that are there from the start: where their files are, and how they get into the catalogs.

As with Detectron2's own, files are looked up below the folder that ``$DETECTRON2_DATASETS`` names
when the package is imported, ``datasets`` by default, and nothing is read before it is asked for.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from proscale.errors import DataError

Entries = list[dict[str, Any]]


def data_root() -> Path:
    """The folder of all data sets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def register_builtin(
    name: str,
    load: Callable[[Mapping[str, Any]], Entries],
    metadata: Mapping[str, Any] | Metadata,
    *,
    preparation: str = "",
) -> None:
    """Register a name, in place of what Detectron2 has registered under it, if it has.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        load: from the metadata to the entries.
        metadata: what is known about it.
        preparation: the data set of ``proscale prepare`` that writes what may be missing.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: _load(name, load, preparation))
    if isinstance(metadata, Metadata):
        MetadataCatalog[name] = metadata
    else:
        MetadataCatalog.get(name).set(**metadata)


class LazyMetadata(Metadata):
    """Metadata of which some keys are read from a file when one of them is first asked for.

    Args:
        name: of the data set.
        known: what needs no file.
        lazy_keys: what ``read`` gives.
        read: reads it; what it raises is raised by whatever asks.
    """

    def __init__(
        self,
        name: str,
        *,
        known: Mapping[str, Any],
        lazy_keys: Collection[str],
        read: Callable[[], Mapping[str, Any]],
    ) -> None:
        # Not by attribute: setting one asks for the old value.
        self.__dict__.update(known, name=name)
        self.__dict__["_unread"] = (frozenset(lazy_keys), read)

    def __getattr__(self, key: str) -> Any:
        lazy_keys, _ = self.__dict__.get("_unread", ((), None))
        if key not in lazy_keys:
            return super().__getattr__(key)
        self._read()
        return self.__dict__[key]

    def as_dict(self) -> dict[str, Any]:
        self._read()
        return super().as_dict()

    def _read(self) -> None:
        if "_unread" in self.__dict__:
            lazy_keys, read = self.__dict__["_unread"]
            self.__dict__.update({key: value for key, value in read().items() if key in lazy_keys})
            del self.__dict__["_unread"]


def detectron2_metadata(name: str) -> dict[str, Any]:
    """A copy of what Detectron2 knows about a data set."""
    metadata = MetadataCatalog.get(name).as_dict()
    del metadata["name"]
    return metadata


def _load(name: str, load: Callable[[Mapping[str, Any]], Entries], preparation: str) -> Entries:
    try:
        return load(MetadataCatalog.get(name).as_dict())
    except FileNotFoundError as error:
        command = f"`proscale prepare {preparation} --root {data_root()}` writes it; "
        raise FileNotFoundError(
            f"data set {name}: {error}; {command if preparation else ''}the layout is in "
            "datasets/README.md"
        ) from error
    except ValueError as error:
        raise DataError(f"data set {name}: {error}") from error
