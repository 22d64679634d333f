"""Command-line arguments that several commands have."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from math import inf
from pathlib import Path

import torch

from proscale.errors import ConfigError, shown
from proscale.utils.whole_files import try_file
from proscale.zoo import is_model

# Keys are upper case, unlike the files before them.
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def positive(text: str) -> int:
    """A whole number from 1, of at most 9 digits."""
    # A sign or a point would make it another number.
    value = int(text) if text.isdecimal() and len(text) < 10 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected whole numbers from 1")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """HxW as (height, width), sides as images may have."""
    sides = text.split("x")
    if len(sides) != 2 or any(len(side) > 5 for side in sides):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected HxW, such as 640x960")
    return positive(sides[0]), positive(sides[1])


def split_overrides(options: argparse.Namespace) -> None:
    """Move KEY VALUE pairs behind the files of --config-file to ``options.opts``."""
    options.config_file, overrides = split_at_key(options.config_file)
    options.opts = [*overrides, *options.opts]


def split_at_key(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and the KEY VALUE pairs behind them."""
    # All behind the first key is overrides, values that look like files, too.
    files = list(takewhile(lambda text: not _KEY.fullmatch(text), words))
    return files, list(words[len(files) :])


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """KEY VALUE pairs, as ``opts``."""
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration overrides")


def add_model(parser: argparse.ArgumentParser, weights: str) -> None:
    """--model, alias --config-file, and --weights; ``weights`` is the latter's help."""
    parser.add_argument(
        *("--model", "--config-file"),
        dest="config_file",
        required=True,
        metavar="MODEL",
        help="a checkpoint that describes itself, a name of `proscale models`, hf://OWNER/NAME; "
        "or a configuration, by file or name, with --weights",
    )
    parser.add_argument("--weights", metavar="FILE", help=weights)


def weights_override(options: argparse.Namespace, prefix: str = "") -> list[str]:
    """MODEL.WEIGHTS as an override where --weights is given; ``prefix`` of the options' names, such
    as ``person_``, for a second model.

    Raises:
        ConfigError: it is not, and the configuration comes without.
    """
    config: str = getattr(options, f"{prefix}config_file")
    weights: str | None = getattr(options, f"{prefix}weights")
    if weights is not None:
        return ["MODEL.WEIGHTS", weights]
    if not is_model(config):
        dashed = prefix.replace("_", "-")
        raise ConfigError(
            f"--{dashed}weights is missing: expected a checkpoint file for the configuration "
            f"{config}; a checkpoint that describes its model needs --{dashed}model alone"
        )
    return []


def add_job(parser: argparse.ArgumentParser) -> None:
    """The configuration, by position or by --config-file, and the processes of a job."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="file, name or checkpoint")
    parser.add_argument("--config-file", metavar="CONFIG", help="the same as an option")
    help_ = "processes of this machine, each with a GPU (default: %(default)s)"
    parser.add_argument("--num-gpus", type=positive, default=1, metavar="N", help=help_)
    add_overrides(parser)


def words_of_job(options: argparse.Namespace) -> list[str]:
    """The words that ``train_net.py`` takes; a CONFIG behind --config-file is the first KEY."""
    if options.config_file is not None and options.config is not None:
        options.opts = [options.config, *options.opts]
    config = options.config_file if options.config_file is not None else options.config
    return ["--config-file", config or "", "--num-gpus", str(options.num_gpus)]


def add_models(parser: argparse.ArgumentParser) -> None:
    """--config-file with several models, and KEY VALUE pairs."""
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="the models"
    )
    add_overrides(parser)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers of each stage of an encoder, such as 3,3,3."""
    counts = text.split(",")
    if not all(count.isdecimal() and len(count) < 4 for count in counts):
        raise argparse.ArgumentTypeError(
            f"{shown(text)}: expected layers of each stage, such as 3,3,3"
        )
    return tuple(map(int, counts))


def spell_layers(layers: Sequence[int]) -> str:
    """Layers as :func:`parse_layers` takes them."""
    return ",".join(map(str, layers))


def parse_budgets(text: str) -> list[tuple[int, ...]]:
    """Layers of each stage, of several encoders, such as 1,1,1:2,2,2."""
    return [parse_layers(part) for part in text.split(":")]


def parse_percentage(text: str) -> float:
    """A percentage, such as 55%, as a fraction."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not text.endswith("%") or not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a percentage, such as 55%")
    return value


def parse_milliseconds(text: str) -> float:
    """A time, such as 300ms, in seconds."""
    number = text.removesuffix("ms")
    if number == text:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected milliseconds, such as 300ms")
    return positive(number) / 1e3


def short_names(files: Sequence[str]) -> dict[str, str]:
    """Different config files by names for tables: without folder where that tells them apart."""
    if len(set(files)) < len(files):
        raise ConfigError(f"--config-file has a file twice: {' '.join(files)}")
    # The names of files alone, if they differ.
    stems = [Path(file).stem for file in files]
    return dict(zip(stems if len(set(stems)) == len(stems) else files, files, strict=True))


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Within it errors of a configuration file, and of all that is built from it, name the file."""
    try:
        yield
    except (ValueError, KeyError) as error:
        message = str(error)
        raise ConfigError(message if file in message else f"{file}: {message}") from error


def add_report_arguments(parser: argparse.ArgumentParser, *, plot: str, against: str) -> None:
    """--markdown, and --plot with the --results that it draws ``against`` cost."""
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"draw {plot}: .svg, .pdf or .png"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help='JSON of quality by model, such as {"proscale_r50_333": {"PQ": 51.4}}: --plot draws '
        f"it against {against}",
    )


def check_report_arguments(options: argparse.Namespace) -> tuple[str, dict[str, float]] | None:
    """The metric of --results and its values by model, read before the work begins, and the files
    of the others tried."""
    # Most commands draw nothing: matplotlib is imported when it is needed.
    from proscale.cost.plots import check_format, read_results

    if options.results and options.plot is None:
        raise ConfigError("--results needs --plot, where quality is drawn")
    if options.plot:
        check_format(options.plot)
    try_outputs(json=options.json, markdown=options.markdown, plot=options.plot)
    return read_results(options.results) if options.results else None


def try_outputs(**files: Path | None) -> None:
    """Refuse files that cannot be written, by the options that name them; before the work."""
    for option, path in files.items():
        if path is not None:
            # The others are pictures.
            try_file(path, f"--{option}", is_text=option in ("json", "markdown"))


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, too")


def add_benchmark_arguments(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """--device, --repeats (``repeats`` by default) and --json."""
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run",
    )
    parser.add_argument("--repeats", type=positive, default=repeats, help="calls that count")
    add_json(parser)


def find_device(name: str) -> torch.device:
    """The device of --device, which this machine must have."""
    # Said here, because PyTorch would say it in the middle of the work.
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but CUDA is not available: expected cpu")
    return torch.device(name)
