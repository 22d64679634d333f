"""One program for all image sizes: ``torch.export``, and its files (``.pt2``).

Deformable attention is exported as plain operators (``grid_sample``), so that neither a file nor an
ONNX graph made from the program needs this project.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from proscale.export.network import ExportableNetwork
from proscale.ops import using_backend
from proscale.ops.deformable_attention import REFERENCE

MIN_SIDE, MAX_SIDE, MAX_BATCH = 96, 8192, 1024
# Of the example images. Only their shapes matter; no level of them is one cell or one window long,
# so that such coincidences do not enter the graph.
_EXAMPLE_SIZE = (480, 640)
METADATA = "proscale.json"
"""The extra file of the metadata."""


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
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, 3, *_EXAMPLE_SIZE, dtype=torch.uint8)
    # Guards that hold for the example alone become assertions, which are dropped below.
    with exporting():
        program = torch.export.export(
            network,
            (images,),
            dynamic_shapes=(dynamic,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_assertions(program)
    return program


def _drop_assertions(program: ExportedProgram) -> None:
    """Remove conclusions from the memory layout of the example, such as that a padded map is larger
    than the map. The operators in the graph are right either way; sizes are still checked."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        # Assertions on single numbers; those on the input's sizes are of another kind.
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def write_program(program: ExportedProgram, file: Path, metadata: str) -> None:
    """Write a ``.pt2`` with the metadata as extra file :data:`METADATA`."""
    torch.export.save(program, file, extra_files={METADATA: metadata})


class ProgramRunner:
    """Runs the network of a ``.pt2``.

    Args:
        file: its path.
    """

    def __init__(self, file: Path):
        # ``load`` fills in the files that are asked for by name.
        extra: dict[str, Any] = {METADATA: ""}
        self._module = torch.export.load(file, extra_files=extra).module()
        self.metadata: str = extra[METADATA]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` uint8 to the network's outputs."""
        return tuple(self._module(images))
