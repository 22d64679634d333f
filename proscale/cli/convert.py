"""``proscale convert``: a checkpoint file under the names of another scheme, or adapted to a model.

The scheme of INPUT is recognised by its names. Files are PyTorch's (.pth, .pt, .bin; .pkl is only
read) or safetensors, chosen by suffix. With --config-file, OUTPUT has what this model can use, such
as the encoder's layers of a Mask2Former for PRO-SCALE; the tensors taken over, new and left out are
listed.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from proscale.checkpoint import (
    DESCRIPTION,
    PROSCALE,
    SCHEMES,
    ModelDescription,
    adapt_weights,
    convert,
    read_description,
)
from proscale.checkpoint.adapt import ENCODER_LAYERS, slice_budget
from proscale.checkpoint.convert import tensors_of
from proscale.checkpoint.files import (
    SAFETENSORS,
    WRITABLE,
    check_suffix,
    read_checkpoint,
    write_checkpoint,
)
from proscale.checkpoint.tensors import check_fit
from proscale.cli.arguments import parse_layers, split_overrides
from proscale.config import setup_cfg
from proscale.config.schema import value_of
from proscale.cost.shape_tracing import build_without_weights
from proscale.errors import CheckpointError, ConfigError, printable
from proscale.utils.whole_files import try_file

# More names than this are grouped by their first parts.
_NAMED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="file to read")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to write")
    help_ = (
        "naming scheme of OUTPUT (default: %(default)s); huggingface is that of files, "
        "transformers that of models in memory"
    )
    parser.add_argument("--to", choices=(PROSCALE, *SCHEMES), default=PROSCALE, help=help_)
    help_ = "of an elastic model, such as 1,2,1: OUTPUT is an ordinary PRO-SCALE of these layers"
    parser.add_argument("--budget", type=parse_layers, metavar="q1,q2,q3", help=help_)
    help_ = "the model that OUTPUT is for; KEY VALUE overrides may follow"
    parser.add_argument("--config-file", nargs="+", default=[], metavar="FILE", help=help_)
    help_ = "weights of convolutions and linear layers in float16: half the size"
    parser.add_argument("--half", action="store_true", help=help_)
    help_ = "read a pickle that holds more than tensors, too: this runs the code in it"
    parser.add_argument("--trust", action="store_true", help=help_)
    parser.set_defaults(opts=[])


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    split_overrides(options)
    if len(options.config_file) > 1:
        raise ConfigError(f"--config-file is {' '.join(options.config_file)}: expected one file")
    if options.config_file and options.to != PROSCALE:
        raise ConfigError(f"--config-file goes with --to {PROSCALE}, not --to {options.to}")
    if options.budget and options.to != PROSCALE:
        raise ConfigError(f"--budget goes with --to {PROSCALE}, not --to {options.to}")
    # Before the work.
    check_suffix(options.output, WRITABLE)
    try_file(options.output, "OUTPUT")
    content = read_checkpoint(options.input, trust=options.trust)
    # The file goes on describing its model, unless the layers are others.
    is_same = options.to == PROSCALE and options.budget is None
    texts = _description(content, options.input) if is_same else {}
    if options.budget:
        # Under this project's names stages can be told apart.
        state = convert(content, file=options.input).state_dict
        content = slice_budget(state, options.budget, file=options.input)
    if options.half:
        content = _halved(tensors_of(content))
    if options.config_file:
        _adapt(content, options)
        return
    # Without a model the names alone change.
    conversion = convert(content, to=options.to, file=options.input)
    container = "model" if options.to == PROSCALE else SCHEMES[options.to][0].container
    write_checkpoint(options.output, conversion.state_dict, container=container, texts=texts)
    print(f"{options.input}: names of scheme {conversion.source}")
    print(f"{options.output}: {len(conversion.state_dict)} tensors under the names of {options.to}")
    kept = "kept under their names" if options.to == PROSCALE else "left out"
    _print_names(f"Without a counterpart, {kept}", conversion.unknown)
    if conversion.settings:
        print("They were trained with:")
        print("\n".join(f"  {key} {value}" for key, value in conversion.settings.items()))


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16; statistics, biases and norms keep all their digits."""
    return {
        name: tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _description(content: Mapping[str, Any], file: Path) -> dict[str, str]:
    """The description in a file by its key; nothing if it has none."""
    if file.suffix == SAFETENSORS:
        found = read_description(file)
    elif DESCRIPTION in content:
        found = ModelDescription.parse(content[DESCRIPTION], file)
    else:
        return {}
    return {DESCRIPTION: found.text()} if found else {}


def _adapt(content: Mapping[str, Any], options: argparse.Namespace) -> None:
    (file,) = options.config_file
    cfg = setup_cfg(file, [*options.opts, "MODEL.DEVICE", "cpu"])
    # Shapes suffice to tell which tensors fit.
    model = build_without_weights(cfg)
    conversion = convert(content, model=model.state_dict().keys(), file=options.input)
    result = adapt_weights(conversion.state_dict, model)
    if not result.state_dict:
        found = ", ".join(map(printable, result.left_out[:3])) or "nothing"
        raise CheckpointError(
            f"{options.input}: no tensor in it fits the model of {file}; it has {found}, …, the "
            f"model {', '.join(result.new[:3])}, …"
        )
    check_fit(options.input, result.state_dict, model.state_dict())
    texts = {DESCRIPTION: ModelDescription.of(cfg).text()}
    write_checkpoint(options.output, result.state_dict, container="model", texts=texts)
    print(f"{options.input}: names of scheme {conversion.source}")
    print(f"{options.output}: {len(result.state_dict)} tensors for the model of {file}")
    _print_names("Taken over", result.state_dict)
    if changed := sorted({*result.layers, *result.cut}):
        print("Of these, layers of the encoder:")
    for layer in changed:
        kept, there = result.cut.get(layer, (0, 0))
        levels = f", {kept} of {there} levels of its attention" if kept else ""
        print(f"  layer {layer} from layer {result.layers.get(layer, layer)}{levels}")
    _print_names("New, to start as the model initialises them", result.new)
    _print_names("Left out", result.left_out, layers=True)
    for key, expected in conversion.settings.items():
        if (value := value_of(cfg, key)) != expected:
            print(f"Mind: they were trained with {key} {expected}, {file} has {value}")


def _print_names(title: str, names: Iterable[str], *, layers: bool = False) -> None:
    """The names, or, of many, how many begin alike; ``layers`` tells the encoder's apart."""
    lines = list(map(printable, names))
    if not lines:
        return
    if len(lines) > _NAMED:
        counts: Counter[str] = Counter()
        for name in lines:
            # By part of the model, and within its head by module.
            depth = 2 if name.startswith("sem_seg_head.") else 1
            if layers and name.startswith(ENCODER_LAYERS):
                depth = ENCODER_LAYERS.count(".") + 1
            counts[".".join(name.split(".")[:depth])] += 1
        lines = [f"{beginning}: {count} tensors" for beginning, count in counts.items()]
    print(f"{title}:")
    print("\n".join(f"  {line}" for line in lines))
