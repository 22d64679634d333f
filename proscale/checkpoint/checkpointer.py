"""Loads ``MODEL.WEIGHTS`` of any known naming scheme into a model, and says what did not match."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from proscale.checkpoint.convert import (
    CONTAINERS,
    CheckpointError,
    convert,
    recognise,
    tensors_of,
)
from proscale.checkpoint.files import PICKLES, SAFETENSORS, read_checkpoint


class ConvertingCheckpointer(DetectionCheckpointer):
    """Detectron2's, with naming schemes and safetensors.

    Tensors that the model has no use for, parameters that the file does not have and shapes that
    differ are logged, as Detectron2 does.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's.

        Raises:
            CheckpointError: ``path`` cannot be read, or no parameter of the model is in it.
        """
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((*PICKLES, SAFETENSORS)):
            # Detectron2's and Caffe2's model zoos; names are matched by Detectron2's heuristics.
            return super()._load_file(filename)
        content = read_checkpoint(filename)
        state = tensors_of(content)
        scheme = recognise(state)
        if scheme is not None:
            state = convert(state).state_dict
            self.logger.info("%s has the names of scheme %s", filename, scheme)
        # A training state, for one, which lies beside the container of the tensors.
        contained = any(key in content for key in CONTAINERS)
        rest = {key: content[key] for key in content if contained and key not in CONTAINERS}
        return {**rest, "model": state}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        parameters = [name for name, _ in self.model.named_parameters()]
        if set(parameters) <= set(incompatible.missing_keys):
            found = ", ".join(incompatible.unexpected_keys[:3]) or "nothing"
            raise CheckpointError(
                f"{self._path}: no tensor in it fits the model, whose parameters are "
                f"{', '.join(parameters[:3])}, …; the file has {found}, …"
            )
        return incompatible
