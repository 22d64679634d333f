"""Names of Deformable DETR and DINO in their authors' files, and of the former at Hugging Face.

They number levels from the finest, here they are numbered from the coarsest: projections change
their places, and so do the rows of weights that are by level. All published models have 4 levels,
8 heads and 4 points; files of others are refused, for heads and levels cannot be told apart.
"""

from collections.abc import Callable

from torch import Tensor

from proscale.checkpoint.imagenet import RGB, SWIN_BLOCK, SWIN_INDEX, resnet_rules, swin_rules
from proscale.checkpoint.mask2former import huggingface_resnet_rules
from proscale.checkpoint.rules import Implied, NamingScheme, Rule, Template, rename, rename_modules

HEAD = "detection_head."
_TRANSFORMER = HEAD + "transformer."
LEVELS, HEADS, POINTS = 4, 8, 4
# DINO's files have the heads that all layers share under the numbers of its layers.
_DINO_LAYERS = 6


def _flip(numbers: int) -> Callable[[Tensor], Tensor]:
    """Reverses the levels of rows (M, L, P, ``numbers``); its own inverse."""

    def flip(tensor: Tensor) -> Tensor:
        expected = HEADS * LEVELS * POINTS * numbers
        if len(tensor) != expected:
            raise ValueError(
                f"{len(tensor)} rows of {HEADS} heads and {POINTS} points: expected {expected}, of "
                f"{LEVELS} levels"
            )
        return tensor.unflatten(0, (HEADS, LEVELS, -1)).flip(1).flatten(0, 2)

    return flip


def _deformable_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules of a module of deformable attention by its prefixes."""
    offsets, weights = _flip(2), _flip(1)
    return (
        *rename_modules(ours, theirs, "sampling_offsets", to_ours=offsets, to_theirs=offsets),
        *rename_modules(ours, theirs, "attention_weights", to_ours=weights, to_theirs=weights),
        *rename_modules(ours, theirs, "value_proj output_proj"),
    )


def _levels(projection: str, embedding: str) -> tuple[Rule, ...]:
    """Rules of the projections, by their prefix, and of the levels' embedding."""
    names = (Template(_TRANSFORMER + "level_embed"),), (Template(embedding),)
    embeddings = Rule(*names, to_ours=_reversed, to_theirs=_reversed)
    return (
        embeddings,
        *(
            rule
            for level in range(LEVELS)
            for rule in rename_modules(
                f"{HEAD}input_proj.{level}.", f"{projection}{LEVELS - 1 - level}.", "{part}"
            )
        ),
    )


def _reversed(levels: Tensor) -> Tensor:
    return levels.flip(0)


_LAYER = "transformer.encoder.layers.{layer}."
_DECODER_LAYER = "transformer.decoder.layers.{layer}."
_AUTHORS_RULES = (
    # ResNet by torchvision's names, or Swin by Microsoft's.
    *resnet_rules("backbone.0.body."),
    *swin_rules("backbone.0."),
    *rename_modules("backbone.", "backbone.0.", "norm{stage}"),
    rename(SWIN_BLOCK + SWIN_INDEX, SWIN_BLOCK.replace("backbone.", "backbone.0.") + SWIN_INDEX),
    *_levels("input_proj.", "transformer.level_embed"),
    *_deformable_attention(HEAD + _LAYER + "self_attn.", _LAYER + "self_attn."),
    *rename_modules(HEAD + _LAYER, _LAYER, "norm1 linear1 linear2 norm2"),
    *_deformable_attention(HEAD + _DECODER_LAYER + "cross_attn.", _DECODER_LAYER + "cross_attn."),
    *rename_modules(
        HEAD + _DECODER_LAYER,
        _DECODER_LAYER,
        "self_attn.in_proj_{tensor} self_attn.out_proj norm1 norm2 linear1 linear2 norm3",
    ),
    *rename_modules(_TRANSFORMER, "transformer.", "enc_output enc_output_norm"),
)
# Heads of the layers, which the decoder has, too.
_PREFIXES = "", "transformer.decoder."
_COPIES = "class_embed.{layer}.{tensor}", "bbox_embed.{layer}.layers.{part}.{tensor}"

DEFORMABLE_DETR = NamingScheme(
    # Of the two-stage form, and of learned queries.
    marks=(
        Template("transformer.pos_trans.{tensor}"),
        Template("transformer.reference_points.{tensor}"),
    ),
    rules=(
        *_AUTHORS_RULES,
        *rename_modules(_TRANSFORMER, "transformer.", "pos_trans pos_trans_norm reference_points"),
        *rename_modules(HEAD, "", "query_embed"),
        *(rename(HEAD + name, prefix + name) for name in _COPIES for prefix in _PREFIXES),
    ),
    container="model",
    settings=RGB,
)
DINO = NamingScheme(
    marks=(Template("transformer.tgt_embed.{tensor}"),),
    rules=(
        *_AUTHORS_RULES,
        *rename_modules(
            _TRANSFORMER,
            "transformer.",
            """enc_out_class_embed enc_out_bbox_embed.layers.{part} tgt_embed decoder.norm
            decoder.ref_point_head.layers.{part}""",
        ),
        *rename_modules(
            HEAD,
            "",
            """label_enc class_embed=class_embed.0
            bbox_embed.layers.{part}=bbox_embed.0.layers.{part}""",
        ),
    ),
    container="model",
    settings=RGB,
    implied_theirs=tuple(
        Implied(
            Template(prefix + name.replace("{layer}", str(layer))),
            Template(name.replace("{layer}", "0")),
            Tensor.clone,
        )
        for name in _COPIES
        for prefix in _PREFIXES
        for layer in range(_DINO_LAYERS)
        if prefix or layer
    ),
)


def _huggingface(backbone: tuple[Rule, ...], mark: str, linear: str, output: str) -> NamingScheme:
    """A scheme from the backbone's rules, one of its names, the prefix of a layer's linear layers,
    and the name of the output projection of self-attention."""
    layer, decoder_layer = "model.encoder.layers.{layer}.", "model.decoder.layers.{layer}."
    ours = HEAD + _DECODER_LAYER
    linears = f"linear1={linear}fc1 linear2={linear}fc2"
    return NamingScheme(
        marks=(Template(mark),),
        rules=(
            *backbone,
            *_levels("model.input_proj.", "model.level_embed"),
            *_deformable_attention(HEAD + _LAYER + "self_attn.", layer + "self_attn."),
            *rename_modules(
                HEAD + _LAYER, layer, f"norm1=self_attn_layer_norm {linears} norm2=final_layer_norm"
            ),
            *_deformable_attention(ours + "cross_attn.", decoder_layer + "encoder_attn."),
            *rename_modules(
                ours,
                decoder_layer,
                f"""self_attn.in_proj_{{tensor}}=self_attn.q_proj,self_attn.k_proj,self_attn.v_proj
                self_attn.out_proj=self_attn.{output} norm1=encoder_attn_layer_norm {linears}
                norm2=self_attn_layer_norm norm3=final_layer_norm""",
            ),
            *rename_modules(
                _TRANSFORMER,
                "model.",
                "enc_output enc_output_norm pos_trans pos_trans_norm reference_points",
            ),
            *rename_modules(HEAD, "", "query_embed=model.query_position_embeddings"),
            # Files have the heads of the layers once, under either name.
            *(
                rename(HEAD + name, prefix + name)
                for name in _COPIES
                for prefix in ("", "model.decoder.")
            ),
        ),
        settings=RGB,
    )


_IN_FILE, _IN_MEMORY = "model.backbone.conv_encoder.model.", "model.backbone.model."
_STEM = "embedder.embedder.convolution.{tensor}"
HUGGINGFACE = _huggingface(
    huggingface_resnet_rules(_IN_FILE), _IN_FILE + _STEM, linear="", output="out_proj"
)
# The published files have a ResNet of timm, whose names are torchvision's.
HUGGINGFACE_TIMM = _huggingface(
    resnet_rules(_IN_FILE), _IN_FILE + "conv1.{tensor}", linear="", output="out_proj"
)
# As in memory since Transformers 5.
HUGGINGFACE_IN_MEMORY = _huggingface(
    huggingface_resnet_rules(_IN_MEMORY), _IN_MEMORY + _STEM, linear="mlp.", output="o_proj"
)
