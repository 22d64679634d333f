"""Names of RT-DETR's hybrid encoder: in its authors' PyTorch files, and at Hugging Face.

RT-DETR is a detector: its backbone, a ResNet-vd, and its decoder have no counterpart here, the
hybrid encoder and the projections of its levels are RT-M2F's. RT-DETR numbers the projections from
the finest level, here they are numbered from the coarsest.
"""

from proscale.checkpoint.rules import NamingScheme, Rule, Template, rename_modules

_DECODER = "sem_seg_head.pixel_decoder."
_HYBRID = _DECODER + "hybrid_encoder."
_AIFI = _HYBRID + "encoder.{level}.layers.{layer}."

# Top-down and bottom-up path: the same names in all.
_FUSION = """lateral_convs.{step}.conv lateral_convs.{step}.norm
    downsample_convs.{step}.conv downsample_convs.{step}.norm
    fpn_blocks.{step}.conv{conv}.conv fpn_blocks.{step}.conv{conv}.norm
    pan_blocks.{step}.conv{conv}.conv pan_blocks.{step}.conv{conv}.norm
    fpn_blocks.{step}.bottlenecks.{block}.conv{conv}.conv
    fpn_blocks.{step}.bottlenecks.{block}.conv{conv}.norm
    pan_blocks.{step}.bottlenecks.{block}.conv{conv}.conv
    pan_blocks.{step}.bottlenecks.{block}.conv{conv}.norm"""


def _scheme(
    projection: str, encoder: str, attention: str, linear1: str, names: str
) -> NamingScheme:
    """A scheme from the prefixes of the projections, of the encoder, and behind that of its
    attention; the name of a layer's first linear layer, which tells the schemes apart; and those of
    the layer's other modules, as :func:`rename_modules` takes them."""
    layer = f"{encoder}{attention}.{{level}}.layers.{{layer}}."
    projections: tuple[Rule, ...] = tuple(
        rule
        for level in range(3)
        for rule in rename_modules(
            f"{_DECODER}input_proj.{level}.", f"{projection}{2 - level}.", "{part}"
        )
    )
    return NamingScheme(
        marks=(Template(f"{layer}{linear1}.{{tensor}}"),),
        rules=(
            *projections,
            *rename_modules(_HYBRID, encoder, _FUSION),
            *rename_modules(_AIFI, layer, f"linear1={linear1} {names}"),
        ),
    )


RT_DETR = _scheme(
    "encoder.input_proj.",
    "encoder.",
    "encoder",
    "linear1",
    "self_attn.in_proj_{tensor} self_attn.out_proj linear2 norm1 norm2",
)
_IN_PROJ = "self_attn.in_proj_{tensor}=self_attn.q_proj,self_attn.k_proj,self_attn.v_proj"
_NORMS = "norm1=self_attn_layer_norm norm2=final_layer_norm"
HUGGINGFACE = _scheme(
    "[model.]encoder_input_proj.",
    "[model.]encoder.",
    "encoder",
    "fc1",
    f"{_IN_PROJ} self_attn.out_proj linear2=fc2 {_NORMS}",
)
# As in memory since Transformers 5.
HUGGINGFACE_IN_MEMORY = _scheme(
    "[model.]encoder_input_proj.",
    "[model.]encoder.",
    "aifi",
    "mlp.fc1",
    f"{_IN_PROJ} self_attn.out_proj=self_attn.o_proj linear2=mlp.fc2 {_NORMS}",
)
