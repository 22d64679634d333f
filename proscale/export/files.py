"""One program for all image sizes, and its files: ``torch.export`` (``.pt2``) and ONNX.

Deformable attention is exported as plain operators (``grid_sample``), so that neither a file nor an
ONNX graph made from the program needs this project.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from proscale.checkpoint.files import Recorder
from proscale.errors import ExportError, printable
from proscale.export.network import ExportableNetwork
from proscale.ops import using_backend
from proscale.ops.deformable_attention import REFERENCE
from proscale.utils.untrusted import check_archive, check_regular

MIN_SIDE, MAX_SIDE, MAX_BATCH = 96, 8192, 1024
METADATA, ONNX_METADATA = "proscale.json", "proscale"
"""Of the metadata: an extra file of a ``.pt2``, an entry of an ONNX file's ``metadata_props``."""
ONNX_INPUT = "images"


@contextmanager
def exporting() -> Iterator[None]:
    """How programs are exported and rewritten: no gradients, plain operators, and attention results
    whose layout is that of its definition, not of a kernel of this machine."""
    with torch.no_grad(), using_backend(REFERENCE), sdpa_kernel(SDPBackend.MATH):
        yield


def export_program(network: ExportableNetwork) -> ExportedProgram:
    """The graph of ``network`` for any number of images with sides from :data:`MIN_SIDE` to
    :data:`MAX_SIDE`."""
    # The channels and the type of the pixels are fixed.
    dynamic = {
        0: Dim("batch", min=1, max=MAX_BATCH),
        2: Dim("height", min=MIN_SIDE, max=MAX_SIDE),
        3: Dim("width", min=MIN_SIDE, max=MAX_SIDE),
    }
    # Of the example only the shape matters. No level of it is one cell or one window long, so that
    # such coincidences do not enter the graph; a batch of one would be taken for a constant.
    images = torch.zeros(2, 3, 480, 640, dtype=torch.uint8)
    # Guards that hold for the example alone become assertions.
    with exporting():
        program = torch.export.export(
            network,
            (images,),
            dynamic_shapes=(dynamic,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    # Those on single numbers are dropped: they are conclusions from the memory layout of the
    # example, such as that a padded map is larger than the map. The operators in the graph are
    # right either way; sizes of the input are still checked.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def write_program(program: ExportedProgram, file: Path, metadata: str) -> None:
    """Write a ``.pt2`` with the metadata as extra file :data:`METADATA`.

    Raises:
        OSError: the system refused.
    """
    with file.open("wb") as opened, Recorder.of(opened) as recorder:
        target = cast(IO[bytes], recorder)
        torch.export.save(program, target, extra_files={METADATA: metadata})


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Within it errors are ExportErrors; the libraries' own have no common class."""
    try:
        yield
    except Exception as error:
        reason = printable(str(error).partition("\n")[0] or type(error).__name__)
        raise ExportError(f"{file}: it is no {kind}: {reason}") from error


class ProgramRunner:
    """Runs the network of a ``.pt2`` file of your own: ``torch.export`` runs the code in others'.

    Raises:
        ExportError: it is no such file, or far larger unpacked.
    """

    def __init__(self, file: Path):
        check_archive(file, raises=ExportError)
        # ``load`` fills in the files that are asked for by name.
        extra: dict[str, Any] = {METADATA: ""}
        with _reading(file, "program of torch.export"):
            self._module = torch.export.load(file, extra_files=extra).module()
        self.metadata: str = extra[METADATA]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` uint8 to the network's outputs."""
        return tuple(self._module(images))


def require_packages() -> None:
    """Raises :class:`ExportError` if a package of the extra ``export`` is not installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format onnx needs {', '.join(missing)}: run pip install 'proscale[export]'"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(program: ExportedProgram, outputs: Sequence[str], file: Path, metadata: str) -> None:
    """Write ``program`` as ONNX, with names of its outputs; its input is :data:`ONNX_INPUT`."""
    # The program has symbolic sizes already; no example is run again. The packages log every
    # operator that they leave as it is.
    with exporting(), _without_warnings():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,  # the first with the present names of GridSample's modes
            input_names=[ONNX_INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    # The metadata travels in the file itself.
    assert converted is not None  # as it is with ``dynamo=False`` alone
    converted.model.metadata_props[ONNX_METADATA] = metadata
    converted.save(file)


def quantise(source: Path, target: Path) -> None:
    """Write ``source`` with eight-bit weights, a scale each, to ``target``, which may be the same.

    The weights are those of linear layers and convolutions. Activations are quantised in each call
    by their range, so that no calibration is needed. The metadata is kept.
    """
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Before ``target`` is written, which may be ``source``.
    entries = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    # Weights that a model computes from others become constants, which alone can be quantised.
    prepared = target.with_suffix(".prepared.onnx")
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(prepared)
    InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    try:
        with _without_warnings():  # it advises a preparation, which was just done
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                weight_type=QuantType.QUInt8,  # onnxruntime's integer convolution takes no other
                extra_options={"MatMulConstBOnly": True},
            )
    finally:
        prepared.unlink()
    # The quantiser drops the metadata.
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {ONNX_METADATA: entries[ONNX_METADATA]})
    onnx.save(model, target)


class OnnxRunner:
    """Runs the network of an ONNX file on the CPU, with 0 threads as many as onnxruntime likes.

    Raises:
        ExportError: it is no ONNX file that this project wrote.
    """

    def __init__(self, file: Path, *, threads: int = 0):
        import onnxruntime

        # On the CPU, as the model beside which it is checked.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        check_regular(file, raises=ExportError)
        with _reading(file, "ONNX file of this project"):
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
            self.metadata: str = self._session.get_modelmeta().custom_metadata_map[ONNX_METADATA]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` uint8 to the network's outputs."""
        # Images are on the CPU, and share their memory with NumPy.
        outputs = self._session.run(None, {ONNX_INPUT: images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
