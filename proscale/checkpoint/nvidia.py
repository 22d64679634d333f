"""NVIDIA's names for SegFormer, those of its first release: stages counted from 1, and the head's
fusion over the stages from the coarsest to the finest."""

from proscale.checkpoint.rules import (
    Rule,
    Scheme,
    as_convolution,
    as_linear,
    rename,
    reverse_stages,
)

_OURS = "backbone.stages.{stage}."
_BLOCK = _OURS + "blocks.{block}."
_LAYER = "[backbone.]block{stage+1}.{block}."


def head_rules(*, projection: str, fuse: str, norm: str, classifier: str) -> tuple[Rule, ...]:
    """Rules of the head with linear projections, from its templates."""
    return (
        rename(
            "sem_seg_head.projections.{stage}.{tensor}",
            projection,
            to_ours=as_convolution,
            to_theirs=as_linear,
        ),
        rename(
            "sem_seg_head.fuse.{tensor}", fuse, to_ours=reverse_stages, to_theirs=reverse_stages
        ),
        rename("sem_seg_head.fuse.norm.{tensor}", norm),
        rename("sem_seg_head.predictor.{tensor}", classifier),
    )


SCHEME = Scheme(
    marks=("[backbone.]patch_embed{stage+1}.proj.{tensor}",),
    rules=(
        rename(
            _OURS + "patch_embed.proj.{tensor}", "[backbone.]patch_embed{stage+1}.proj.{tensor}"
        ),
        rename(
            _OURS + "patch_embed.norm.{tensor}", "[backbone.]patch_embed{stage+1}.norm.{tensor}"
        ),
        *(
            rename(_BLOCK + name, _LAYER + name)
            for name in (
                "norm1.{tensor}",
                "attn.q.{tensor}",
                "attn.kv.{tensor}",
                "attn.proj.{tensor}",
                "attn.sr.{tensor}",
                "attn.norm.{tensor}",
                "norm2.{tensor}",
                "mlp.fc1.{tensor}",
                "mlp.fc2.{tensor}",
            )
        ),
        rename(_BLOCK + "mlp.dwconv.{tensor}", _LAYER + "mlp.dwconv.dwconv.{tensor}"),
        rename(_OURS + "norm.{tensor}", "[backbone.]norm{stage+1}.{tensor}"),
        *head_rules(
            projection="decode_head.linear_c{stage+1}.proj.{tensor}",
            fuse="decode_head.linear_fuse.conv.{tensor}",
            norm="decode_head.linear_fuse.bn.{tensor}",
            classifier="decode_head.linear_pred.{tensor}",
        ),
    ),
    container="state_dict",
)
