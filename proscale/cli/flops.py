"""``proscale flops``: what models cost, before anything is trained.

GFLOPs by part and by operator, parameters, activations, and tokens seen by each encoder layer, for
one or several configurations side by side. Neither data nor weights are needed: nothing is computed
but shapes. With --budget, the PRO-SCALE encoders that fit a share of Mask2Former's cost.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from proscale.cli.arguments import (
    add_overrides,
    parse_size,
    positive,
    short_names,
    split_overrides,
)
from proscale.config import setup_cfg
from proscale.cost.budget import Candidate, affordable, pareto_front, write_config
from proscale.cost.encoder_cost import EncoderDesign
from proscale.cost.flops import padded_size
from proscale.cost.flops_report import (
    CONVENTION,
    budget_table,
    cost_as_dict,
    operators_table,
    parts_table,
    summary_table,
    tokens_table,
)
from proscale.cost.image_sizes import dataset_sizes
from proscale.cost.model_cost import ModelCost, cost_at_size, cost_over_images
from proscale.cost.parts import ENCODER_PART, EVERYTHING, NETWORK
from proscale.cost.plots import bars, check_format, draw, points, read_results
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import write_json, write_markdown
from proscale.errors import ConfigError

DEFAULT_SIZE = (800, 1280)
_AXIS = "GFLOPs (multiply-adds) an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="the models"
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--size",
        type=parse_size,
        default=DEFAULT_SIZE,
        metavar="HxW",
        help="of the image, pixels (default: 800x1280)",
    )
    images.add_argument(
        "--dataset",
        metavar="NAME",
        help="average over images of this data set, resized as for evaluation; only their sizes "
        "are read",
    )
    parser.add_argument(
        "-n", type=positive, default=100, dest="images", help="images of it (default: 100)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw cost by part: .svg, .pdf or .png"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help='JSON of quality by model, such as {"proscale_r50_333": {"PQ": 51.4}}: --plot draws '
        "it against GFLOPs",
    )
    budget = parser.add_argument_group("planning by the closed form of the encoder's cost")
    budget.add_argument(
        "--budget",
        type=_share,
        metavar="SHARE",
        help="of Mask2Former's encoder, such as 55%%: list what it affords",
    )
    budget.add_argument(
        "--max-layers", type=positive, default=6, help="layers of a stage at most (default: 6)"
    )
    budget.add_argument(
        "--choose", type=_layers, metavar="p1,p2,p3", help="the configuration to write"
    )
    budget.add_argument("--write", type=Path, metavar="FILE", help="its YAML file")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    split_overrides(options)
    if (options.choose is None) != (options.write is None):
        raise ConfigError("--choose and --write go together: which configuration, and where to")
    if options.choose and options.budget is None:
        raise ConfigError("--choose needs --budget, what the chosen configuration may cost")
    if options.results and options.plot is None:
        raise ConfigError("--results needs --plot, where quality is drawn")
    if options.plot:
        check_format(options.plot)
    names = short_names(options.config_file)
    cfgs = {name: _configure(file, options.opts) for name, file in names.items()}
    if options.budget is not None:
        _plan(cfgs, options)
        return
    quality = read_results(options.results) if options.results else None
    sizes = dataset_sizes(options.dataset, options.images) if options.dataset else []
    costs = {name: _count(names[name], cfg, options.size, sizes) for name, cfg in cfgs.items()}

    report = "\n\n".join([CONVENTION, _images(options, len(sizes)), *_tables(costs)])
    print(report)
    settings = {"images": _images(options, len(sizes)), "overrides": options.opts}
    models = {name: cost_as_dict(cost) for name, cost in costs.items()}
    write_json(options.json, {"unit": CONVENTION, "settings": settings, "models": models})
    write_markdown(options.markdown, report)
    if options.plot:
        _draw(costs, quality, options.plot)


def _draw(
    costs: Mapping[str, ModelCost], quality: tuple[str, Mapping[str, float]] | None, file: Path
) -> None:
    """Bars of cost by part; and quality against cost where it is known."""
    giga = {
        name: {
            part.name: part.multiply_adds.mean / 1e9
            for part in cost.parts
            if not part.within and part.name not in (NETWORK, EVERYTHING)
        }
        for name, cost in costs.items()
    }
    panels = [bars(giga, _AXIS)]
    if quality:
        metric, values = quality
        places = {name: (sum(giga[name].values()), values[name]) for name in giga if name in values}
        if not places:
            raise ConfigError(f"--results has none of {', '.join(giga)}")
        panels.append(points(places, (_AXIS, metric)))
    draw(panels, file)


def _configure(file: str, overrides: Sequence[str]) -> CfgNode:
    # The device is of no account, but one that the machine lacks would be refused.
    return setup_cfg(file, [*overrides, "MODEL.DEVICE", "cpu"])


def _count(
    file: str, cfg: CfgNode, size: tuple[int, int], sizes: Sequence[tuple[int, int]]
) -> ModelCost:
    try:
        return cost_over_images(cfg, sizes) if sizes else cost_at_size(cfg, size)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _images(options: argparse.Namespace, found: int) -> str:
    if options.dataset:
        return (
            f"Images: the first {found} of {options.dataset}, resized as for evaluation; mean ± "
            "standard deviation."
        )
    return "Image: {}x{} pixels, padded as the model asks for.".format(*options.size)


def _tables(costs: dict[str, ModelCost]) -> list[str]:
    tables = ["## Models (GFLOPs)", summary_table(costs)]
    if len(costs) == 1:
        (cost,) = costs.values()
        tables += ["## Parts", parts_table(cost), "## Operators", operators_table(cost)]
        tables += ["## Tokens", tokens_table(cost)]
    else:
        tables.append("Parts, operators and tokens of each model: run it alone, or see --json.")
    uncounted = {name: sorted(cost.uncounted) for name, cost in costs.items() if cost.uncounted}
    tables += [
        f"Warning: {name} has operators without a count: {', '.join(operators)}"
        for name, operators in uncounted.items()
    ]
    return tables


def _plan(cfgs: dict[str, CfgNode], options: argparse.Namespace) -> None:
    if len(cfgs) > 1:
        raise ConfigError("--budget plans for one --config-file at a time")
    ((name, cfg),) = cfgs.items()
    (file,) = options.config_file
    try:
        size = padded_size(build_without_weights(cfg), options.size)
        design = EncoderDesign.from_config(cfg, size)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: {error}") from error
    candidates = affordable(design, options.budget, max_layers=options.max_layers)
    if not candidates:
        raise ConfigError(
            f"--budget {100 * options.budget:g}%: even one layer over the coarsest level costs "
            "more; what does not depend on layers takes its share, too"
        )
    levels = cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    front = pareto_front(candidates)
    report = "\n\n".join(
        [
            CONVENTION,
            f"PRO-SCALE encoders for {name} at {options.size[0]}x{options.size[1]} that cost at "
            f"most {100 * options.budget:g} % of Mask2Former's: those of the {len(candidates)} "
            f"with up to {options.max_layers} layers a stage that no other one matches at every "
            "scale.",
            budget_table(front, sorted(levels, reverse=True)),
        ]
    )
    print(report)
    write_json(
        options.json,
        {"unit": CONVENTION, "budget": options.budget, "front": [vars(one) for one in front]},
    )
    write_markdown(options.markdown, report)
    if options.choose:
        _write(options, file, candidates)


def _write(options: argparse.Namespace, file: str, candidates: Sequence[Candidate]) -> None:
    chosen = next((one for one in candidates if one.layers == options.choose), None)
    if chosen is None:
        raise ConfigError(
            f"--choose {','.join(map(str, options.choose))} is not within --budget "
            f"{100 * options.budget:g}% and --max-layers {options.max_layers}"
        )
    write_config(options.write, Path(file), chosen.layers)
    cfg = setup_cfg(str(options.write), ["MODEL.DEVICE", "cpu"])
    counted = cost_at_size(cfg, options.size).part(ENCODER_PART).multiply_adds.mean
    print(f"\n{options.write}: builds, and its encoder is counted at {counted / 1e9:.2f} GFLOPs")


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not text.endswith("%") or value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a percentage, such as 55%")
    return value


def _layers(text: str) -> tuple[int, ...]:
    counts = text.split(",")
    if not all(count.isdecimal() for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected layers of each stage, such as 3,3,3")
    return tuple(map(int, counts))
