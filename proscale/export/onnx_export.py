"""ONNX files, made from a recorded graph and run by onnxruntime."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from proscale.errors import ExportError
from proscale.export.torch_export import recording

#: GridSample is there from 16, with the present names of its modes from 20.
OPSET = 20
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
    with recording(), _without_progress():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    converted.model.metadata_props[METADATA] = metadata
    converted.save(file)


@contextmanager
def _without_progress() -> Iterator[None]:
    """Both packages tell of each operator that they leave as it is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class OnnxRunner:
    """Runs the network of an ONNX file on the CPU.

    Args:
        file: its path.
        threads: that onnxruntime may use; 0 leaves it to decide.
    """

    def __init__(self, file: Path, *, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.metadata: str = self._session.get_modelmeta().custom_metadata_map[METADATA]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` uint8 to the network's outputs."""
        outputs = self._session.run(None, {INPUT: images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
