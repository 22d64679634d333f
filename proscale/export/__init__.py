"""Models as files that run without this project: ``torch.export`` and ONNX."""

from proscale.errors import ExportError
from proscale.export.check import compare
from proscale.export.network import ExportableNetwork, exportable
from proscale.export.onnx_export import OnnxRunner, write_onnx
from proscale.export.quantisation import quantise
from proscale.export.torch_export import ProgramRunner, record, write_program

__all__ = [
    "ExportError",
    "ExportableNetwork",
    "OnnxRunner",
    "ProgramRunner",
    "compare",
    "exportable",
    "quantise",
    "record",
    "write_onnx",
    "write_program",
]
