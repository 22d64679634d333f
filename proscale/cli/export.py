"""``proscale export``: a trained model as one file that runs without this project.

The file takes images of any size, as uint8 pixels, and gives logits: docs/export.md. Before it is
written it is run on images of two sizes, and its outputs are compared with the model's; a file that
computes something else is not written.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from proscale.benchmark.latency import Timing, measure
from proscale.benchmark.machine import describe_machine
from proscale.checkpoint import check_weights, load_weights
from proscale.cli.arguments import parse_size, positive
from proscale.config import setup_cfg
from proscale.cost.tables import markdown_table, write_json
from proscale.errors import CheckpointError, ConfigError, ExportError
from proscale.export.check import TOLERANCE, Agreement, Runner, check_images, compare
from proscale.export.evaluation import ExportedModel, evaluate
from proscale.export.metadata import describe
from proscale.export.network import ExportableNetwork, exportable
from proscale.export.onnx_export import OnnxRunner, require_packages, write_onnx
from proscale.export.quantisation import quantise
from proscale.export.torch_export import (
    MAX_SIDE,
    MIN_SIDE,
    ProgramRunner,
    record,
    write_program,
)

TORCH_EXPORT, ONNX = "torch-export", "onnx"
SUFFIXES = {TORCH_EXPORT: ".pt2", ONNX: ".onnx"}
DEFAULT_SIZES = ((480, 640), (640, 480))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="its weights; '' takes random ones"
    )
    parser.add_argument("--format", required=True, choices=tuple(SUFFIXES), help="of the file")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="what to write: .onnx or .pt2"
    )
    parser.add_argument(
        "--check-size",
        nargs=2,
        type=parse_size,
        default=DEFAULT_SIZES,
        metavar="HxW",
        help="sizes of the images it is checked on (default: 480x640 640x480)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="greatest absolute difference of an output that passes (default: %(default)s)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help=f"with --format {ONNX}: weights in eight bits; what is checked is the "
        "float32 file that it is made from",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate what is written on DATASETS.TEST: PQ, AP and mIoU, as switched on; with "
        "--int8 also the float32 file, and what is lost",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=5,
        help="calls of each that are timed (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration overrides")


@dataclass(frozen=True)
class Candidate:
    """A file, run beside the model.

    Attributes:
        size: bytes.
        agreements: with the model, by batch.
        times: of the model and the file for an image of the first size.
        quality: percent, by name; empty without --evaluate.
    """

    size: int
    agreements: Sequence[Agreement]
    times: Mapping[str, Timing]
    quality: Mapping[str, float]


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    _check_options(options)
    cfg = setup_cfg(
        options.config_file,
        # Files are checked on the CPU; they run elsewhere, too.
        [*options.opts, "MODEL.WEIGHTS", options.weights, "MODEL.DEVICE", "cpu"],
    )
    check_weights(cfg, resume=False, required=bool(options.weights))
    if options.evaluate:
        _check_data(cfg)
    try:
        model = build_model(cfg).eval()
        load_weights(model, cfg)
        network = exportable(model)
        metadata = describe(cfg, model, network, options.config_file)
        program = record(network)
    except (CheckpointError, ValueError) as error:
        raise ConfigError(f"{options.config_file}: {error}") from error
    batches, source = check_images(cfg, options.check_size)
    print(f"Checked on {source}\n", flush=True)

    found: dict[str, Candidate] = {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, so that a checked file only has to be renamed.
    with TemporaryDirectory(dir=options.output.parent) as folder:
        file = Path(folder, options.output.name)
        if options.format == ONNX:
            write_onnx(program, network.outputs, file, metadata)
        else:
            write_program(program, file, metadata)
        found["float32"] = _try(file, options, cfg, model, network, batches)
        passed = all(one.worst <= options.tolerance for one in found["float32"].agreements)
        if passed and options.int8:
            full, file = file, Path(folder, f"int8_{options.output.name}")
            quantise(full, file)
            found["int8"] = _try(file, options, cfg, model, network, batches)
        if passed:
            os.replace(file, options.output)
    _report(found)
    write_json(options.json, _document(options, source, found, passed))
    if not passed:
        sys.exit(
            f"proscale: {options.output} is not written: outputs differ by more than --tolerance "
            f"{options.tolerance:g} from the model's"
        )
    print(f"\nWritten: {options.output}")


def _check_options(options: argparse.Namespace) -> None:
    suffix = SUFFIXES[options.format]
    if options.output.suffix != suffix:
        raise ConfigError(
            f"--output is {options.output}: --format {options.format} accepts names that end in "
            f"{suffix}"
        )
    if options.int8 and options.format != ONNX:
        raise ConfigError(
            f"--int8 goes with --format {ONNX}, which onnxruntime quantises; PyTorch's own "
            "quantisation has moved to another package"
        )
    for size in options.check_size:
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
            raise ConfigError(
                f"--check-size is {size[0]}x{size[1]}: expected sides from {MIN_SIDE} to {MAX_SIDE}"
            )
    if options.format == ONNX:
        try:
            require_packages()
        except ExportError as error:
            raise ConfigError(str(error)) from error


def _check_data(cfg: CfgNode) -> None:
    name = next(iter(cfg.DATASETS.TEST), "")
    try:
        DatasetCatalog.get(name)
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"--evaluate: the data set {name!r} of DATASETS.TEST cannot be read: {error}; "
            "$DETECTRON2_DATASETS names the folder of the data sets"
        ) from error


def _try(
    file: Path,
    options: argparse.Namespace,
    cfg: CfgNode,
    model: nn.Module,
    network: ExportableNetwork,
    batches: Sequence[Tensor],
) -> Candidate:
    run_file: Runner = (
        OnnxRunner(file, threads=torch.get_num_threads())
        if options.format == ONNX
        else ProgramRunner(file)
    )
    agreements = compare(network, run_file, batches)
    image = batches[0][:1]
    with torch.no_grad():
        times = measure(
            {"model": lambda: network(image), "file": lambda: run_file(image)},
            repeats=options.repeats,
            warmup=1,
        )
    quality = {}
    if options.evaluate:
        quality = evaluate(cfg, ExportedModel(model, network, run_file).eval())
    return Candidate(file.stat().st_size, agreements, times, quality)


def _report(found: Mapping[str, Candidate]) -> None:
    rows = [
        [
            name,
            "×".join(map(str, agreement.shape)),
            *(f"{output}: {value:.1e}" for output, value in agreement.differences.items()),
        ]
        for name, candidate in found.items()
        for agreement in candidate.agreements
    ]
    outputs = len(rows[0]) - 2
    headers = ["file", "images", *(["greatest difference"] + [""] * (outputs - 1))]
    print(markdown_table(rows, headers, text=headers))
    headers = ["file", "MB", "ms an image", "model, ms", "time over model's"]
    figures = list(next(iter(found.values())).quality)
    rows = [
        [
            name,
            f"{candidate.size / 1e6:.1f}",
            *(f"{1000 * candidate.times[key].median:.0f}" for key in ("file", "model")),
            f"{candidate.times['file'].median / candidate.times['model'].median:.2f}",
            *(f"{candidate.quality[figure]:.2f}" for figure in figures),
        ]
        for name, candidate in found.items()
    ]
    print("\n" + markdown_table(rows, [*headers, *figures], text=("file",)))
    if "int8" in found:
        for figure in figures:
            full, quantised = (found[name].quality[figure] for name in ("float32", "int8"))
            print(
                f"\n{figure} lost by int8: {full - quantised:.2f} ({full:.2f} to {quantised:.2f})"
            )


def _document(
    options: argparse.Namespace, source: str, found: Mapping[str, Candidate], passed: bool
) -> dict:
    return {
        "machine": describe_machine(torch.device("cpu")),
        "settings": {
            "config": options.config_file,
            "weights": options.weights,
            "overrides": options.opts,
            "format": options.format,
            "images": source,
            "tolerance": options.tolerance,
        },
        "written": str(options.output) if passed else None,
        "files": {
            name: {
                "bytes": candidate.size,
                "differences": [
                    {"shape": list(one.shape), **one.differences} for one in candidate.agreements
                ],
                "seconds": {key: timing.as_dict() for key, timing in candidate.times.items()},
                "quality": dict(candidate.quality),
            }
            for name, candidate in found.items()
        },
    }
