"""``proscale flops``: cost of models, before anything is trained.

GFLOPs by part and by operator, parameters, activations, and tokens seen by each encoder layer, for
one or several configurations side by side. Neither data nor weights are needed: nothing is computed
but shapes. With --budget, the encoders of PRO-SCALE, RT-M2F and Lite-M2F that cost at most a
fraction of Mask2Former's, and what merging tokens takes off a Mix Transformer; for a detector the
encoders of PRO-SCALE that cost at most a fraction of the full one's.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from proscale.cli import arguments
from proscale.config import setup_cfg
from proscale.cost.detection_cost import DetectorDesign, affordable_detectors
from proscale.cost.encoder_cost import (
    AffordableEncoder,
    EncoderDesign,
    affordable,
    affordable_hybrids,
    affordable_lite,
    pareto_front,
    write_config,
)
from proscale.cost.flops import count_flops, padded_size
from proscale.cost.model_cost import (
    ENCODER_PART,
    EVERYTHING,
    NETWORK,
    average_cost,
    dataset_sizes,
    resize_for_test,
)
from proscale.cost.plots import draw_costs
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import (
    CONVENTION,
    budget_table,
    hybrid_table,
    lite_table,
    merging_table,
    model_tables,
    print_report,
)
from proscale.errors import ConfigError
from proscale.modeling.backbones.token_merging_config import PRESETS
from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments
from proscale.modeling.pixel_decoders.rt_detr import HybridEncoderArguments
from proscale.utils.types import Size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    arguments.add_models(parser)
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--size",
        type=arguments.parse_size,
        default=(800, 1280),
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
        "-n",
        type=arguments.positive,
        default=100,
        dest="images",
        help="images of it (default: 100)",
    )
    parser.add_argument(
        "--fused",
        action="store_true",
        help="count RT-M2F as it infers, norms and parallel branches in one convolution, and pose "
        "heads fused at each stage's resolution",
    )
    arguments.add_json(parser)
    arguments.add_report_arguments(parser, plot="cost by part", against="GFLOPs")
    budget = parser.add_argument_group("planning by the closed form of the encoder's cost")
    budget.add_argument(
        "--budget",
        type=arguments.parse_percentage,
        metavar="PERCENT",
        help="of Mask2Former's encoder, or a detector's full one, such as 55%%: list the encoders "
        "within it",
    )
    budget.add_argument(
        "--max-layers",
        type=arguments.positive,
        default=6,
        help="layers of a stage at most (default: 6)",
    )
    budget.add_argument(
        "--choose",
        type=arguments.parse_layers,
        metavar="p1,p2,p3",
        help="the configuration to write",
    )
    budget.add_argument("--write", type=Path, metavar="FILE", help="its YAML file")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    arguments.split_overrides(options)
    if (options.choose is None) != (options.write is None):
        raise ConfigError("--choose and --write go together: which configuration, and where to")
    if options.choose and options.budget is None:
        raise ConfigError("--choose needs --budget, the cost that may be chosen from")
    quality = arguments.check_report_arguments(options)
    arguments.try_outputs(write=options.write)
    # The device does not matter, but one that the machine lacks would be refused.
    overrides = [*options.opts, "MODEL.DEVICE", "cpu"]
    cfgs, files = {}, arguments.short_names(options.config_file)
    for name, file in files.items():
        with arguments.naming(file):
            cfgs[name] = setup_cfg(file, overrides)
    # Planning looks at encoders that no file describes yet.
    if options.budget is not None:
        _plan(cfgs, options)
        return
    # With --dataset, --size is not used.
    images = "Image: {}x{} pixels, padded as the model asks for.".format(*options.size)
    if any(cfg.MODEL.META_ARCHITECTURE == "PoseEstimator" for cfg in cfgs.values()):
        images += (
            " Pose estimators see the crop of one person, of MODEL.POSE.INPUT_SIZE, once: the flip "
            "test doubles it."
        )
    sizes = dataset_sizes(options.dataset, options.images) if options.dataset else []
    if options.dataset:
        images = (
            f"Images: the first {len(sizes)} of {options.dataset}, resized as for evaluation; "
            "mean ± standard deviation."
        )
    costs = {}
    for name, cfg in cfgs.items():
        with arguments.naming(files[name]):
            # Networks see resized images; results have the sizes of the files.
            resized = [(resize_for_test(size, cfg), size) for size in sizes]
            sizes_of_model = resized or [(options.size, options.size)]
            costs[name] = average_cost(cfg, sizes_of_model, fused=options.fused)
    settings = {"images": images, "overrides": options.opts}
    models = {name: asdict(cost) for name, cost in costs.items()}
    document = {"unit": CONVENTION, "settings": settings, "models": models}
    tables = [CONVENTION, images, *model_tables(costs)]
    print_report(tables, document, options.json, options.markdown)
    if not options.plot:
        return
    # Bars of the parts of the network and the results, without their sums.
    giga = {
        name: {
            part: part_cost.multiply_adds.mean / 1e9
            for part, part_cost in cost.by_part.items()
            if part not in (NETWORK, EVERYTHING)
        }
        for name, cost in costs.items()
    }
    totals = {name: sum(parts.values()) for name, parts in giga.items()}
    label = "GFLOPs (multiply-adds) an image"
    draw_costs(options.plot, label, giga, totals, quality=quality)


def _plan(cfgs: dict[str, CfgNode], options: argparse.Namespace) -> None:
    """List the encoders within the budget, and write the chosen one."""
    if len(cfgs) > 1:
        raise ConfigError("--budget plans for one --config-file at a time")
    ((name, cfg),) = cfgs.items()
    (file,) = options.config_file
    plan = _plan_detector if cfg.MODEL.META_ARCHITECTURE == "Detector" else _plan_segmenter
    candidates, levels, tables, document = plan(file, cfg, options)
    budget = f"{100 * options.budget:g}%"
    if not candidates:
        raise ConfigError(
            f"--budget is {budget}: even one layer over the coarsest level costs more, because of "
            "all that does not depend on layers"
        )
    front = pareto_front(candidates)
    is_detector = plan is _plan_detector
    whole = "the full encoder's" if is_detector else "Mask2Former's"
    title = (
        f"PRO-SCALE encoders for {name} at {options.size[0]}x{options.size[1]} that cost at most "
        f"{budget} of {whole}: those of the {len(candidates)} with up to "
        f"{options.max_layers} layers a stage that no other one matches at every scale."
    )
    tables = [CONVENTION, title, budget_table(front, levels, whole), *tables]
    encoders = [vars(one) for one in front]
    document = {"unit": CONVENTION, "budget": options.budget, "front": encoders, **document}
    print_report(tables, document, options.json, options.markdown)
    if not options.choose:
        return
    if options.choose not in [one.layers for one in candidates]:
        raise ConfigError(
            f"--choose is {arguments.spell_layers(options.choose)}: expected layers within "
            f"--budget {budget} and --max-layers {options.max_layers}"
        )
    # Read back and counted on a trace, to check both the file and the closed form.
    layers = list(options.choose)
    keys: dict[str, dict] = {
        "SEM_SEG_HEAD": {"PIXEL_DECODER_NAME": "PROSCALE"},
        "PROSCALE": {"PROSCALE_NUM_LAYERS": layers},
    }
    if is_detector:
        keys = {"DETECTOR": {"ENCODER": "proscale", "PROSCALE_NUM_LAYERS": layers}}
    write_config(options.write, Path(file), keys)
    cfg = setup_cfg(str(options.write), ["MODEL.DEVICE", "cpu"])
    cost = average_cost(cfg, [(options.size, options.size)])
    counted = cost.by_part[ENCODER_PART].multiply_adds.mean
    print(f"\n{options.write}: builds, and its encoder is counted at {counted / 1e9:.2f} GFLOPs")


# Candidates, names of the levels from coarse to fine, further tables, and parts of the document.
_Plan = tuple[list[AffordableEncoder], list[str], list[str], dict[str, Any]]


def _plan_detector(file: str, cfg: CfgNode, options: argparse.Namespace) -> _Plan:
    with arguments.naming(file):
        size = padded_size(build_without_weights(cfg), options.size)
        design = DetectorDesign.from_config(cfg, size)
    candidates = affordable_detectors(
        design,
        options.budget,
        full_layers=cfg.MODEL.DETECTOR.ENC_LAYERS,
        max_layers=options.max_layers,
    )
    return candidates, list(design.names), [], {}


def _plan_segmenter(file: str, cfg: CfgNode, options: argparse.Namespace) -> _Plan:
    # The closed form, not the trace: hundreds of encoders are compared.
    with arguments.naming(file):
        size = padded_size(build_without_weights(cfg), options.size)
        design = EncoderDesign.from_config(cfg, size)
        # As wide as the pyramid, for whatever decoder the file has.
        hybrid = replace(HybridEncoderArguments.from_config(cfg), d_model=design.width)
        order = InterleavingArguments.from_config(cfg)
    candidates = affordable(design, options.budget, max_layers=options.max_layers)
    tables: list[str] = []
    document: dict[str, Any] = {}
    hybrids = affordable_hybrids(design, hybrid, options.budget)
    if hybrids:
        title = "RT-M2F (MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME RTDETRPixelDecoder) within it."
        tables += [title, hybrid_table(hybrids)]
        document["rt_m2f"] = [vars(one) for one in hybrids]
    lite = affordable_lite(design, order, options.budget, max_layers=options.max_layers)
    if lite:
        title = "Lite-M2F (MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME LiteDETRPixelDecoder) within it."
        tables += [title, lite_table(lite)]
        document["lite_m2f"] = [vars(one) for one in lite]
    if cfg.MODEL.BACKBONE.NAME == "MixVisionTransformer":
        backbones = _merged_backbones(cfg, options.size)
        title = "Each of them with any token merging of the backbone (MODEL.MIT.TOKEN_MERGING)."
        tables += [title, merging_table(backbones)]
        document["backbone_by_token_merging"] = backbones
    # Coarse to fine, as the depths of an encoder are listed.
    levels = cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    return candidates, sorted(levels, reverse=True), tables, document


def _merged_backbones(cfg: CfgNode, size: Size) -> dict[str, int]:
    """Multiply-adds of the backbone with each preset of token merging."""
    backbones = {}
    for name in PRESETS:
        merged = cfg.clone()
        merged.defrost()
        merged.MODEL.MIT.TOKEN_MERGING = name
        backbones[name] = count_flops(build_without_weights(merged), size).by_module["backbone"]
    return backbones
