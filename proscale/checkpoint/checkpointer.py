"""The checkpointer of training and evaluation: any known file into a model, and back to the disk.

It differs from Detectron2's in four ways. Weights of any known naming scheme are loaded, without
running the code in pickles. Weights that do not fit the model are an error, where Detectron2 leaves
random layers with a warning. Files are written as a whole or not at all, and only while all values
are finite. A last checkpoint that is damaged or not finite is passed over for the one before.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import Detectron2Handler
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from proscale.checkpoint.convert import (
    ARRAYS,
    CONTAINERS,
    container_of,
    convert,
    is_timm_model,
    recognise,
    tensors_of,
)
from proscale.checkpoint.description import DESCRIPTION, ModelDescription
from proscale.checkpoint.files import (
    PICKLE,
    find_damage,
    read_checkpoint,
    replacing,
    save_archive,
    stored_iteration,
)
from proscale.checkpoint.tensors import check_fit
from proscale.engine.sharding import whole
from proscale.errors import CheckpointError, ConfigError, UserError, printable, shown
from proscale.utils.untrusted import fetched, inside, read_bounded

LAST_CHECKPOINT = "last_checkpoint"
"""In the folder of the checkpoints: the file that names the one to resume from."""
_NUMBERED = f"model_{'[0-9]' * 7}.pth"
_FINAL = "model_final.pth"
_LONGEST_MARK = 4096

METRIC_HISTORY = "MetricHistory"
"""Key of a training's latest metrics, where a user's own may be NaN."""

CLASS_LAYER = (
    "sem_seg_head.predictor.class_embed.weight",
    "sem_seg_head.predictor.class_embed.bias",
    # Heads that classify pixels.
    "sem_seg_head.predictor.weight",
    "sem_seg_head.predictor.bias",
    # The class loss's weights.
    "criterion.empty_weight",
)
"""Names of the tensors whose first dimension is the number of classes, “no object” included.

Fine-tuning on a data set with other classes keeps everything but these, and those of
:data:`DETECTION_CLASS_LAYER`. Any other tensor of another shape means that the checkpoint is of
another model.
"""
DETECTION_CLASS_LAYER = re.compile(
    r"detection_head\.(transformer\.enc_out_)?class_embed(\.\d+)?\.(weight|bias)"
    r"|detection_head\.label_enc\.weight"
)
"""The same of a detector: class layers of the layers and of the proposals, and the embedding of
noised labels."""


class Mismatch(NamedTuple):
    """A tensor whose shape differs: in the checkpoint, and in the model."""

    key: str
    loaded: tuple[int, ...]
    expected: tuple[int, ...]


class Checkpointer(DetectionCheckpointer):
    """Loads and saves a model and the other state of a training.

    Args:
        model: may be wrapped for several processes.
        save_dir: folder of the checkpoints.
        fine_tune: accept weights of a data set with another number of classes, with a new class
            layer; never when resuming.
        trust: see :func:`~proscale.checkpoint.read_checkpoint`.
        keep: how many numbered checkpoints stay in ``save_dir``, the newest; 0 keeps all.
        describe: gives the model's description, which is written into every file; None writes none.
        checkpointables: see Detectron2.

    Attributes:
        saved_iteration: the ``iteration`` that was saved last; None before.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        fine_tune: bool = False,
        trust: bool = False,
        keep: int = 0,
        describe: Callable[[], ModelDescription] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep
        self._describe = describe
        self.saved_iteration: int | None = None
        self._fine_tune = fine_tune
        self._trust = trust

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint if ``resume`` and there is one, else weights from ``path``."""
        if resume and self.has_checkpoint():
            return self.load(self.get_checkpoint_file())
        return self.load(path, [], new_classes=self._fine_tune)

    def load(
        self, path: str, checkpointables: Iterable[str] | None = None, *, new_classes: bool = False
    ) -> dict[str, Any]:
        """Load ``path`` into the model and the checkpointables.

        Tensors that the model has no use for and parameters that the file does not have are logged.

        Args:
            path: file or address that Detectron2 can resolve; empty loads nothing.
            checkpointables: names of those to load; None loads all that the file has.
            new_classes: keep the model's own class layer where the file's has other classes.

        Returns:
            the rest of the file's content.

        Raises:
            CheckpointError: ``path`` cannot be read, no parameter of the model is in it, tensors
                have other shapes than in the model, or a value is not finite.
        """
        if not path:
            self.logger.info("No weights to load: the model stays as it was initialised")
            return {}
        # Find and read the file.
        self.logger.info("Loading %s", path)
        file = self.path_manager.get_local_path(path)
        if not self.path_manager.isfile(file):
            raise CheckpointError(f"there is no file {path}")
        # Every process reads the file, and comes to the same result.
        content = read_checkpoint(file, trust=self._trust)

        # Give its tensors the names of the model, and set aside those of other shapes.
        expected = self.model.state_dict()
        state = self._under_our_names(content, file)
        mismatches = [
            Mismatch(name, tuple(tensor.shape), tuple(expected[name].shape))
            for name, tensor in state.items()
            if name in expected and tensor.shape != expected[name].shape
        ]
        for mismatch in mismatches:
            del state[mismatch.key]

        # Check before anything of the model changes: that something fits, that what fits is finite,
        # and that nothing but the class layer has another shape.
        parameters = [name for name, _ in self.model.named_parameters()]
        if not any(name in state for name in parameters):
            others = [printable(name) for name in state if name not in expected]
            found = ", ".join(others[:3]) or "nothing"
            raise CheckpointError(
                f"{path}: no tensor in it fits the model, whose parameters are "
                f"{', '.join(parameters[:3])}, …; the file has {found}, …"
            )
        for name, value in container_of(content).items():
            if name in expected and not isinstance(value, ARRAYS):
                kind = type(value).__name__
                raise CheckpointError(f"{path}: {name} is a {kind}: expected a tensor")
        check_fit(path, state, expected)
        fitting = [name for name in expected if name in state]
        if wrong := [name for name in fitting if not state[name].isfinite().all()]:
            raise CheckpointError(
                f"{path}: {len(wrong)} of {len(fitting)} tensors have values that are no finite "
                f"numbers: {_first(wrong)}"
            )
        if mismatches and not (new_classes and has_other_classes(mismatches)):
            raise CheckpointError(
                f"{path}: the weights do not fit the model: {describe_mismatches(mismatches)}"
            )

        # Not strict: a backbone alone may be loaded, and the rest is reported.
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if mismatches:
            self.logger.warning("%s: %s", path, describe_class_layer(mismatches))
        # That line covers the class layer's tensors; frozen norms do not count batches.
        new = {mismatch.key for mismatch in mismatches}
        missing = [name for name in missing if name not in new]
        unexpected = [
            printable(name) for name in unexpected if not name.endswith(".num_batches_tracked")
        ]
        self._log_incompatible_keys(_IncompatibleKeys(missing, unexpected, incorrect_shapes=[]))

        # The training's own state, such as the optimiser's, lies beside the container of the
        # tensors; a file without one has nothing but tensors.
        if not any(key in content for key in CONTAINERS):
            return {}
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in content:
                self._load_state(key, content.pop(key), path)
        return {key: value for key, value in content.items() if key not in CONTAINERS}

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir``/``name``.pth, make it the last checkpoint, and remove old ones.

        The main process writes; of a sharded model, all have to call it.

        Args:
            name: of the file, without suffix.
            kwargs: saved besides the model and the checkpointables.

        Raises:
            CheckpointError: a tensor has values that are not finite, or a number is NaN, or the
                system refused, as when the disk is full. The last checkpoint stays the one before.
        """
        if not self.save_dir:
            return
        iteration = kwargs.get("iteration")
        items = {"model": self.model, **self.checkpointables}
        path = self._write(name, items, kwargs, "the last checkpoint is the one before")
        if self.save_to_disk:
            # A crash from here on leaves the new file or the mark of the one before.
            self.tag_last_checkpoint(path.name)
            if self.keep and iteration is not None:
                # A later one is of another training: it takes no place of this one's.
                numbered = [file for file in checkpoints_in(path.parent) if file.name != _FINAL]
                for old in _newest_first(numbered, until=iteration)[self.keep :]:
                    old.unlink()
        self.saved_iteration = iteration

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Write the model alone to ``save_dir``/``name``.pth; the last checkpoint stays.

        Arguments, processes and errors are those of :meth:`save`.
        """
        if self.save_dir:
            self._write(name, {"model": self.model}, kwargs, "the file before stays")

    def _write(
        self, name: str, items: Mapping[str, Any], values: Mapping[str, Any], otherwise: str
    ) -> Path:
        """Write the states of ``items``, and ``values``, as a whole."""
        path = Path(self.save_dir, f"{name}.pth")
        # Shards are put together by all processes, and kept by the one that writes.
        content = {
            key: whole(item.state_dict(), kept=self.save_to_disk) for key, item in items.items()
        }
        if self.save_to_disk:
            # A training that resumed from values that are not finite could only fail.
            if wrong := find_non_finite(content):
                raise CheckpointError(
                    f"{path}: not written: {len(wrong)} of its values are no finite numbers: "
                    f"{_first(wrong)}; {otherwise}"
                )
            self.logger.info("Saving checkpoint to %s", path)
            if self._describe is not None:
                content[DESCRIPTION] = self._describe().text()
            save_archive(path, {**content, **values}, iteration=values.get("iteration"))
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file in ``save_dir`` the one to resume from."""
        with replacing(Path(self.save_dir, LAST_CHECKPOINT)) as partial:
            partial.write_text(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is neither damaged nor has values that are not finite.

        The one that is marked, else that of the latest iteration; those passed over are reported.

        The main process decides for all.

        Raises:
            CheckpointError: there is none.
        """
        # Also the failure is shared, or the other processes would wait for a result.
        found, error = comm.all_gather(self._last_sound() if comm.is_main_process() else None)[0]
        if found is None:
            raise CheckpointError(error)
        return found

    def _last_sound(self) -> tuple[str | None, str]:
        """The file, or None and the reason."""
        folder = Path(self.save_dir)
        candidates = _newest_first(checkpoints_in(folder))
        damages = []
        try:
            mark = read_bounded(folder / LAST_CHECKPOINT, limit=_LONGEST_MARK).decode().strip()
            # An empty mark is left by other programs when they die.
            last = Path(inside(folder, mark, LAST_CHECKPOINT)) if mark else None
        except (UserError, UnicodeDecodeError) as error:
            last = None
            damages.append(str(error) if isinstance(error, UserError) else "it is no text")
            self.logger.error("%s of %s: %s", LAST_CHECKPOINT, folder, damages[0])
        if last is not None:
            candidates = [last, *(path for path in candidates if path != last)]
        for path in candidates:
            if (damage := self._find_fault(path)) is None:
                if damages:
                    self.logger.warning("Resuming from %s", path)
                return str(path), ""
            self.logger.error("Damaged checkpoint: %s: %s; taking the one before", path, damage)
            damages.append(f"{path.name}: {damage}")
        return None, (
            f"{folder}: no checkpoint to resume from that is not damaged "
            f"({'; '.join(damages) or f'{LAST_CHECKPOINT} names none'}); to start from "
            "MODEL.WEIGHTS, leave --resume out"
        )

    def _find_fault(self, path: Path) -> str | None:
        """Why a training cannot go on from the file; None if it can, or loading tells."""
        if not path.is_file():
            return "there is no such file"
        if damage := find_damage(path):
            return damage
        try:
            wrong = find_non_finite(read_checkpoint(path, trust=self._trust))
        except CheckpointError:
            # Refused, such as one with code in it: the user has to decide.
            return None
        return f"{len(wrong)} values are no finite numbers: {_first(wrong)}" if wrong else None

    def _load_state(self, key: str, state: Any, path: str) -> None:
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: {key} is {shown(state)}: expected a dictionary")
        try:
            self.checkpointables[key].load_state_dict(state)
        except UserError:
            raise
        # Whatever a state of wrong types or without parts leads to.
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: {key} cannot be restored: {reason}") from error

    def _under_our_names(self, content: dict[str, Any], file: str) -> dict[str, Tensor]:
        """The tensors of a file by the model's names, as far as they have any."""
        ours = self.model.state_dict()
        # Files with our own names need no conversion, and files of no known scheme may still share
        # some names with the model.
        state = tensors_of(content)
        _, scheme = recognise(state)
        if scheme is not None or is_timm_model(ours):
            conversion = convert(state, model=ours, file=file)
            self.logger.info("%s has the names of scheme %s", file, conversion.source)
            return conversion.state_dict
        if Path(file).suffix != PICKLE:
            return state
        # Detectron2's model zoo, or Caffe2's, which names no author. Detectron2 matches the names.
        is_caffe2 = not ("model" in content and "__author__" in content)
        if is_caffe2:
            blobs = content.get("blobs", content)
            state = tensors_of(blobs) if isinstance(blobs, Mapping) else {}
            state = {name: blob for name, blob in state.items() if not name.endswith("_momentum")}
        try:
            return align_and_update_state_dicts(ours, state, c2_conversion=is_caffe2)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{file}: its names cannot be matched with those of the model"
            ) from error


def has_other_classes(mismatches: Sequence[Mismatch]) -> bool:
    """Whether the number of classes is all that differs, of all tensors whose shape differs."""
    return bool(mismatches) and all(
        (m.key in CLASS_LAYER or DETECTION_CLASS_LAYER.fullmatch(m.key))
        and m.loaded[1:] == m.expected[1:]
        for m in mismatches
    )


def describe_mismatches(mismatches: Sequence[Mismatch], most: int = 5) -> str:
    """Names and shapes of the first few, and how many there are."""
    shown = "; ".join(
        f"{m.key} is {m.loaded} in the checkpoint, {m.expected} in the model"
        for m in mismatches[:most]
    )
    more = len(mismatches) - most
    return shown + (f"; and {more} more" if more > 0 else "")


def describe_class_layer(mismatches: Sequence[Mismatch]) -> str:
    """The new layer in one line, after :func:`has_other_classes`."""
    layer = max(mismatches, key=lambda m: len(m.expected))
    return (
        f"the checkpoint has a class layer of {layer.loaded[0]} outputs, this model one of "
        f"{layer.expected[0]}: {layer.key.rpartition('.')[0]} starts afresh, all else is loaded"
    )


def check_weights(cfg: CfgNode, *, resume: bool, required: bool) -> None:
    """Make sure that there are weights to start from, on this machine.

    Args:
        cfg: its ``MODEL.WEIGHTS`` and ``OUTPUT_DIR``.
        resume: whether a checkpoint in ``OUTPUT_DIR`` comes before ``MODEL.WEIGHTS``.
        required: whether random weights are of no use, as for an evaluation.

    Raises:
        ConfigError: ``MODEL.WEIGHTS`` is no file, an address that cannot be fetched, or empty
            although required.
    """
    if resume and Path(cfg.OUTPUT_DIR, LAST_CHECKPOINT).is_file():
        return
    weights = cfg.MODEL.WEIGHTS
    if resume:
        # Not an error: jobs that restart themselves pass --resume from the beginning.
        message = "No checkpoint to resume from in OUTPUT_DIR %s: starting from MODEL.WEIGHTS %r"
        logging.getLogger(__name__).warning(message, cfg.OUTPUT_DIR, weights)
    if required and not weights:
        raise ConfigError("MODEL.WEIGHTS is empty: expected a checkpoint file to evaluate")
    if "://" in weights:
        # Now, because it fails where there is no network, and takes time where there is.
        try:
            fetched(weights, raises=ConfigError)
        except ConfigError as error:
            zoo = Detectron2Handler
            source = weights.replace(zoo.PREFIX, zoo.S3_DETECTRON2_PREFIX, 1)
            hint = "" if required else '; MODEL.WEIGHTS "" starts from random weights'
            raise ConfigError(
                f"MODEL.WEIGHTS is {error}: expected a network, or the name of a file that was "
                f"downloaded from {source}{hint}"
            ) from error
    elif weights and not Path(weights).is_file():
        raise ConfigError(f"MODEL.WEIGHTS: there is no file {weights}")


def load_weights(model: nn.Module, cfg: CfgNode) -> None:
    """:meth:`Checkpointer.load` of ``MODEL.WEIGHTS``, for a model that is not to be trained."""
    Checkpointer(model, trust=cfg.MODEL.TRUST_WEIGHTS).load(cfg.MODEL.WEIGHTS)


def checkpoints_in(folder: Path) -> list[Path]:
    """The files that a training may resume from, in no order."""
    return [path for name in (_NUMBERED, _FINAL) for path in folder.glob(name) if path.is_file()]


def find_non_finite(content: Any) -> list[str]:
    """Names of the tensors with infinite or NaN values, and of the numbers that are NaN.

    Numbers may be infinite, such as the best loss so far; metrics of :data:`METRIC_HISTORY` may be
    NaN, too.
    """
    found, open_, seen = [], [("", content)], set()
    while open_:
        name, value = open_.pop()
        if isinstance(value, Tensor):
            is_float = value.is_floating_point() and value.layout == torch.strided
            if is_float and not value.is_meta and not value.isfinite().all():
                found.append(name)
        elif isinstance(value, float) and value != value:
            found.append(name)
        # A file may have a container that is in itself.
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            open_ += [
                (f"{name}.{key}" if name else str(key), item)
                for key, item in items
                if key != METRIC_HISTORY
            ]
    return sorted(found)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def _newest_first(paths: Iterable[Path], *, until: float = math.inf) -> list[Path]:
    """By the iteration stored inside, which copies and wrong clocks leave; none after ``until``."""
    iterations = {path: stored_iteration(path) for path in paths}
    # Of the last iteration there may be a numbered file and the final one.
    newest_first = sorted(iterations, key=lambda path: (iterations[path], path.name), reverse=True)
    return [path for path in newest_first if iterations[path] <= until]
