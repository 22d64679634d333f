"""``proscale models``: weights and configurations by name.

The names of weights are for --model, --weights and ``proscale.Predictor``, which fetch a file once;
those of configurations for every --config-file. With WORDs the names that have all of them. With
--cost also multiply-adds and parameters, which takes a second for each model.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proscale.checkpoint import read_description
from proscale.cli.arguments import add_json, parse_size, try_outputs
from proscale.config import config_names, setup_cfg
from proscale.cost.flops import count_flops
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import markdown_table, write_json
from proscale.errors import ConfigError
from proscale.zoo import CATALOGUE, shipped_models
from proscale.zoo.catalogue import LICENCE

_COST = ("GFLOPs", "parameters, M")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="parts of the names to list")
    parser.add_argument("--cost", action="store_true", help="count multiply-adds and parameters")
    help_ = "of the image for --cost (default: 800x1280)"
    parser.add_argument("--size", type=parse_size, default=(800, 1280), metavar="HxW", help=help_)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    try_outputs(json=options.json)
    weights = {
        **{name: _of_shipped(file) for name, file in shipped_models().items()},
        **{
            name: {
                "task": model.task,
                "data set": model.dataset,
                "backbone": model.backbone,
                "published": f"{model.figure} ({model.paper})",
                "source": model.source,
                "licence": LICENCE,
                "opened here": "no",
                "configuration": model.config,
                "overrides": list(model.overrides),
            }
            for name, model in CATALOGUE.items()
        },
    }
    weights = _chosen(weights, options.words)
    configurations: dict[str, dict[str, Any]] = _chosen(
        {name: {"configuration": name, "overrides": []} for name in config_names()}, options.words
    )
    if not weights and not configurations:
        raise ConfigError(f"no name has {' and '.join(options.words)}: expected parts of names")
    if options.cost:
        for entry in (*weights.values(), *configurations.values()):
            entry |= _cost(entry["configuration"], entry["overrides"], options.size)
    columns = [key for key in ("task", "data set", "backbone", "published", "source") if weights]
    columns += _COST if options.cost else ()
    if weights:
        _print("Weights, fetched when they are used", weights, columns)
        print(f"\nLicences: {LICENCE}. None of the published files could be opened here.")
    if configurations:
        _print("Configurations", configurations, _COST if options.cost else ())
    write_json(options.json, {"weights": weights, "configurations": configurations})


def _of_shipped(file: Path) -> dict[str, Any]:
    """A model that comes with the package, as its file describes it."""
    description = read_description(file)
    assert description is not None  # as the tests make sure
    return {
        "task": "",
        "data set": description.dataset,
        "backbone": "",
        "published": "docs/small_data.md",
        "source": "in the package",
        "licence": "Apache-2.0",
        "opened here": "yes",
        "configuration": str(file),
        "overrides": [],
    }


def _chosen(entries: Mapping[str, dict[str, Any]], words: Sequence[str]) -> dict[str, Any]:
    return {
        name: entry
        for name, entry in entries.items()
        if all(word.lower() in name.lower() for word in words)
    }


def _cost(config: str, overrides: Sequence[str], size: tuple[int, int]) -> dict[str, str]:
    # The device does not matter, but one that the machine lacks would be refused.
    model = build_without_weights(setup_cfg(config, [*overrides, "MODEL.DEVICE", "cpu"]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    numbers = count_flops(model, size).total / 1e9, parameters / 1e6
    return dict(zip(_COST, (f"{number:.1f}" for number in numbers), strict=True))


def _print(title: str, entries: Mapping[str, dict[str, Any]], columns: Sequence[str]) -> None:
    rows = [[name, *(str(row.get(key, "")) for key in columns)] for name, row in entries.items()]
    text = ("name", *(key for key in columns if key not in _COST))
    print(f"\n{title}\n\n{markdown_table(rows, ['name', *columns], text=text)}")
