"""Hugging Face's names for Mask2Former, with Swin or ResNet: those in its files, and those in
memory since Transformers 5, where Swin's differ.

Queries, keys and values are three tensors, but in the decoder's cross-attention.
"""

import torch

from proscale.checkpoint.imagenet import RGB, SWIN_BLOCK, SWIN_INDICES, resnet_rules
from proscale.checkpoint.rules import Implied, Part, Rule, Scheme, rename

_BACKBONE = "model.pixel_level_module.encoder."
_PIXELS, _OUR_PIXELS = "model.pixel_level_module.decoder.", "sem_seg_head.pixel_decoder."
_ENCODER_LAYER = _PIXELS + "encoder.layers.{layer}."
_OUR_ENCODER_LAYER = _OUR_PIXELS + "transformer.encoder.layers.{layer}."
_QUERIES, _PREDICTOR = "model.transformer_module.", "sem_seg_head.predictor."
_LAYER = _QUERIES + "decoder.layers.{layer}."
_NORM_OF_CLASSIFIER = _BACKBONE + "swin.layernorm."


def _split(ours: str, *theirs: str) -> Rule:
    return Rule(ours=(Part(ours),), theirs=tuple(Part(name + ".{tensor}") for name in theirs))


def _swin_rules(prefix: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """``names`` within a block by our own; ``q``, ``k`` and ``v`` by those letters."""
    layer = prefix + "encoder.layers.{stage}."
    block = layer + "blocks.{block}."
    return (
        rename(
            "backbone.patch_embed.proj.{tensor}",
            prefix + "embeddings.patch_embeddings.projection.{tensor}",
        ),
        rename("backbone.patch_embed.norm.{tensor}", prefix + "embeddings.norm.{tensor}"),
        rename(
            SWIN_BLOCK + "attn.relative_position_bias_table",
            f"{block}attention.{names['table']}.relative_position_bias_table",
        ),
        _split(SWIN_BLOCK + "attn.qkv.{tensor}", *(f"{block}attention.{names[i]}" for i in "qkv")),
        rename(SWIN_BLOCK + "attn.proj.{tensor}", f"{block}attention.{names['proj']}.{{tensor}}"),
        rename(SWIN_BLOCK + "norm1.{tensor}", block + "layernorm_before.{tensor}"),
        rename(SWIN_BLOCK + "norm2.{tensor}", block + "layernorm_after.{tensor}"),
        rename(SWIN_BLOCK + "mlp.fc1.{tensor}", f"{block}{names['fc1']}.{{tensor}}"),
        rename(SWIN_BLOCK + "mlp.fc2.{tensor}", f"{block}{names['fc2']}.{{tensor}}"),
        *(
            rename(
                f"backbone.layers.{{stage}}.downsample.{part}.{{tensor}}",
                f"{layer}downsample.{part}.{{tensor}}",
            )
            for part in ("norm", "reduction")
        ),
        rename(
            "backbone.norm{stage}.{tensor}",
            _BACKBONE + "hidden_states_norms.stage{stage+1}.{tensor}",
        ),
    )


_RESNET_RULES = resnet_rules(
    stem=_BACKBONE + "embedder.embedder.convolution",
    stem_norm=_BACKBONE + "embedder.embedder.normalization",
    conv=_BACKBONE + "encoder.stages.{stage}.layers.{block}.layer.{conv}.convolution",
    norm=_BACKBONE + "encoder.stages.{stage}.layers.{block}.layer.{conv}.normalization",
    shortcut=_BACKBONE + "encoder.stages.{stage}.layers.{block}.shortcut.convolution",
    shortcut_norm=_BACKBONE + "encoder.stages.{stage}.layers.{block}.shortcut.normalization",
)

_PIXEL_DECODER_RULES = (
    rename(
        _OUR_PIXELS + "input_proj.{level}.{part}.{tensor}",
        _PIXELS + "input_projections.{level}.{part}.{tensor}",
    ),
    rename(_OUR_PIXELS + "transformer.level_embed", _PIXELS + "level_embed"),
    *(
        rename(f"{_OUR_ENCODER_LAYER}{ours}.{{tensor}}", f"{_ENCODER_LAYER}{theirs}.{{tensor}}")
        for ours, theirs in (
            ("self_attn.sampling_offsets", "self_attn.sampling_offsets"),
            ("self_attn.attention_weights", "self_attn.attention_weights"),
            ("self_attn.value_proj", "self_attn.value_proj"),
            ("self_attn.output_proj", "self_attn.output_proj"),
            ("norm1", "self_attn_layer_norm"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm2", "final_layer_norm"),
        )
    ),
    rename(_OUR_PIXELS + "adapter_{level}.{tensor}", _PIXELS + "adapter_{level}.0.{tensor}"),
    rename(_OUR_PIXELS + "adapter_{level}.norm.{tensor}", _PIXELS + "adapter_{level}.1.{tensor}"),
    rename(_OUR_PIXELS + "layer_{level}.{tensor}", _PIXELS + "layer_{level}.0.{tensor}"),
    rename(_OUR_PIXELS + "layer_{level}.norm.{tensor}", _PIXELS + "layer_{level}.1.{tensor}"),
    rename(_OUR_PIXELS + "mask_features.{tensor}", _PIXELS + "mask_projection.{tensor}"),
)

_SELF_ATTENTION = _PREDICTOR + "transformer_self_attention_layers.{layer}."
_CROSS_ATTENTION = _PREDICTOR + "transformer_cross_attention_layers.{layer}."
_FEED_FORWARD = _PREDICTOR + "transformer_ffn_layers.{layer}."
_DECODER_RULES = (
    _split(
        _SELF_ATTENTION + "self_attn.in_proj_{tensor}",
        *(f"{_LAYER}self_attn.{i}_proj" for i in "qkv"),
    ),
    rename(_SELF_ATTENTION + "self_attn.out_proj.{tensor}", _LAYER + "self_attn.out_proj.{tensor}"),
    rename(_SELF_ATTENTION + "norm.{tensor}", _LAYER + "self_attn_layer_norm.{tensor}"),
    rename(
        _CROSS_ATTENTION + "multihead_attn.in_proj_{tensor}",
        _LAYER + "cross_attn.in_proj_{tensor}",
    ),
    rename(
        _CROSS_ATTENTION + "multihead_attn.out_proj.{tensor}",
        _LAYER + "cross_attn.out_proj.{tensor}",
    ),
    rename(_CROSS_ATTENTION + "norm.{tensor}", _LAYER + "cross_attn_layer_norm.{tensor}"),
    rename(_FEED_FORWARD + "linear1.{tensor}", _LAYER + "fc1.{tensor}"),
    rename(_FEED_FORWARD + "linear2.{tensor}", _LAYER + "fc2.{tensor}"),
    rename(_FEED_FORWARD + "norm.{tensor}", _LAYER + "final_layer_norm.{tensor}"),
    rename(_PREDICTOR + "decoder_norm.{tensor}", _QUERIES + "decoder.layernorm.{tensor}"),
    rename(_PREDICTOR + "query_feat.{tensor}", _QUERIES + "queries_features.{tensor}"),
    rename(_PREDICTOR + "query_embed.{tensor}", _QUERIES + "queries_embedder.{tensor}"),
    rename(_PREDICTOR + "level_embed.{tensor}", _QUERIES + "level_embed.{tensor}"),
    rename(
        _PREDICTOR + "mask_embed.layers.{layer}.{tensor}",
        _QUERIES + "decoder.mask_predictor.mask_embedder.{layer}.0.{tensor}",
    ),
    rename(_PREDICTOR + "class_embed.{tensor}", "class_predictor.{tensor}"),
    rename("criterion.empty_weight", "criterion.empty_weight"),
)


def _scheme(marks: tuple[str, ...], swin: tuple[Rule, ...]) -> Scheme:
    return Scheme(
        marks=marks,
        rules=(*swin, *_RESNET_RULES, *_PIXEL_DECODER_RULES, *_DECODER_RULES),
        settings=RGB,
        implied_ours=(SWIN_INDICES,),
        # Which nothing reads.
        implied_theirs=tuple(
            Implied(
                _NORM_OF_CLASSIFIER + tensor,
                f"{_BACKBONE}hidden_states_norms.stage4.{tensor}",
                make,
            )
            for tensor, make in (("weight", torch.ones_like), ("bias", torch.zeros_like))
        ),
    )


SCHEME = _scheme(
    (
        _BACKBONE + "embeddings.patch_embeddings.projection.{tensor}",
        _BACKBONE + "embedder.embedder.convolution.{tensor}",
    ),
    _swin_rules(
        _BACKBONE,
        {
            "table": "self",
            "q": "self.query",
            "k": "self.key",
            "v": "self.value",
            "proj": "output.dense",
            "fc1": "intermediate.dense",
            "fc2": "output.dense",
        },
    ),
)

IN_MEMORY = _scheme(
    (_BACKBONE + "swin.embeddings.patch_embeddings.projection.{tensor}",),
    _swin_rules(
        _BACKBONE + "swin.",
        {
            "table": "relative_position_bias",
            "q": "q_proj",
            "k": "k_proj",
            "v": "v_proj",
            "proj": "o_proj",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        },
    ),
)
