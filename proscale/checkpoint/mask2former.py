"""Hugging Face's names of Mask2Former, with Swin or ResNet: those in its files, and those in memory
since Transformers 5, where Swin's differ.

Queries, keys and values are three tensors, but in the decoder's cross-attention.
"""

import torch

from proscale.checkpoint.imagenet import RESNET_BLOCK, RGB, SWIN_BLOCK, SWIN_INDICES
from proscale.checkpoint.rules import Implied, NamingScheme, Rule, Template, rename, rename_modules

_BACKBONE = "model.pixel_level_module.encoder."
_PIXELS, _OUR_PIXELS = "model.pixel_level_module.decoder.", "sem_seg_head.pixel_decoder."
_QUERIES, _PREDICTOR = "model.transformer_module.", "sem_seg_head.predictor."


def huggingface_resnet_rules(prefix: str) -> tuple[Rule, ...]:
    """Rules of a ResNet with Hugging Face's names behind ``prefix``."""
    return (
        *rename_modules(
            "backbone.stem.",
            prefix + "embedder.embedder.",
            "conv1=convolution conv1.norm=normalization",
        ),
        *rename_modules(
            RESNET_BLOCK,
            prefix + "encoder.stages.{stage}.layers.{block}.",
            """conv{conv+1}=layer.{conv}.convolution conv{conv+1}.norm=layer.{conv}.normalization
            shortcut=shortcut.convolution shortcut.norm=shortcut.normalization""",
        ),
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
_LAYER = _QUERIES + "decoder.layers.{layer}."
_DECODER_RULES = (
    *rename_modules(
        _PREDICTOR + "transformer_self_attention_layers.{layer}.",
        _LAYER,
        """self_attn.in_proj_{tensor}=self_attn.q_proj,self_attn.k_proj,self_attn.v_proj
        self_attn.out_proj norm=self_attn_layer_norm""",
    ),
    *rename_modules(
        _PREDICTOR + "transformer_cross_attention_layers.{layer}.",
        _LAYER,
        """multihead_attn.in_proj_{tensor}=cross_attn.in_proj_{tensor}
        multihead_attn.out_proj=cross_attn.out_proj norm=cross_attn_layer_norm""",
    ),
    *rename_modules(
        _PREDICTOR + "transformer_ffn_layers.{layer}.",
        _LAYER,
        "linear1=fc1 linear2=fc2 norm=final_layer_norm",
    ),
    # The queries, and the heads on top of every layer.
    *rename_modules(
        _PREDICTOR,
        _QUERIES,
        """decoder_norm=decoder.layernorm query_feat=queries_features query_embed=queries_embedder
        level_embed mask_embed.layers.{layer}=decoder.mask_predictor.mask_embedder.{layer}.0""",
    ),
    # The class head, and the class loss's weights, which both have as a buffer.
    *rename_modules(_PREDICTOR, "", "class_embed=class_predictor"),
    rename("criterion.empty_weight", "criterion.empty_weight"),
)


def _scheme(prefix: str, table: str, names: str) -> NamingScheme:
    """A scheme from the prefix of Swin's names, and what differs within a block: the module that
    has the bias table, and the names of others."""
    stage = prefix + "encoder.layers.{stage}."
    block = stage + "blocks.{block}."
    return NamingScheme(
        # Swin's, and ResNet's, which are the same in files and in memory.
        marks=(
            Template(prefix + "embeddings.patch_embeddings.projection.{tensor}"),
            Template(_BACKBONE + "embedder.embedder.convolution.{tensor}"),
        ),
        rules=(
            *rename_modules(
                "backbone.patch_embed.",
                prefix + "embeddings.",
                "proj=patch_embeddings.projection norm",
            ),
            rename(
                SWIN_BLOCK + "attn.relative_position_bias_table",
                f"{block}{table}.relative_position_bias_table",
            ),
            *rename_modules(
                SWIN_BLOCK, block, "norm1=layernorm_before norm2=layernorm_after " + names
            ),
            *rename_modules(
                "backbone.layers.{stage}.downsample.", stage + "downsample.", "norm reduction"
            ),
            # The norms of the outputs, which Hugging Face counts from the stem.
            *rename_modules(
                "backbone.", _BACKBONE, "norm{stage}=hidden_states_norms.stage{stage+1}"
            ),
            *huggingface_resnet_rules(_BACKBONE),
            *_PIXEL_DECODER_RULES,
            *_DECODER_RULES,
        ),
        settings=RGB,
        implied_ours=(SWIN_INDICES,),
        # The norm in front of Swin's classifier, which nothing reads.
        implied_theirs=tuple(
            Implied(
                Template(f"{_BACKBONE}swin.layernorm.{tensor}"),
                Template(f"{_BACKBONE}hidden_states_norms.stage4.{tensor}"),
                make,
            )
            for tensor, make in (("weight", torch.ones_like), ("bias", torch.zeros_like))
        ),
    )


# Queries, keys and values are one tensor here, as in Microsoft's Swin.
HUGGINGFACE = _scheme(
    _BACKBONE,
    "attention.self",
    """attn.qkv=attention.self.query,attention.self.key,attention.self.value
    attn.proj=attention.output.dense mlp.fc1=intermediate.dense mlp.fc2=output.dense""",
)
HUGGINGFACE_IN_MEMORY = _scheme(
    _BACKBONE + "swin.",
    "attention.relative_position_bias",
    """attn.qkv=attention.q_proj,attention.k_proj,attention.v_proj attn.proj=attention.o_proj
    mlp.fc1 mlp.fc2""",
)
