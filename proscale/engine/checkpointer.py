"""The checkpointer of training and evaluation, which does not go on with weights that do not fit.

Detectron2's leaves out tensors of other shapes with a warning each, so that a model may be
evaluated with random layers. Here that is an error, but for the class layer when fine-tuning
begins.
"""

from typing import Any

from torch import nn

from proscale.checkpoint.checkpointer import ConvertingCheckpointer
from proscale.checkpoint.class_layer import (
    Mismatch,
    describe_class_layer,
    describe_mismatches,
    has_other_classes,
)
from proscale.checkpoint.convert import CheckpointError


class Checkpointer(ConvertingCheckpointer):
    """Loads and saves a model and what training needs besides.

    Args:
        model: may be wrapped for several processes.
        save_dir: folder of the checkpoints.
        fine_tune: whether weights of a data set with another number of classes may be loaded, with
            a new class layer; never when resuming.
        checkpointables: see Detectron2.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, fine_tune: bool, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self._fine_tune = fine_tune
        self._accepts_other_classes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint if ``resume`` and there is one, else weights from ``path``.

        Raises:
            CheckpointError: tensors have other shapes in the file than in the model.
        """
        is_resuming = resume and self.has_checkpoint()
        self._accepts_other_classes = self._fine_tune and not is_resuming
        return super().resume_or_load(path, resume=resume)

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
