"""Models as files that run without this project: ``torch.export`` and ONNX."""

from proscale.errors import ExportError
from proscale.export.check import check_file, check_images, compare
from proscale.export.files import (
    OnnxRunner,
    ProgramRunner,
    export_program,
    quantise,
    write_onnx,
    write_program,
)
from proscale.export.network import ExportableNetwork, describe, exportable

__all__ = [
    "ExportError",
    "ExportableNetwork",
    "OnnxRunner",
    "ProgramRunner",
    "check_file",
    "check_images",
    "compare",
    "describe",
    "export_program",
    "exportable",
    "quantise",
    "write_onnx",
    "write_program",
]
