"""The checkpointer of training and evaluation, which goes on neither with weights that do not fit
nor with a damaged file.

Detectron2's leaves out tensors of other shapes with a warning each, so that a model may be
evaluated with random layers. Here that is an error, but for the class layer when fine-tuning
begins. Detectron2's also writes over the file in place, and takes whatever it finds.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from proscale.checkpoint.checkpointer import ConvertingCheckpointer
from proscale.checkpoint.class_layer import (
    Mismatch,
    describe_class_layer,
    describe_mismatches,
    has_other_classes,
)
from proscale.engine.sharding import whole
from proscale.errors import CheckpointError, ConfigError
from proscale.utils.whole_files import find_damage, save_archive, write_atomically

LAST_CHECKPOINT = "last_checkpoint"
"""In the folder of the checkpoints: the name of the one to resume from."""
_NUMBERED = f"model_{'[0-9]' * 7}.pth"


class Checkpointer(ConvertingCheckpointer):
    """Loads and saves a model and what training needs besides.

    Args:
        model: may be wrapped for several processes.
        save_dir: folder of the checkpoints.
        fine_tune: whether weights of a data set with another number of classes may be loaded, with
            a new class layer; never when resuming.
        keep: how many numbered checkpoints stay in ``save_dir``, the newest; 0 keeps all.
        checkpointables: see Detectron2.

    Attributes:
        saved_iteration: the ``iteration`` that was saved last; None before.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        fine_tune: bool,
        keep: int = 0,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep
        self.saved_iteration: int | None = None
        self._fine_tune = fine_tune
        self._accepts_other_classes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint if ``resume`` and there is one, else weights from ``path``.

        Raises:
            CheckpointError: tensors have other shapes in the file than in the model; or there are
                checkpoints to resume from, but none that is not damaged.
        """
        is_resuming = resume and self.has_checkpoint()
        self._accepts_other_classes = self._fine_tune and not is_resuming
        return super().resume_or_load(path, resume=resume)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir``/``name``.pth, make it the last checkpoint, and remove old ones.

        The file, then the mark of the last checkpoint: each is written as a whole or not at all.
        The main process writes; of a sharded model, all have to call it.

        Args:
            name: of the file, without suffix.
            kwargs: what to save besides the model and the checkpointables.

        Raises:
            CheckpointError: the system refused, as when the disk is full.
        """
        if not self.save_dir:
            return
        items = {"model": self.model, **self.checkpointables}
        content = {
            key: whole(item.state_dict(), kept=self.save_to_disk) for key, item in items.items()
        }
        if self.save_to_disk:
            self._write(name, content | kwargs)
        self.saved_iteration = kwargs.get("iteration")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_archive(path, content)
        self.tag_last_checkpoint(path.name)
        self._remove_old(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file in ``save_dir`` the one to resume from.

        Raises:
            CheckpointError: the system refused.
        """
        content = last_filename_basename.encode()
        write_atomically(Path(self.save_dir, LAST_CHECKPOINT), lambda file: file.write(content))

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is not damaged: every newer one is reported.

        The main process decides for all.

        Raises:
            CheckpointError: there is none.
        """
        found, error = "", ""
        if comm.is_main_process():
            try:
                found = str(self._last_intact())
            except CheckpointError as none_left:
                error = str(none_left)
        found, error = comm.all_gather((found, error))[0]
        if error:
            raise CheckpointError(error)
        return found

    def _last_intact(self) -> Path:
        folder = Path(self.save_dir)
        last = folder / (folder / LAST_CHECKPOINT).read_text().strip()
        saved = [*folder.glob(_NUMBERED), *folder.glob("model_final.pth")]
        others = [path for path in _by_age(saved) if path != last]
        damages = []
        # A mark that says nothing, as other programs leave when they die, leaves the folder.
        for path in (*([] if last == folder else [last]), *others):
            damage = find_damage(path)
            if damage is None:
                return path
            self.logger.error("Damaged checkpoint: %s: %s; taking the one before", path, damage)
            damages.append(f"{path.name}: {damage}")
        raise CheckpointError(
            f"{folder}: no checkpoint to resume from that is not damaged "
            f"({'; '.join(damages) or f'{LAST_CHECKPOINT} names none'}); to start from "
            "MODEL.WEIGHTS, leave --resume out"
        )

    def _remove_old(self, saved: Path) -> None:
        if not self.keep:
            return
        numbered = _by_age(Path(self.save_dir).glob(_NUMBERED))
        for path in numbered[self.keep :]:
            if path != saved:
                path.unlink()

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        mismatches = [Mismatch(*entry) for entry in incompatible.incorrect_shapes]
        if not mismatches:
            return incompatible
        if not (self._accepts_other_classes and has_other_classes(mismatches)):
            raise CheckpointError(
                f"{self._path}: the weights do not fit the model: {describe_mismatches(mismatches)}"
            )
        self.logger.warning("%s: %s", self._path, describe_class_layer(mismatches))
        # Told in one line; Detectron2 would in six.
        new = {m.key for m in mismatches}
        incompatible.incorrect_shapes.clear()
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in new]
        return incompatible


def check_weights(cfg: CfgNode, *, resume: bool, required: bool) -> None:
    """Make sure that there are weights to start from.

    Args:
        cfg: the configuration.
        resume: whether a checkpoint in ``OUTPUT_DIR`` comes before ``MODEL.WEIGHTS``.
        required: whether random weights are of no use, as for an evaluation.

    Raises:
        ConfigError: ``MODEL.WEIGHTS`` is no file, or empty although required.
    """
    if resume:
        if Path(cfg.OUTPUT_DIR, LAST_CHECKPOINT).is_file():
            return
        logging.getLogger(__name__).warning(
            "No checkpoint to resume from in OUTPUT_DIR %s: starting from MODEL.WEIGHTS %r",
            cfg.OUTPUT_DIR,
            cfg.MODEL.WEIGHTS,
        )
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        if required:
            raise ConfigError("MODEL.WEIGHTS is empty; an evaluation needs a checkpoint file")
    # Other schemes (detectron2://, https://) are Detectron2's to resolve.
    elif "://" not in weights and not Path(weights).expanduser().is_file():
        raise ConfigError(f"MODEL.WEIGHTS: there is no file {weights}")


def load_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Load ``MODEL.WEIGHTS`` into a model that is not going to be trained; empty leaves it.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model.
    """
    checkpointer = Checkpointer(model, fine_tune=False, trust=cfg.MODEL.TRUST_WEIGHTS)
    checkpointer.load(cfg.MODEL.WEIGHTS)


def _by_age(paths: Iterable[Path]) -> list[Path]:
    """The newest first."""
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
