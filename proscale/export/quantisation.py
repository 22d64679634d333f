"""Dynamic quantisation of an ONNX file: weights of linear layers and convolutions in eight bits.

Activations are quantised as they come, by their range in each call, so that no calibration is
needed.
"""

import logging
from pathlib import Path

from proscale.export.onnx_export import METADATA


def quantise(source: Path, target: Path) -> None:
    """Write ``source`` with eight-bit weights, a scale each, and its metadata to ``target``."""
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Weights that a model makes of others become constants, which alone can be quantised.
    prepared = target.with_suffix(".prepared.onnx")
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(prepared)
    InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    logging.disable(logging.WARNING)  # it advises a preparation, which was just done
    try:
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            weight_type=QuantType.QUInt8,  # onnxruntime's integer convolution takes no other
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink()
    model = onnx.load(target)
    (metadata,) = (
        entry.value for entry in onnx.load(source).metadata_props if entry.key == METADATA
    )
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.save(model, target)
