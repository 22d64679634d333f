"""Hugging Face's names for SegFormer: those in its files, and those in memory since Transformers 5.

Queries, keys and values are three tensors. The head is NVIDIA's.
"""

from proscale.checkpoint.nvidia import head_rules
from proscale.checkpoint.rules import Part, Rule, Scheme, rename

_OURS = "backbone.stages.{stage}."
_BLOCK = _OURS + "blocks.{block}."


def _scheme(
    *, embedding: str, block: str, norm: str, names: dict[str, str], projections: str
) -> Scheme:
    """Templates of a stage's parts; ``names`` within a block by our own."""
    renamed = (name for name in names if name not in ("keys", "values"))
    return Scheme(
        marks=(embedding + "proj.{tensor}",),
        rules=(
            rename(_OURS + "patch_embed.proj.{tensor}", embedding + "proj.{tensor}"),
            rename(_OURS + "patch_embed.norm.{tensor}", embedding + "layer_norm.{tensor}"),
            *(
                rename(f"{_BLOCK}{name}.{{tensor}}", f"{block}{names[name]}.{{tensor}}")
                for name in renamed
            ),
            Rule(
                ours=(Part(_BLOCK + "attn.kv.{tensor}"),),
                theirs=(
                    Part(f"{block}{names['keys']}.{{tensor}}"),
                    Part(f"{block}{names['values']}.{{tensor}}"),
                ),
            ),
            rename(_OURS + "norm.{tensor}", norm + ".{tensor}"),
            *head_rules(
                projection=f"decode_head.{projections}.{{stage}}.proj.{{tensor}}",
                fuse="decode_head.linear_fuse.{tensor}",
                norm="decode_head.batch_norm.{tensor}",
                classifier="decode_head.classifier.{tensor}",
            ),
        ),
    )


SCHEME = _scheme(
    embedding="[segformer.]encoder.patch_embeddings.{stage}.",
    block="[segformer.]encoder.block.{stage}.{block}.",
    norm="[segformer.]encoder.layer_norm.{stage}",
    names={
        "norm1": "layer_norm_1",
        "attn.q": "attention.self.query",
        "keys": "attention.self.key",
        "values": "attention.self.value",
        "attn.proj": "attention.output.dense",
        "attn.sr": "attention.self.sr",
        "attn.norm": "attention.self.layer_norm",
        "norm2": "layer_norm_2",
        "mlp.fc1": "mlp.dense1",
        "mlp.dwconv": "mlp.dwconv.dwconv",
        "mlp.fc2": "mlp.dense2",
    },
    projections="linear_c",
)

IN_MEMORY = _scheme(
    embedding="[segformer.]stages.{stage}.patch_embeddings.",
    block="[segformer.]stages.{stage}.blocks.{block}.",
    norm="[segformer.]stages.{stage}.layer_norm",
    names={
        "norm1": "layernorm_before",
        "attn.q": "attention.q_proj",
        "keys": "attention.k_proj",
        "values": "attention.v_proj",
        "attn.proj": "attention.o_proj",
        "attn.sr": "attention.sequence_reduction.sequence_reduction",
        "attn.norm": "attention.sequence_reduction.layer_norm",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.dwconv": "mlp.dwconv.dwconv",
        "mlp.fc2": "mlp.fc2",
    },
    projections="linear_projections",
)
