"""Checkpoints between naming schemes.

Every scheme is a small module with a table of rules; :data:`SCHEMES` lists them. This project's
own names are those of Mask2Former and PRO-SCALE, ``backbone.…`` and ``sem_seg_head.…``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from proscale.checkpoint import huggingface, nvidia, openmmlab
from proscale.checkpoint.rules import Scheme

PROSCALE = "proscale"
SCHEMES: dict[str, Scheme] = {
    "openmmlab": openmmlab.SCHEME,
    "nvidia": nvidia.SCHEME,
    "huggingface": huggingface.SCHEME,
    "transformers": huggingface.IN_MEMORY,
}
"""By name, besides :data:`PROSCALE`. ``huggingface`` are the names in files, ``transformers`` those
of ``state_dict()`` in Transformers 5."""

CONTAINERS = ("state_dict", "model")
_DATA_PARALLEL = "module."
_BACKBONE, _HEAD = "backbone.", "sem_seg_head."


class CheckpointError(ValueError):
    """A checkpoint is not what it should be; the message is one sentence."""


@dataclass(frozen=True)
class Conversion:
    """A checkpoint under other names.

    Attributes:
        state_dict: the tensors.
        source: the scheme it had.
        unknown: names that have no counterpart. To this project's names they are kept in
            ``state_dict`` as they are, so that a loader tells that it did not use them; to others
            they are left out.
    """

    state_dict: dict[str, Tensor]
    source: str
    unknown: list[str]


def convert_state_dict(state_dict: Mapping, to: str = PROSCALE) -> dict[str, Tensor]:
    """Convert a checkpoint of a known naming scheme.

    Args:
        state_dict: tensors by name, of a whole model or a backbone alone; also below the key
            ``state_dict`` or ``model``, and with ``module.`` before every name.
        to: a key of :data:`SCHEMES`, or ``proscale``.

    Returns:
        the tensors under the names of ``to``; see :class:`Conversion` for what is unknown. In other
        schemes than this project's a backbone alone gets the names it has without a head.

    Raises:
        CheckpointError: the scheme is not known, or tensors of the model have no counterpart in
            ``to``, such as a head of another form.
    """
    return convert(state_dict, to=to).state_dict


def convert(state_dict: Mapping, *, to: str = PROSCALE) -> Conversion:
    """As :func:`convert_state_dict`, with what it found out.

    Raises:
        CheckpointError: see there.
    """
    if to != PROSCALE and to not in SCHEMES:
        raise CheckpointError(
            f"there is no naming scheme {to!r}: accepts {', '.join((PROSCALE, *SCHEMES))}"
        )
    state = tensors_of(state_dict)
    source = recognise(state)
    if source is None:
        raise CheckpointError(
            f"names of no known scheme ({', '.join((PROSCALE, *SCHEMES))}): "
            f"{', '.join(list(state)[:3]) or 'none at all'}, …"
        )
    unknown: list[str] = []
    if source != PROSCALE:
        state, unknown = _to_ours(state, SCHEMES[source])
    if to == PROSCALE:
        return Conversion(state, source, unknown)

    whole = any(name.startswith(_HEAD) for name in state)
    converted, left = SCHEMES[to].from_ours(state, with_prefix=whole)
    ours = [name for name in left if name.startswith((_BACKBONE, _HEAD)) and name not in unknown]
    if ours:
        raise CheckpointError(
            f"scheme {to} has no names for {len(ours)} tensors of the model: "
            f"{', '.join(ours[:3])}, …"
        )
    return Conversion(converted, source, left)


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The scheme of the names in ``state``, a key of :data:`SCHEMES` or ``proscale``; or None."""
    for name, scheme in SCHEMES.items():
        if scheme.recognises(state):
            return name
    return PROSCALE if any(name.startswith((_BACKBONE, _HEAD)) for name in state) else None


def tensors_of(checkpoint: Mapping) -> dict[str, Tensor]:
    """The tensors by name in ``checkpoint``, out of their container and without ``module.``."""
    for key in CONTAINERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    return {name.removeprefix(_DATA_PARALLEL): tensor for name, tensor in checkpoint.items()}


def _to_ours(state: Mapping[str, Tensor], scheme: Scheme) -> tuple[dict[str, Tensor], list[str]]:
    converted, unknown = scheme.to_ours(state)
    return {**converted, **{name: state[name] for name in unknown}}, unknown
