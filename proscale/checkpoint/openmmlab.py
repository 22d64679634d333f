"""OpenMMLab's names for SegFormer, which SegFormer++ has, too: fused queries, keys and values, and
1×1 convolutions for the feed-forward layers."""

from proscale.checkpoint.rules import (
    Part,
    Rule,
    Scheme,
    as_convolution,
    as_linear,
    rename,
)

_OURS = "backbone.stages.{stage}."
_THEIRS = "[backbone.]layers.{stage}."
_BLOCK = _OURS + "blocks.{block}."
_LAYER = _THEIRS + "1.{block}."

SCHEME = Scheme(
    marks=(_THEIRS + "0.projection.{tensor}",),
    rules=(
        rename(_OURS + "patch_embed.proj.{tensor}", _THEIRS + "0.projection.{tensor}"),
        rename(_OURS + "patch_embed.norm.{tensor}", _THEIRS + "0.norm.{tensor}"),
        rename(_BLOCK + "norm1.{tensor}", _LAYER + "norm1.{tensor}"),
        Rule(
            ours=(Part(_BLOCK + "attn.q.{tensor}"), Part(_BLOCK + "attn.kv.{tensor}", share=2)),
            theirs=(Part(_LAYER + "attn.attn.in_proj_{tensor}"),),
        ),
        rename(_BLOCK + "attn.proj.{tensor}", _LAYER + "attn.attn.out_proj.{tensor}"),
        rename(_BLOCK + "attn.sr.{tensor}", _LAYER + "attn.sr.{tensor}"),
        rename(_BLOCK + "attn.norm.{tensor}", _LAYER + "attn.norm.{tensor}"),
        rename(_BLOCK + "norm2.{tensor}", _LAYER + "norm2.{tensor}"),
        rename(
            _BLOCK + "mlp.fc1.{tensor}",
            _LAYER + "ffn.layers.0.{tensor}",
            to_ours=as_linear,
            to_theirs=as_convolution,
        ),
        rename(_BLOCK + "mlp.dwconv.{tensor}", _LAYER + "ffn.layers.1.{tensor}"),
        rename(
            _BLOCK + "mlp.fc2.{tensor}",
            _LAYER + "ffn.layers.4.{tensor}",
            to_ours=as_linear,
            to_theirs=as_convolution,
        ),
        rename(_OURS + "norm.{tensor}", _THEIRS + "2.{tensor}"),
        rename(
            "sem_seg_head.projections.{stage}.{tensor}", "decode_head.convs.{stage}.conv.{tensor}"
        ),
        rename(
            "sem_seg_head.projections.{stage}.norm.{tensor}",
            "decode_head.convs.{stage}.bn.{tensor}",
        ),
        rename("sem_seg_head.fuse.{tensor}", "decode_head.fusion_conv.conv.{tensor}"),
        rename("sem_seg_head.fuse.norm.{tensor}", "decode_head.fusion_conv.bn.{tensor}"),
        rename("sem_seg_head.predictor.{tensor}", "decode_head.conv_seg.{tensor}"),
    ),
    container="state_dict",
)
