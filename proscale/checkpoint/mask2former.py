"""Hugging Face's names of Mask2Former, with Swin or ResNet: those in its files, and those in memory
since Transformers 5, where Swin's differ.

Queries, keys and values are three tensors, but in the decoder's cross-attention.
"""

import torch

from proscale.checkpoint.imagenet import RGB, SWIN_BLOCK, SWIN_INDICES, resnet_rules
from proscale.checkpoint.rules import (
    Implied,
    NamingScheme,
    Rule,
    Template,
    concatenate,
    matching,
    rename,
    rename_modules,
)

_BACKBONE = "model.pixel_level_module.encoder."
_PIXELS, _OUR_PIXELS = "model.pixel_level_module.decoder.", "sem_seg_head.pixel_decoder."
_QUERIES, _PREDICTOR = "model.transformer_module.", "sem_seg_head.predictor."
_LAYER = _QUERIES + "decoder.layers.{layer}."


def _swin_rules(
    prefix: str, *, table: str, queries: str, keys: str, values: str, names: str
) -> tuple[Rule, ...]:
    """``table`` to ``values``: within the attention; ``names``: within a block."""
    stage = prefix + "encoder.layers.{stage}."
    block = stage + "blocks.{block}."
    return (
        *rename_modules(
            "backbone.patch_embed.", prefix + "embeddings.", "proj=patch_embeddings.projection norm"
        ),
        rename(
            SWIN_BLOCK + "attn.relative_position_bias_table",
            f"{block}attention.{table}.relative_position_bias_table",
        ),
        # One tensor here, as in Microsoft's Swin.
        concatenate(
            SWIN_BLOCK + "attn.qkv.{tensor}",
            *(f"{block}attention.{name}.{{tensor}}" for name in (queries, keys, values)),
        ),
        *rename_modules(SWIN_BLOCK, block, "norm1=layernorm_before norm2=layernorm_after " + names),
        *rename_modules(
            "backbone.layers.{stage}.downsample.", stage + "downsample.", "norm reduction"
        ),
        # The norms of the outputs, which Hugging Face counts from the stem.
        *rename_modules("backbone.", _BACKBONE, "norm{stage}=hidden_states_norms.stage{stage+1}"),
    )


_RESNET_LAYER = _BACKBONE + "encoder.stages.{stage}.layers.{block}."
_RESNET_RULES = resnet_rules(
    stem=_BACKBONE + "embedder.embedder.convolution",
    stem_norm=_BACKBONE + "embedder.embedder.normalization",
    conv=_RESNET_LAYER + "layer.{conv}.convolution",
    norm=_RESNET_LAYER + "layer.{conv}.normalization",
    shortcut=_RESNET_LAYER + "shortcut.convolution",
    shortcut_norm=_RESNET_LAYER + "shortcut.normalization",
)

_PIXEL_DECODER_RULES = (
    # Projections of the levels, and the feature pyramid on top of the encoder.
    *rename_modules(
        _OUR_PIXELS,
        _PIXELS,
        """input_proj.{level}.{part}=input_projections.{level}.{part}
        adapter_{level}=adapter_{level}.0 adapter_{level}.norm=adapter_{level}.1
        layer_{level}=layer_{level}.0 layer_{level}.norm=layer_{level}.1
        mask_features=mask_projection""",
    ),
    rename(_OUR_PIXELS + "transformer.level_embed", _PIXELS + "level_embed"),
    # The layers of deformable attention.
    *rename_modules(
        _OUR_PIXELS + "transformer.encoder.layers.{layer}.",
        _PIXELS + "encoder.layers.{layer}.",
        """self_attn.sampling_offsets self_attn.attention_weights self_attn.value_proj
        self_attn.output_proj norm1=self_attn_layer_norm linear1=fc1 linear2=fc2
        norm2=final_layer_norm""",
    ),
)

# Here the decoder keeps three lists of layers, by kind; there one, of layers with three parts.
_SELF_ATTENTION = _PREDICTOR + "transformer_self_attention_layers.{layer}."
_CROSS_ATTENTION = _PREDICTOR + "transformer_cross_attention_layers.{layer}."
_FEED_FORWARD = _PREDICTOR + "transformer_ffn_layers.{layer}."
_DECODER_RULES = (
    concatenate(
        _SELF_ATTENTION + "self_attn.in_proj_{tensor}",
        *(f"{_LAYER}self_attn.{i}_proj.{{tensor}}" for i in "qkv"),
    ),
    *rename_modules(_SELF_ATTENTION, _LAYER, "self_attn.out_proj norm=self_attn_layer_norm"),
    rename(
        _CROSS_ATTENTION + "multihead_attn.in_proj_{tensor}", _LAYER + "cross_attn.in_proj_{tensor}"
    ),
    *rename_modules(
        _CROSS_ATTENTION,
        _LAYER,
        "multihead_attn.out_proj=cross_attn.out_proj norm=cross_attn_layer_norm",
    ),
    *rename_modules(_FEED_FORWARD, _LAYER, "linear1=fc1 linear2=fc2 norm=final_layer_norm"),
    # The queries, and the heads on top of every layer.
    *rename_modules(
        _PREDICTOR,
        _QUERIES,
        """decoder_norm=decoder.layernorm query_feat=queries_features query_embed=queries_embedder
        level_embed mask_embed.layers.{layer}=decoder.mask_predictor.mask_embedder.{layer}.0""",
    ),
    # The class head, and the class loss's weights, which both have as a buffer.
    rename(_PREDICTOR + "class_embed.{tensor}", "class_predictor.{tensor}"),
    rename("criterion.empty_weight", "criterion.empty_weight"),
)

# The norm in front of Swin's classifier, which nothing reads.
_UNUSED_NORM = tuple(
    Implied(
        Template(f"{_BACKBONE}swin.layernorm.{tensor}"),
        Template(f"{_BACKBONE}hidden_states_norms.stage4.{tensor}"),
        make,
    )
    for tensor, make in (("weight", torch.ones_like), ("bias", torch.zeros_like))
)


def _scheme(mark: str, swin: tuple[Rule, ...], *other_marks: str) -> NamingScheme:
    return NamingScheme(
        mark=matching(_BACKBONE + mark, *other_marks),
        rules=(*swin, *_RESNET_RULES, *_PIXEL_DECODER_RULES, *_DECODER_RULES),
        settings=RGB,
        implied_ours=(SWIN_INDICES,),
        implied_theirs=_UNUSED_NORM,
    )


HUGGINGFACE = _scheme(
    "embeddings.patch_embeddings.projection.{tensor}",
    _swin_rules(
        _BACKBONE,
        table="self",
        queries="self.query",
        keys="self.key",
        values="self.value",
        names="attn.proj=attention.output.dense mlp.fc1=intermediate.dense mlp.fc2=output.dense",
    ),
    # ResNet's, whose names are the same in memory.
    _BACKBONE + "embedder.embedder.convolution.{tensor}",
)
HUGGINGFACE_IN_MEMORY = _scheme(
    "swin.embeddings.patch_embeddings.projection.{tensor}",
    _swin_rules(
        _BACKBONE + "swin.",
        table="relative_position_bias",
        queries="q_proj",
        keys="k_proj",
        values="v_proj",
        names="attn.proj=attention.o_proj mlp.fc1 mlp.fc2",
    ),
)
