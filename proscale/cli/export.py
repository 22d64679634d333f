"""``proscale export``: a trained model as one file that runs without this project.

The file takes images of any size, as uint8 pixels, and gives logits: docs/export.md. Before it is
written it is run on images of two sizes, and its outputs are compared with the model's; a file that
computes something else is not written.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from proscale.benchmark.machine import describe_machine
from proscale.checkpoint import check_weights, load_weights
from proscale.cli.arguments import add_model, parse_size, positive, try_outputs, weights_override
from proscale.config import built_from_keys, setup_cfg
from proscale.cost.tables import markdown_table, write_json
from proscale.errors import ConfigError, ExportError
from proscale.export import files
from proscale.export.check import TOLERANCE, CheckedFile, check_file, check_images, evaluate
from proscale.export.network import describe, exportable
from proscale.utils.types import Size
from proscale.utils.whole_files import try_file, whole_file

ONNX = "onnx"
SUFFIXES = {"torch-export": ".pt2", ONNX: ".onnx"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_model(parser, "its weights; '' takes random ones")
    parser.add_argument("--format", required=True, choices=tuple(SUFFIXES), help="of the file")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file to write: .onnx or .pt2"
    )
    help_ = "sizes of the images it is checked on (default: 480x640 640x480; of a pose estimator "
    help_ += "crops of MODEL.POSE.INPUT_SIZE)"
    parser.add_argument("--check-size", nargs=2, type=parse_size, metavar="HxW", help=help_)
    help_ = "greatest absolute difference of an output that passes (default: %(default)s)"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="X", help=help_)
    help_ = f"with --format {ONNX}: weights in eight bits, made from the float32 file once checked"
    parser.add_argument("--int8", action="store_true", help=help_)
    help_ = "evaluate the file on DATASETS.TEST: PQ, AP, mIoU and PCK, as switched on"
    parser.add_argument("--evaluate", action="store_true", help=help_)
    help_ = "calls of each that are timed (default: %(default)s)"
    parser.add_argument("--repeats", type=positive, default=5, help=help_)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration overrides")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    _check_options(options)
    # Files are checked on the CPU; they run elsewhere, too.
    overrides = [*options.opts, *weights_override(options), "MODEL.DEVICE", "cpu"]
    cfg = setup_cfg(options.config_file, overrides)
    check_weights(cfg, resume=False, required=options.weights != "")
    data_set = next(iter(cfg.DATASETS.TEST), "")
    try:
        if options.evaluate:
            DatasetCatalog.get(data_set)
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"--evaluate: the data set {data_set!r} of DATASETS.TEST cannot be read: {error}; "
            "$DETECTRON2_DATASETS names the folder of the data sets"
        ) from error
    with built_from_keys():
        model = build_model(cfg).eval()
    load_weights(model, cfg)
    network = exportable(model)
    metadata = describe(cfg, model, network, options.config_file)
    program = files.export_program(network)
    batches, source = check_images(cfg, options.check_size or _default_sizes(cfg))
    print(f"Checked on {source}\n", flush=True)

    check = partial(
        check_file,
        network=network,
        batches=batches,
        repeats=options.repeats,
        evaluate=partial(evaluate, cfg, model, network) if options.evaluate else None,
    )
    found: dict[str, CheckedFile] = {}
    with whole_file(options.output, durable=True) as file:
        # Write the file, run it beside the model with as many threads, and keep it if it passes.
        runner: type[files.ProgramRunner] | partial[files.OnnxRunner] = files.ProgramRunner
        if options.format == ONNX:
            runner = partial(files.OnnxRunner, threads=torch.get_num_threads())
            files.write_onnx(program, network.outputs, file, metadata)
        else:
            files.write_program(program, file, metadata)
        found["float32"] = check(file, runner(file))
        deviations = found["float32"].deviations
        passed = all(deviation.worst <= options.tolerance for deviation in deviations)
        if passed and options.int8:
            files.quantise(file, file)
            found["int8"] = check(file, runner(file))
        _report(found)
        document = {
            "machine": describe_machine(torch.device("cpu")),
            "settings": {
                "config": options.config_file,
                "overrides": options.opts,
                "images": source,
                "weights": cfg.MODEL.WEIGHTS,
                **{key: getattr(options, key) for key in ("format", "tolerance")},
            },
            "written": str(options.output) if passed else None,
            "files": {name: checked.as_dict() for name, checked in found.items()},
        }
        write_json(options.json, document)
        if not passed:
            raise ExportError(
                f"{options.output} is not written: outputs differ by more than --tolerance "
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
    least, most = files.MIN_SIDE, files.MAX_SIDE
    for height, width in options.check_size or ():
        if not (least <= height <= most and least <= width <= most):
            raise ConfigError(
                f"--check-size is {height}x{width}: expected sides from {least} to {most}"
            )
    if options.format == ONNX:
        files.require_packages()
    try_file(options.output, "--output")
    try_outputs(json=options.json)


def _default_sizes(cfg: CfgNode) -> Sequence[Size]:
    if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
        width, height = cfg.MODEL.POSE.INPUT_SIZE
        return ((height, width),)
    return ((480, 640), (640, 480))


def _report(found: Mapping[str, CheckedFile]) -> None:
    rows = [
        [
            name,
            "×".join(map(str, deviation.shape)),
            *(f"{output}: {value:.1e}" for output, value in deviation.differences.items()),
        ]
        for name, file in found.items()
        for deviation in file.deviations
    ]
    headers = ["file", "images", "greatest difference", *[""] * (len(rows[0]) - 3)]
    print(markdown_table(rows, headers, text=headers))
    metrics = list(found["float32"].quality)
    headers = ["file", "MB", "ms an image", "model, ms", "time over model's", *metrics]
    rows = [
        [
            name,
            f"{file.size / 1e6:.1f}",
            *(f"{1000 * file.times[key].median:.0f}" for key in ("file", "model")),
            f"{file.times['file'].median / file.times['model'].median:.2f}",
            *(f"{value:.2f}" for value in file.quality.values()),
        ]
        for name, file in found.items()
    ]
    print("\n" + markdown_table(rows, headers, text=("file",)))
    for metric in metrics if "int8" in found else ():
        full, quantised = (found[name].quality[metric] for name in ("float32", "int8"))
        print(f"\n{metric} lost by int8: {full - quantised:.2f} ({full:.2f} to {quantised:.2f})")
