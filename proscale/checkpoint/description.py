"""What a checkpoint says of its model: the configuration, and the classes of its data set.

A file with it is all that prediction, export and evaluation need. It is a JSON text of plain values
beside the tensors: under the key ``proscale`` of PyTorch's files, and in the metadata of
safetensors. Nothing in it is run, its configuration passes the same checks as a YAML file, and no
address in it is fetched.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from safetensors import SafetensorError, safe_open

from proscale.checkpoint.files import DAMAGED, SAFETENSORS, TORCH, check_suffix
from proscale.checkpoint.pickles import ARCHIVE, load_torch
from proscale.errors import CheckpointError, DataError, printable, shown
from proscale.utils.untrusted import check_archive, check_regular, is_name

DESCRIPTION = "proscale"
"""Key of the description in a file."""
MAX_CHARACTERS = 2**22
"""Length of a description; those of thousands of classes are shorter."""

# Fields of Detectron2's metadata that describe classes, and none that name files.
_NAMES = ("thing_classes", "stuff_classes", "keypoint_names")
_COLORS = ("thing_colors", "stuff_colors")
_IDS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_PAIRS = ("keypoint_flip_map",)
_SIGMAS = "keypoint_oks_sigmas"
_FIELDS = (*_NAMES, *_COLORS, *_IDS, *_PAIRS, _SIGMAS, "keypoint_connection_rules", "ignore_label")


@dataclass(frozen=True)
class ModelDescription:
    """A description.

    Attributes:
        config: the configuration as YAML, complete: no ``_BASE_``.
        dataset: name of the data set that the classes are of; empty if there is none.
        classes: Detectron2's metadata of it, as far as they are no paths.
        version: of the project that wrote it.
    """

    config: str
    dataset: str = ""
    classes: Mapping[str, Any] | None = None
    version: str = ""

    @classmethod
    def of(cls, cfg: CfgNode) -> "ModelDescription":
        """That of a model with the configuration ``cfg``; trust in weights is left out."""
        saved = cfg.clone()
        saved.defrost()
        saved.MODEL.TRUST_WEIGHTS = False
        # The first of its data sets that has classes; Detectron2 reads those of some with the data.
        for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
            with suppress(DataError):
                classes = _plain(MetadataCatalog.get(name).as_dict())
                if any(classes.get(key) for key in _NAMES):
                    return cls(saved.dump(), name, classes, version("proscale"))
        return cls(saved.dump(), version=version("proscale"))

    @classmethod
    def parse(cls, text: object, file: str | Path) -> "ModelDescription":
        """The description that a file has.

        Raises:
            CheckpointError: it is none.
        """
        if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
            raise CheckpointError(f"{file}: its description is {shown(text)}: expected a text")
        try:
            content = json.loads(text)
            found = cls(**{key: content[key] for key in cls.__annotations__})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = printable(error)
            raise CheckpointError(f"{file}: its description cannot be read: {reason}") from error
        texts = (found.config, found.dataset, found.version)
        if not all(isinstance(value, str) for value in texts) or not is_name(found.dataset):
            raise CheckpointError(f"{file}: its description has values that are no texts")
        if not isinstance(found.classes, Mapping | None):
            raise CheckpointError(
                f"{file}: classes in its description is {shown(found.classes)}: expected an object"
            )
        if wrong := [key for key, value in (found.classes or {}).items() if not _fits(key, value)]:
            value = shown((found.classes or {})[wrong[0]])
            raise CheckpointError(
                f"{file}: {printable(wrong[0])} in its description is {value}: expected names, "
                "colours and numbers of classes"
            )
        return found

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def register_classes(self) -> str:
        """Make the classes known to Detectron2 under the name of the data set, without its files.

        A data set of this name with the same classes stays as it is; where it has others, the model
        keeps its own under a name of their own.

        Returns:
            the name.
        """
        if not self.dataset:
            return ""
        name, classes, known = self.dataset, self.classes or {}, {}
        if name in MetadataCatalog.list():
            # Names of classes may be in a file that is not here.
            with suppress(DataError):
                known = _plain(MetadataCatalog.get(name).as_dict())
            if not known or any(known.get(key, value) != value for key, value in classes.items()):
                digest = hashlib.sha256(json.dumps(classes).encode()).hexdigest()
                name, known = f"{name}@{digest[:8]}", {}
        new = {key: value for key, value in classes.items() if key not in known}
        ids = {key: dict(map(tuple, new[key])) for key in _IDS if key in new}
        MetadataCatalog.get(name).set(**new | ids)
        return name


def read_description(path: str | Path) -> ModelDescription | None:
    """The description in a checkpoint file, without reading its tensors; None if it has none.

    Raises:
        CheckpointError: the file is no checkpoint, or its description is damaged.
    """
    path = Path(path)
    suffix = check_suffix(path, (*TORCH, SAFETENSORS))
    check_regular(path, raises=CheckpointError)
    text: object = None
    try:
        if suffix == SAFETENSORS:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(DESCRIPTION)
        else:
            check_archive(path)
            with path.open("rb") as opened:
                is_archive = opened.read(len(ARCHIVE)) == ARCHIVE
            # Tensors stay on the disk. Files from before PyTorch wrote archives have none.
            content = load_torch(path, is_archive=True, mmap=True) if is_archive else {}
            text = content.get(DESCRIPTION) if isinstance(content, Mapping) else None
    except (*DAMAGED, SafetensorError) as error:
        reason = printable(str(error).partition("\n")[0] or type(error).__name__)
        raise CheckpointError(f"{path}: it is no checkpoint: {reason}") from error
    return None if text is None else ModelDescription.parse(text, path)


def _fits(key: str, value: object) -> bool:
    """Whether a field of foreign metadata has a value as this project writes it."""
    if key == "ignore_label":
        return type(value) is int
    if not isinstance(value, list) or len(value) > 2**16:
        return False
    if key in _NAMES:
        return all(map(is_name, value))
    if key == _SIGMAS:
        return all(type(sigma) in (int, float) and 0 < sigma <= 10 for sigma in value)
    if key in _COLORS:
        return all(_are_numbers(color, 3) and max(color) < 256 for color in value)
    if key in _IDS:
        return all(_are_numbers(pair, 2) for pair in value)
    if key in _PAIRS:
        return all(isinstance(p, list) and len(p) == 2 and all(map(is_name, p)) for p in value)
    if key == "keypoint_connection_rules":
        return all(
            isinstance(rule, list)
            and len(rule) == 3
            and all(map(is_name, rule[:2]))
            and _are_numbers(rule[2], 3)
            for rule in value
        )
    return False


def _are_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and 0 <= number < 2**31 for number in value)
    )


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a description as JSON has them; ids, whose keys are numbers, as pairs."""
    fields = {key: metadata[key] for key in _FIELDS if metadata.get(key) is not None}
    fields |= {key: list(fields[key].items()) for key in _IDS if key in fields}
    return json.loads(json.dumps(fields))
