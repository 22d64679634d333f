"""``proscale flops``: cost of models, before anything is trained.

GFLOPs by part and by operator, parameters, activations, and tokens seen by each encoder layer, for
one or several configurations side by side. Neither data nor weights are needed: nothing is computed
but shapes. With --budget, the PRO-SCALE encoders that cost at most a fraction of Mask2Former's.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from detectron2.config import CfgNode

from proscale.cli.arguments import (
    add_json,
    add_models,
    add_overrides,
    add_report_arguments,
    check_report_arguments,
    naming,
    parse_size,
    positive,
    short_names,
    split_overrides,
)
from proscale.config import setup_cfg
from proscale.cost.budget import AffordableEncoder, affordable, pareto_front, write_config
from proscale.cost.encoder_cost import EncoderDesign
from proscale.cost.flops import padded_size
from proscale.cost.model_cost import ModelCost, cost_at_size, cost_over_images, dataset_sizes
from proscale.cost.parts import ENCODER_PART, EVERYTHING, NETWORK
from proscale.cost.plots import bars, draw, quality_points
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import (
    CONVENTION,
    budget_table,
    model_tables,
    write_json,
    write_markdown,
)
from proscale.errors import ConfigError

DEFAULT_SIZE = (800, 1280)
_AXIS = "GFLOPs (multiply-adds) an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_models(parser)
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
    add_json(parser)
    add_report_arguments(parser, plot="cost by part", against="GFLOPs")
    budget = parser.add_argument_group("planning by the closed form of the encoder's cost")
    budget.add_argument(
        "--budget",
        type=_percentage,
        metavar="PERCENT",
        help="of Mask2Former's encoder, such as 55%%: list the encoders within it",
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
        raise ConfigError("--choose needs --budget, the cost that may be chosen from")
    quality = check_report_arguments(options)
    names = short_names(options.config_file)
    cfgs = {name: _configure(file, options.opts) for name, file in names.items()}
    if options.budget is not None:
        _plan(cfgs, options)
        return
    # With --dataset, --size is not used.
    sizes = dataset_sizes(options.dataset, options.images) if options.dataset else []
    costs = {name: _count(names[name], cfg, options.size, sizes) for name, cfg in cfgs.items()}

    images = "Image: {}x{} pixels, padded as the model asks for.".format(*options.size)
    if options.dataset:
        images = (
            f"Images: the first {len(sizes)} of {options.dataset}, resized as for evaluation; "
            "mean ± standard deviation."
        )
    report = "\n\n".join([CONVENTION, images, *model_tables(costs)])
    print(report)
    settings = {"images": images, "overrides": options.opts}
    models = {name: asdict(cost) for name, cost in costs.items()}
    write_json(options.json, {"unit": CONVENTION, "settings": settings, "models": models})
    write_markdown(options.markdown, report)
    if options.plot:
        _draw(costs, quality, options.plot)


def _draw(
    costs: Mapping[str, ModelCost], quality: tuple[str, Mapping[str, float]] | None, file: Path
) -> None:
    """Bars of cost by part; and quality against cost where it is known."""
    # The parts of the network and the results, without their sums.
    giga = {
        name: {
            part.name: part.multiply_adds.mean / 1e9
            for part in cost.parts
            if not part.within and part.name not in (NETWORK, EVERYTHING)
        }
        for name, cost in costs.items()
    }
    panels = [bars(giga, _AXIS)]
    # Quality is known of some models only.
    if quality:
        totals = {name: sum(parts.values()) for name, parts in giga.items()}
        panels.append(quality_points(quality, totals, _AXIS))
    draw(panels, file)


def _configure(file: str, overrides: Sequence[str]) -> CfgNode:
    # The device does not matter, but one that the machine lacks would be refused.
    with naming(file):
        return setup_cfg(file, [*overrides, "MODEL.DEVICE", "cpu"])


def _count(
    file: str, cfg: CfgNode, size: tuple[int, int], sizes: Sequence[tuple[int, int]]
) -> ModelCost:
    with naming(file):
        return cost_over_images(cfg, sizes) if sizes else cost_at_size(cfg, size)


def _plan(cfgs: dict[str, CfgNode], options: argparse.Namespace) -> None:
    if len(cfgs) > 1:
        raise ConfigError("--budget plans for one --config-file at a time")
    ((name, cfg),) = cfgs.items()
    (file,) = options.config_file
    # The closed form, not the trace: hundreds of encoders are compared.
    with naming(file):
        size = padded_size(build_without_weights(cfg), options.size)
        design = EncoderDesign.from_config(cfg, size)
    budget = f"{100 * options.budget:g}%"
    candidates = affordable(design, options.budget, max_layers=options.max_layers)
    if not candidates:
        raise ConfigError(
            f"--budget is {budget}: even one layer over the coarsest level costs more, because of "
            "all that does not depend on layers"
        )
    # Coarse to fine, as the depths of an encoder are listed.
    levels = cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    front = pareto_front(candidates)
    title = (
        f"PRO-SCALE encoders for {name} at {options.size[0]}x{options.size[1]} that cost at most "
        f"{budget} of Mask2Former's: those of the {len(candidates)} with up to "
        f"{options.max_layers} layers a stage that no other one matches at every scale."
    )
    report = "\n\n".join([CONVENTION, title, budget_table(front, sorted(levels, reverse=True))])
    print(report)
    encoders = [vars(one) for one in front]
    write_json(options.json, {"unit": CONVENTION, "budget": options.budget, "front": encoders})
    write_markdown(options.markdown, report)
    if options.choose:
        _write(options, file, candidates)


def _write(options: argparse.Namespace, file: str, found: Sequence[AffordableEncoder]) -> None:
    if options.choose not in [one.layers for one in found]:
        raise ConfigError(
            f"--choose is {','.join(map(str, options.choose))}: expected layers within --budget "
            f"{100 * options.budget:g}% and --max-layers {options.max_layers}"
        )
    # Read back and counted on a trace, to check both the file and the closed form.
    write_config(options.write, Path(file), options.choose)
    cfg = setup_cfg(str(options.write), ["MODEL.DEVICE", "cpu"])
    counted = cost_at_size(cfg, options.size).part(ENCODER_PART).multiply_adds.mean
    print(f"\n{options.write}: builds, and its encoder is counted at {counted / 1e9:.2f} GFLOPs")


def _percentage(text: str) -> float:
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
