"""``proscale compare-merging``: a trained model with every kind of token merging.

The same weights of a model with the backbone MixVisionTransformer run unmerged, with every preset
of SegFormer++ and, unless they estimate poses, with halved images on DATASETS.TEST: mIoU or PCK,
agreement with the unmerged prediction, multiply-adds and time, side by side. Times are medians of
calls in turns in one process.
"""

import argparse
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb

from proscale.benchmark.agreement import PoseAgreement, SemanticAgreement
from proscale.benchmark.latency import TOTAL
from proscale.benchmark.machine import describe_machine
from proscale.benchmark.merging import (
    DOWNSAMPLE,
    MergedModel,
    compare_merging,
    draw_merged_tokens,
    merged_maps,
)
from proscale.checkpoint import check_weights, load_weights
from proscale.cli.arguments import (
    add_json,
    add_model,
    add_overrides,
    naming,
    positive,
    try_outputs,
    weights_override,
)
from proscale.config import setup_cfg
from proscale.cost.flops import padded_size
from proscale.cost.model_cost import BACKBONE
from proscale.cost.tables import markdown_table, write_json
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.modeling.backbones.token_merging_config import NO_MERGING

PICTURES = (".png", ".jpg", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_model(parser, "its weights")
    parser.add_argument(
        "--repeats",
        type=positive,
        default=5,
        help="calls that count, of each kind (default: %(default)s)",
    )
    add_json(parser)
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"draw which tokens of the first image are merged: {', '.join(PICTURES)}",
    )
    parser.add_argument(
        "--without-photo",
        action="store_true",
        help="draw on white, for data sets whose images may not be passed on",
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.picture is not None and options.picture.suffix not in PICTURES:
        raise ConfigError(f"--picture is {options.picture}: expected {', '.join(PICTURES)}")
    try_outputs(json=options.json, picture=options.picture)
    # A missing file is noticed before any model is built.
    cfg = setup_cfg(options.config_file, [*options.opts, *weights_override(options)])
    check_weights(cfg, resume=False, required=True)
    dataset = cfg.DATASETS.TEST[0]

    with naming(options.config_file):
        merged = MergedModel(cfg, lambda model: load_weights(model, cfg))
        loader = Trainer.build_test_loader(cfg, dataset)
        results = compare_merging(merged, loader, dataset, repeats=options.repeats)
    # Speeds are relative to the unmerged model.
    unmerged, rows, merging = results[NO_MERGING], [], {}
    kind = PoseAgreement if merged.is_pose else SemanticAgreement
    metrics, header = kind.metrics, kind.header
    for name, result in results.items():
        row = [name, *(f"{result.metrics[metric]:.2f}" for metric in metrics)]
        row.append(f"{result.agreement:.2f} %")
        row.append(f"{result.multiply_adds / 1e9:.2f}")
        # Merging speeds up the backbone alone, of which the whole image gains a part.
        for part in (BACKBONE, TOTAL):
            seconds = result.times[part].median
            row += [f"{1000 * seconds:.0f}", f"{unmerged.times[part].median / seconds:.2f}×"]
        rows.append(row)
        times = {part: timing.as_dict() for part, timing in result.times.items()}
        merging[name] = {
            "metrics": dict(result.metrics),
            "agreement": result.agreement,
            "multiply_adds": result.multiply_adds,
            "seconds": times,
        }
    one = "person" if merged.is_pose else "image"
    headers = ["merging", *metrics, header, "GFLOPs"]
    headers += ["backbone, ms", "backbone's speed", f"{one}, ms", f"{one}'s speed"]
    print(f"{dataset}\n\n{markdown_table(rows, headers, text=('merging',))}")
    settings = {
        "config": options.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "overrides": options.opts,
        "dataset": dataset,
        "repeats": options.repeats,
    }
    machine = describe_machine(merged.device)
    write_json(options.json, {"machine": machine, "settings": settings, "merging": merging})
    if options.picture is None:
        return
    # Presets alone merge tokens; halved images have none to show.
    sample = next(iter(loader))[0]
    image = sample["image"]
    photo = convert_image_to_rgb(image.permute(1, 2, 0), cfg.INPUT.FORMAT)
    drawn = [name for name in merged.variants if name not in (NO_MERGING, DOWNSAMPLE)]
    draw_merged_tokens(
        options.picture,
        np.full_like(photo, 255) if options.without_photo else photo,
        {name: merged_maps(merged.variant(name), sample) for name in drawn},
        padded_size=padded_size(merged.model, image.shape[-2:]),
    )
    print(f"\nMerged tokens: {options.picture}")
