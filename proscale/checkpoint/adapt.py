"""Weights of one model as the start of another.

Tensors of the same name and shape are taken over as they are. Encoders of deformable layers may
differ in depth and in the levels that their layers see, as Mask2Former's and PRO-SCALE's do. Layers
of the new encoder then start as those of the old one at the same relative depth, the first as the
first and the last as the last. Of a layer that saw more levels, the weights of the coarsest ones
are kept: these are the levels that the new layer sees.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import gt
from pathlib import Path

from torch import Tensor, nn

from proscale.errors import CheckpointError
from proscale.modeling.pixel_decoders.deformable_encoder import DeformableAttention

ENCODER_LAYERS = "sem_seg_head.pixel_decoder.transformer.encoder.layers."
"""The prefix of names in the encoder's layers; their number follows."""

_ENCODER_LAYER = re.compile(re.escape(ENCODER_LAYERS) + r"(0|[1-9][0-9]{0,3})\.(.*)")
_LEVEL_EMBED = "sem_seg_head.pixel_decoder.transformer.level_embed"
_PER_LEVEL = ("self_attn.sampling_offsets.", "self_attn.attention_weights.")
# The convolution that PRO-SCALE replaces by its Light-Pixel Embedding, and the norm behind both.
_PIXEL_EMBEDDING = "sem_seg_head.pixel_decoder.layer_1."


@dataclass(frozen=True)
class WeightTransfer:
    """Weights for a model.

    Attributes:
        state_dict: tensors under the model's names, in its order; those in ``new`` are not there.
        layers: the layer that each of the encoder's starts as, where that is not its own.
        cut: by layer of the encoder, how many of how many levels were kept.
        new: names of the model's tensors that start as the model initialises them.
        left_out: names of the given tensors that are not used.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[int, int] = field(default_factory=dict)
    cut: dict[int, tuple[int, int]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def adapt_weights(state: Mapping[str, Tensor], model: nn.Module) -> WeightTransfer:
    """Take over all that ``model`` can use.

    Args:
        state: under this project's names.
        model: may be on the meta device; it is not changed.
    """
    expected = model.state_dict()
    # For each layer of the model's encoder the one that it starts as.
    theirs, ours = (
        sorted({layer for layer, _ in map(_encoder_layer, names) if layer is not None})
        for names in (state, expected)
    )
    # The nearest at the same relative depth, place / steps of last; halves go up.
    last, steps = len(theirs) - 1, max(len(ours) - 1, 1)
    sources = {
        layer: (2 * place * last + steps) // (2 * steps)
        for place, layer in enumerate(ours if theirs else [])
    }
    result = WeightTransfer(layers={layer: old for layer, old in sources.items() if layer != old})
    convolution = _PIXEL_EMBEDDING + "weight"
    other_embedding = (convolution in state) != (convolution in expected)
    used = set()
    for name, tensor in expected.items():
        # Layers of the encoder may start as others; every other tensor as the one of its name.
        source, layer, inner = name, *_encoder_layer(name)
        if layer is not None:
            source = f"{ENCODER_LAYERS}{sources.get(layer)}.{inner}"
        found = state.get(source)
        if layer is not None and found is not None and inner.startswith(_PER_LEVEL):
            attention = model.get_submodule(f"{ENCODER_LAYERS}{layer}.self_attn")
            assert isinstance(attention, DeformableAttention)
            heads, levels = attention.n_heads, attention.n_levels
            rows = len(tensor) // levels  # of a level
            if found.ndim and len(found) > len(tensor) and len(found) % rows == 0:
                result.cut[layer] = (levels, len(found) // rows)
                # Rows are by head, then level, from coarse to fine.
                by_level = found.unflatten(0, (heads, -1, rows // heads))
                found = by_level[:, :levels].flatten(0, 2)
        # Of the norm behind the pixel embedding only the name and the shape are the same.
        is_new = other_embedding and name.startswith(_PIXEL_EMBEDDING)
        if is_new or found is None or found.shape != tensor.shape:
            result.new.append(name)
        else:
            used.add(source)
            # A copy, because two layers may start as the same one.
            result.state_dict[name] = found.clone()
    result.left_out.extend(name for name in state if name not in used)
    return result


def slice_budget(
    state: Mapping[str, Tensor], budget: Sequence[int], *, file: str | Path
) -> dict[str, Tensor]:
    """The weights of an ordinary PRO-SCALE model that computes what an elastic one does with
    ``budget``, layers of each stage: see
    :meth:`~proscale.modeling.pixel_decoders.proscale.ProgressiveEncoder.set_budget`.

    Args:
        state: under this project's names.
        file: where it was read from, for messages.

    Raises:
        CheckpointError: the encoder in it has no stages, or fewer layers.
    """
    # A layer of stage s has weights for s levels, which tells the stages apart.
    rows = {
        layer: tensor.numel()
        for name, tensor in state.items()
        for layer, inner in [_encoder_layer(name)]
        if layer is not None and inner == _PER_LEVEL[1] + "bias"
    }
    embeddings = state.get(_LEVEL_EMBED)
    levels = len(embeddings) if embeddings is not None and embeddings.ndim else 0
    of_level = max(rows.values(), default=0) // max(levels, 1)
    stages: list[list[int]] = [[] for _ in range(levels)]
    for layer in sorted(rows):
        stage, rest = divmod(rows[layer], max(of_level, 1))
        if rest or not 1 <= stage <= levels:
            raise CheckpointError(f"{file}: its encoder has no stages: expected PRO-SCALE's")
        stages[stage - 1].append(layer)
    layers = [len(stage) for stage in stages]
    if not rows or len(budget) != levels or any(map(gt, budget, layers)):
        raise CheckpointError(
            f"--budget is {','.join(map(str, budget))}: expected layers up to those of the "
            f"encoder's stages in {file}, {','.join(map(str, layers)) or 'of which it has none'}"
        )
    kept = [layer for stage, count in zip(stages, budget, strict=True) for layer in stage[:count]]
    numbers = {layer: number for number, layer in enumerate(kept)}
    sliced = {}
    for name, tensor in state.items():
        number, inner = _encoder_layer(name)
        if number is None:
            sliced[name] = tensor
        elif number in numbers:
            sliced[f"{ENCODER_LAYERS}{numbers[number]}.{inner}"] = tensor
    return sliced


def _encoder_layer(name: str) -> tuple[int | None, str]:
    """The number of the encoder's layer that has a tensor, and its name in there."""
    found = _ENCODER_LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, "")
