"""Loads ``MODEL.WEIGHTS`` of any known naming scheme into a model, and says what did not match."""

from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from proscale.checkpoint.convert import CONTAINERS, convert, recognise, tensors_of
from proscale.checkpoint.files import PICKLE, read_checkpoint
from proscale.checkpoint.timm import is_timm_model
from proscale.errors import CheckpointError

_BATCHES_SEEN = ".num_batches_tracked"


class ConvertingCheckpointer(DetectionCheckpointer):
    """Detectron2's, with naming schemes and safetensors, and without running what is in pickles.

    Tensors that the model has no use for, parameters that the file does not have and shapes that
    differ are logged, as Detectron2 does.

    Args:
        model, save_dir: see Detectron2.
        trust: see :func:`~proscale.checkpoint.read_checkpoint`.
        checkpointables: see Detectron2.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, trust: bool = False, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self._trust = trust

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's.

        Raises:
            CheckpointError: ``path`` cannot be read, no parameter of the model is in it, or a value
                is no finite number.
        """
        self._path = path
        if path and not self.path_manager.isfile(self.path_manager.get_local_path(path)):
            raise CheckpointError(f"there is no file {path}")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename, trust=self._trust)
        state = tensors_of(content)
        names = self.model.state_dict().keys()
        scheme, _ = recognise(state)
        if scheme is not None or is_timm_model(names):
            conversion = convert(state, model=names)
            self.logger.info("%s has the names of scheme %s", filename, conversion.source)
            state = conversion.state_dict
        elif Path(filename).suffix == PICKLE:
            # Detectron2's and Caffe2's model zoos; Detectron2 matches their names.
            return {**_zoo_entry(content), "matching_heuristics": True}
        # A training state, for one, which lies beside the container of the tensors.
        rest = content if any(key in content for key in CONTAINERS) else {}
        known = (*CONTAINERS, "matching_heuristics")
        return {**{key: rest[key] for key in rest if key not in known}, "model": state}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        # Frozen norms do not count batches, those of classifiers do.
        incompatible.unexpected_keys[:] = [
            name for name in incompatible.unexpected_keys if not name.endswith(_BATCHES_SEEN)
        ]
        parameters = [name for name, _ in self.model.named_parameters()]
        if set(parameters) <= set(incompatible.missing_keys):
            found = ", ".join(incompatible.unexpected_keys[:3]) or "nothing"
            raise CheckpointError(
                f"{self._path}: no tensor in it fits the model, whose parameters are "
                f"{', '.join(parameters[:3])}, …; the file has {found}, …"
            )
        _check_finite(self.model, self._path)
        return incompatible


def _check_finite(model: nn.Module, path: str) -> None:
    state = model.state_dict()
    wrong = [name for name in state if not state[name].isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(state)} tensors have values that are no finite numbers: "
            f"{', '.join(wrong[:3])}{', …' * (len(wrong) > 3)}"
        )


def _zoo_entry(content: dict[str, Any]) -> dict[str, Any]:
    """Tensors and author of a file of Detectron2's model zoo or of Caffe2's, which names none."""
    if "model" in content and "__author__" in content:
        return {"model": tensors_of(content), "__author__": content["__author__"]}
    blobs = tensors_of(content.get("blobs", content))
    momenta = "_momentum"
    state = {name: blob for name, blob in blobs.items() if not name.endswith(momenta)}
    return {"model": state, "__author__": "Caffe2"}
