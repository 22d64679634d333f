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

from proscale.checkpoint.rules import NamingScheme, Rule, Template, rename_modules

_STAGE = "backbone.stages.{stage}."
_BLOCK = _STAGE + "blocks.{block}."
_HEAD, _POSE_HEAD = "sem_seg_head.", "pose_head."


def _as_linear(tensor: Tensor) -> Tensor:
    """The weight of a 1×1 convolution as that of a linear layer; others as they are."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def _as_convolution(tensor: Tensor) -> Tensor:
    """The reverse."""
    return tensor[..., None, None] if tensor.ndim == 2 else tensor


def _reverse_stages(tensor: Tensor) -> Tensor:
    """``(C, 4·C, 1, 1)``: the input's four blocks of channels in reverse."""
    return torch.cat(tensor.chunk(4, dim=1)[::-1], dim=1)


def _nvidia_head(projection: str, fuse: str, names: str) -> tuple[Rule, ...]:
    """Rules of NVIDIA's head; ``names`` are those of its other modules."""
    return (
        *rename_modules(
            _HEAD,
            "decode_head.",
            f"projections.{{stage}}={projection}.proj",
            to_ours=_as_convolution,
            to_theirs=_as_linear,
        ),
        *rename_modules(
            _HEAD,
            "decode_head.",
            f"fuse={fuse}",
            to_ours=_reverse_stages,
            to_theirs=_reverse_stages,
        ),
        *rename_modules(_HEAD, "decode_head.", names),
    )


# OpenMMLab: a stage is a list of the patch embedding, the blocks and the norm.
_MMLAB_STAGE = "[backbone.]layers.{stage}."
_MMLAB_BLOCK = _MMLAB_STAGE + "1.{block}."
_MMLAB_DECODER = """projections.{stage}=convs.{stage}.conv projections.{stage}.norm=convs.{stage}.bn
fuse=fusion_conv.conv fuse.norm=fusion_conv.bn"""

OPENMMLAB = NamingScheme(
    marks=(Template(_MMLAB_STAGE + "0.projection.{tensor}"),),
    rules=(
        *rename_modules(
            _STAGE, _MMLAB_STAGE, "patch_embed.proj=0.projection patch_embed.norm=0.norm norm=2"
        ),
        # PyTorch's attention has queries, keys and values in one tensor; keys and values are one
        # here, because they alone are reduced.
        *rename_modules(
            _BLOCK,
            _MMLAB_BLOCK,
            """attn.q,attn.kv*2=attn.attn.in_proj_{tensor} attn.proj=attn.attn.out_proj
            norm1 attn.sr attn.norm norm2 mlp.dwconv=ffn.layers.1""",
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
            f"{_MMLAB_DECODER} predictor=conv_seg",
        ),
        # SegFormer++'s pose estimation has the same decoder for heatmaps.
        *rename_modules(_POSE_HEAD, "head.", f"{_MMLAB_DECODER} predictor=final_layer"),
    ),
    container="state_dict",
)

# NVIDIA: parts of a stage have its number, from 1, in their own names.
NVIDIA = NamingScheme(
    marks=(Template("[backbone.]patch_embed{stage+1}.proj.{tensor}"),),
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
        *_nvidia_head(
            "linear_c{stage+1}",
            "linear_fuse.conv",
            "fuse.norm=linear_fuse.bn predictor=linear_pred",
        ),
    ),
    container="state_dict",
)

# Hugging Face: keys and values, one tensor here, are two.
HUGGINGFACE = NamingScheme(
    marks=(Template("[segformer.]encoder.patch_embeddings.{stage}.proj.{tensor}"),),
    rules=(
        *rename_modules(
            _STAGE,
            "[segformer.]encoder.",
            """patch_embed.proj=patch_embeddings.{stage}.proj
            patch_embed.norm=patch_embeddings.{stage}.layer_norm norm=layer_norm.{stage}""",
        ),
        *rename_modules(
            _BLOCK,
            "[segformer.]encoder.block.{stage}.{block}.",
            """norm1=layer_norm_1 attn.q=attention.self.query attn.proj=attention.output.dense
            attn.kv=attention.self.key,attention.self.value
            attn.sr=attention.self.sr attn.norm=attention.self.layer_norm
            norm2=layer_norm_2 mlp.fc1=mlp.dense1 mlp.dwconv=mlp.dwconv.dwconv
            mlp.fc2=mlp.dense2""",
        ),
        *_nvidia_head(
            "linear_c.{stage}", "linear_fuse", "fuse.norm=batch_norm predictor=classifier"
        ),
    ),
)
# As in memory since Transformers 5.
HUGGINGFACE_IN_MEMORY = NamingScheme(
    marks=(Template("[segformer.]stages.{stage}.patch_embeddings.proj.{tensor}"),),
    rules=(
        *rename_modules(
            _STAGE,
            "[segformer.]stages.{stage}.",
            """patch_embed.proj=patch_embeddings.proj patch_embed.norm=patch_embeddings.layer_norm
            norm=layer_norm""",
        ),
        *rename_modules(
            _BLOCK,
            "[segformer.]stages.{stage}.blocks.{block}.",
            """norm1=layernorm_before attn.q=attention.q_proj attn.proj=attention.o_proj
            attn.kv=attention.k_proj,attention.v_proj
            attn.sr=attention.sequence_reduction.sequence_reduction
            attn.norm=attention.sequence_reduction.layer_norm
            norm2=layernorm_after mlp.fc1 mlp.dwconv=mlp.dwconv.dwconv mlp.fc2""",
        ),
        *_nvidia_head(
            "linear_projections.{stage}",
            "linear_fuse",
            "fuse.norm=batch_norm predictor=classifier",
        ),
    ),
)
