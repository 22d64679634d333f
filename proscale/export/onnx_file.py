"""ONNX files: written from an exported program, quantised, and run by onnxruntime."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from proscale.errors import ExportError
from proscale.export.torch_file import exporting

OPSET = 20
"""GridSample is there from 16, with the present names of its modes from 20."""
INPUT = "images"
METADATA = "proscale"
"""The entry of ``metadata_props`` that holds the metadata."""


def require_packages() -> None:
    """
    Raises:
        ExportError: a package of the extra ``export`` is not installed.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format onnx needs {', '.join(missing)}: run pip install 'proscale[export]'"
        )


def write_onnx(program: ExportedProgram, outputs: Sequence[str], file: Path, metadata: str) -> None:
    """Write ``program`` as ONNX with these names of its outputs; the input is :data:`INPUT`."""
    # The program has symbolic sizes already; no example is run again.
    with exporting(), _without_progress():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    # The metadata travels in the file itself.
    assert converted is not None  # as it is with ``dynamo=False`` alone
    converted.model.metadata_props[METADATA] = metadata
    converted.save(file)


@contextmanager
def _without_progress() -> Iterator[None]:
    """Both packages log every operator that they leave as it is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def quantise(source: Path, target: Path) -> None:
    """Write ``source`` with eight-bit weights, a scale each, to ``target``, which may be the same.

    The weights are those of linear layers and convolutions. Activations are quantised in each call
    by their range, so that no calibration is needed. The metadata is kept.
    """
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Before ``target`` is written, which may be ``source``.
    (metadata,) = (
        entry.value for entry in onnx.load(source).metadata_props if entry.key == METADATA
    )
    # Weights that a model computes from others become constants, which alone can be quantised.
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
    # The quantiser drops the metadata.
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.save(model, target)


class OnnxRunner:
    """Runs the network of an ONNX file on the CPU.

    Args:
        file: its path.
        threads: that onnxruntime may use; 0 leaves it to decide.
    """

    def __init__(self, file: Path, *, threads: int = 0):
        import onnxruntime

        # On the CPU, as the model beside which it is checked.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.metadata: str = self._session.get_modelmeta().custom_metadata_map[METADATA]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` uint8 to the network's outputs."""
        # Images are on the CPU, and share their memory with NumPy.
        outputs = self._session.run(None, {INPUT: images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
