"""Names of SegFormer in the checkpoints of OpenMMLab, NVIDIA and Hugging Face.

- OpenMMLab, and SegFormer++ with it: queries, keys and values in one tensor, 1×1 convolutions for
  the feed-forward layers, a head with convolutions and norms.
- NVIDIA, the authors' first release: stages counted from 1, a head with linear projections that
  fuses the stages from the coarsest to the finest.
- Hugging Face: queries, keys and values in a tensor each, NVIDIA's head. Since Transformers 5 the
  names in memory differ from those in files.
"""

import torch
from torch import Tensor

from proscale.checkpoint.rules import (
    NamingScheme,
    Rule,
    Template,
    concatenate,
    matching,
    rename,
    rename_modules,
)

_STAGE = "backbone.stages.{stage}."
_BLOCK = _STAGE + "blocks.{block}."
_HEAD = "sem_seg_head."


def _as_linear(tensor: Tensor) -> Tensor:
    """The weight of a 1×1 convolution as that of a linear layer; others as they are."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def _as_convolution(tensor: Tensor) -> Tensor:
    """The reverse."""
    return tensor[..., None, None] if tensor.ndim == 2 else tensor


def _reverse_stages(tensor: Tensor) -> Tensor:
    """``(C, 4·C, 1, 1)``: the input's four blocks of channels in reverse."""
    return torch.cat(tensor.chunk(4, dim=1)[::-1], dim=1)


def _head_rules(*, projection: str, fuse: str, norm: str, classifier: str) -> tuple[Rule, ...]:
    """Rules of NVIDIA's head, from the names of its modules in ``decode_head``."""
    return (
        rename(
            _HEAD + "projections.{stage}.{tensor}",
            f"decode_head.{projection}.proj.{{tensor}}",
            to_ours=_as_convolution,
            to_theirs=_as_linear,
        ),
        rename(
            _HEAD + "fuse.{tensor}",
            f"decode_head.{fuse}.{{tensor}}",
            to_ours=_reverse_stages,
            to_theirs=_reverse_stages,
        ),
        *rename_modules(_HEAD, "decode_head.", f"fuse.norm={norm} predictor={classifier}"),
    )


# OpenMMLab: a stage is a list of the patch embedding, the blocks and the norm.
_MMLAB_STAGE = "[backbone.]layers.{stage}."
_MMLAB_BLOCK = _MMLAB_STAGE + "1.{block}."

OPENMMLAB = NamingScheme(
    mark=matching(_MMLAB_STAGE + "0.projection.{tensor}"),
    rules=(
        *rename_modules(
            _STAGE, _MMLAB_STAGE, "patch_embed.proj=0.projection patch_embed.norm=0.norm norm=2"
        ),
        # PyTorch's attention has queries, keys and values in one tensor; keys and values are one
        # here, because they alone are reduced.
        Rule(
            (Template(_BLOCK + "attn.q.{tensor}"), Template(_BLOCK + "attn.kv.{tensor}", units=2)),
            (Template(_MMLAB_BLOCK + "attn.attn.in_proj_{tensor}"),),
        ),
        *rename_modules(
            _BLOCK,
            _MMLAB_BLOCK,
            "norm1 attn.proj=attn.attn.out_proj attn.sr attn.norm norm2 mlp.dwconv=ffn.layers.1",
        ),
        # Its feed-forward layers are 1×1 convolutions around the depth-wise one.
        *rename_modules(
            _BLOCK,
            _MMLAB_BLOCK,
            "mlp.fc1=ffn.layers.0 mlp.fc2=ffn.layers.4",
            to_ours=_as_linear,
            to_theirs=_as_convolution,
        ),
        *rename_modules(
            _HEAD,
            "decode_head.",
            """projections.{stage}=convs.{stage}.conv projections.{stage}.norm=convs.{stage}.bn
            fuse=fusion_conv.conv fuse.norm=fusion_conv.bn predictor=conv_seg""",
        ),
    ),
    container="state_dict",
)

# NVIDIA: parts of a stage have its number, from 1, in their own names.
NVIDIA = NamingScheme(
    mark=matching("[backbone.]patch_embed{stage+1}.proj.{tensor}"),
    rules=(
        *rename_modules(
            _STAGE,
            "[backbone.]",
            """patch_embed.proj=patch_embed{stage+1}.proj patch_embed.norm=patch_embed{stage+1}.norm
            norm=norm{stage+1}""",
        ),
        *rename_modules(
            _BLOCK,
            "[backbone.]block{stage+1}.{block}.",
            """norm1 attn.q attn.kv attn.proj attn.sr attn.norm
            norm2 mlp.fc1 mlp.dwconv=mlp.dwconv.dwconv mlp.fc2""",
        ),
        *_head_rules(
            projection="linear_c{stage+1}",
            fuse="linear_fuse.conv",
            norm="linear_fuse.bn",
            classifier="linear_pred",
        ),
    ),
    container="state_dict",
)


def _huggingface(
    *, embedding: str, block: str, norm: str, names: str, keys: str, values: str, projections: str
) -> NamingScheme:
    """A scheme from templates of its modules; ``names`` within a block."""
    return NamingScheme(
        mark=matching(embedding + ".proj.{tensor}"),
        rules=(
            *rename_modules(
                _STAGE,
                "",
                f"""patch_embed.proj={embedding}.proj patch_embed.norm={embedding}.layer_norm
                norm={norm}""",
            ),
            *rename_modules(_BLOCK, block, names),
            # Keys and values, which are one tensor here.
            concatenate(
                _BLOCK + "attn.kv.{tensor}",
                *(f"{block}attention.{name}.{{tensor}}" for name in (keys, values)),
            ),
            *_head_rules(
                projection=projections + ".{stage}",
                fuse="linear_fuse",
                norm="batch_norm",
                classifier="classifier",
            ),
        ),
    )


HUGGINGFACE = _huggingface(
    embedding="[segformer.]encoder.patch_embeddings.{stage}",
    block="[segformer.]encoder.block.{stage}.{block}.",
    norm="[segformer.]encoder.layer_norm.{stage}",
    names="""norm1=layer_norm_1 attn.q=attention.self.query attn.proj=attention.output.dense
    attn.sr=attention.self.sr attn.norm=attention.self.layer_norm
    norm2=layer_norm_2 mlp.fc1=mlp.dense1 mlp.dwconv=mlp.dwconv.dwconv mlp.fc2=mlp.dense2""",
    keys="self.key",
    values="self.value",
    projections="linear_c",
)
# As in memory since Transformers 5.
HUGGINGFACE_IN_MEMORY = _huggingface(
    embedding="[segformer.]stages.{stage}.patch_embeddings",
    block="[segformer.]stages.{stage}.blocks.{block}.",
    norm="[segformer.]stages.{stage}.layer_norm",
    names="""norm1=layernorm_before attn.q=attention.q_proj attn.proj=attention.o_proj
    attn.sr=attention.sequence_reduction.sequence_reduction
    attn.norm=attention.sequence_reduction.layer_norm
    norm2=layernorm_after mlp.fc1 mlp.dwconv=mlp.dwconv.dwconv mlp.fc2""",
    keys="k_proj",
    values="v_proj",
    projections="linear_projections",
)
