"""``proscale train-gate``: let an elastic PRO-SCALE choose a budget for each image.

Predicts images of DATASETS.TRAIN with every exit, and trains one linear layer to tell from an image
which exit is worth its layers. OUTPUT is the model with the gate, for MODEL.PROSCALE.GATE. Images
that were held out tell what the gate's choices give.
"""

import argparse
from pathlib import Path

from detectron2.modeling import build_model

from proscale.checkpoint import DESCRIPTION, ModelDescription, check_weights, load_weights
from proscale.checkpoint.files import WRITABLE, check_suffix, write_checkpoint
from proscale.cli.arguments import (
    add_model,
    add_overrides,
    naming,
    parse_budgets,
    positive,
    spell_layers,
    weights_override,
)
from proscale.config import setup_cfg
from proscale.cost.tables import markdown_table
from proscale.engine.gate_training import collect_quality, train_gate
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError
from proscale.modeling import MaskFormer
from proscale.utils.whole_files import try_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_model(parser, "its weights")
    help_ = "budgets to choose from, such as 1,1,1:2,2,2:3,3,3 (default: these)"
    parser.add_argument(
        "--exits", type=parse_budgets, default="1,1,1:2,2,2:3,3,3", metavar="BUDGETS", help=help_
    )
    help_ = "PQ, from 0 to 1, that a layer of the encoder has to be worth (default: %(default)s)"
    parser.add_argument("--beta", type=float, default=0.001, help=help_)
    help_ = "images to predict at most (default: %(default)s)"
    parser.add_argument("-n", type=positive, default=2000, dest="images", help=help_)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="to write")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    if not 0 <= options.beta < 1:
        raise ConfigError(f"--beta is {options.beta}: expected numbers from 0, below 1")
    exits = options.exits
    if len(exits) < 2 or len(set(exits)) < len(exits):
        raise ConfigError("--exits: expected two budgets or more, each once, such as 1,1,1:3,3,3")
    check_suffix(options.output, WRITABLE)
    try_file(options.output, "--output")
    cfg = setup_cfg(
        options.config_file,
        [*options.opts, *weights_override(options), "MODEL.PROSCALE.GATE", "[]"],
    )
    check_weights(cfg, resume=False, required=True)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is (): expected a panoptic data set")
    dataset = cfg.DATASETS.TRAIN[0]
    with naming(options.config_file):
        model = build_model(cfg).eval()
        if not isinstance(model, MaskFormer) or not model.panoptic_on:
            raise ConfigError(
                "MODEL.MASK_FORMER.TEST.PANOPTIC_ON: expected a MaskFormer with True, because PQ "
                "is compared"
            )
        for budget in exits:
            model.progressive_encoder.check_budget(budget)
        load_weights(model, cfg)
        loader = Trainer.build_test_loader(cfg, dataset)
        data = collect_quality(model, exits, loader, dataset, limit=options.images)
    gate, report = train_gate(data, exits, beta=options.beta)
    prefix = "sem_seg_head.pixel_decoder.gate."
    state = model.state_dict() | {prefix + name: t for name, t in gate.state_dict().items()}
    gated = cfg.clone()
    gated.defrost()
    gated.MODEL.PROSCALE.GATE = [list(budget) for budget in exits]
    texts = {DESCRIPTION: ModelDescription.of(gated).text()}
    write_checkpoint(options.output, state, container="model", texts=texts)

    rows = [
        [
            spell_layers(budget),
            f"{sum(budget)}",
            f"{100 * report.of_exits[budget]:.2f}",
            f"{100 * report.chosen[budget]:.0f} %",
        ]
        for budget in exits
    ]
    rows.append(["gate", f"{report.layers:.2f}", f"{100 * report.quality:.2f}", ""])
    headers = ["budget", "layers", "mean PQ of an image", "chosen by the gate"]
    images = len(data.tokens)
    print(f"{images} images of {dataset}, of which each fifth was held out and is counted here\n")
    print(markdown_table(rows, headers, text=("budget",)))
    key = ",".join(f"[{spell_layers(budget)}]" for budget in exits)
    print(f"\n{options.output}: use it with MODEL.PROSCALE.GATE [{key}]")
