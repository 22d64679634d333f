"""``proscale demo``: from nothing to a panoptic quality and pictures, on the CPU in minutes.

Generates a data set of shapes, trains a small model on it with the same trainer as everything else,
evaluates it on held-out images, and compares its cost with Mask2Former's.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter
from PIL import Image
from tabulate import tabulate
from torch import nn

from proscale.cli.arguments import add_overrides
from proscale.config import check_output_dir, setup_cfg, without_trust
from proscale.cost.encoder_cost import MASK2FORMER_LAYERS
from proscale.cost.flops import count_flops
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import model_name
from proscale.data import build_mapper
from proscale.data.datasets.shapes import DEFAULT_ROOT, generate
from proscale.data.formats.image_file import read_image, read_panoptic_png
from proscale.engine.console import ProgressLine
from proscale.engine.output_dir import remove_training, writing_to
from proscale.engine.trainer import Trainer
from proscale.predict.drawing import side_by_side
from proscale.predict.pictures import draw_panoptic

CONFIG_FILE = "configs/demo/proscale_r18_111.yaml"
NUM_PICTURES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--config-file", default=CONFIG_FILE, help="model and training")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    cfg = setup_cfg(options.config_file, [*options.opts, "OUTPUT_DIR", str(options.output)])
    check_output_dir(cfg)
    with writing_to(cfg.OUTPUT_DIR):
        _run(cfg, options.output)


def _run(cfg: CfgNode, output: Path) -> None:
    start = time.monotonic()
    # The terminal has the demo's own lines alone.
    handler = logging.FileHandler(output / "log.txt", mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    for logger in map(logging.getLogger, ("detectron2", "fvcore", "proscale", "py.warnings")):
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    # An earlier demo is there to be repeated.
    remove_training(cfg.OUTPUT_DIR)
    (output / "config.yaml").write_text(without_trust(cfg).dump())
    logging.getLogger("proscale").info("Environment info:\n%s", collect_env_info())
    seed_all_rng(cfg.SEED)

    # The same images every time; a folder that is there is kept.
    dataset = generate(DEFAULT_ROOT)
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    print(
        f"[1/4] Data: {len(DatasetCatalog.get(train))} training and "
        f"{len(DatasetCatalog.get(test))} held-out images in {dataset}"
    )
    name = f"{model_name(cfg)} with ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    trainer = _DemoTrainer(cfg)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"[2/4] Training {name}, {parameters / 1e6:.1f} M parameters, for "
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    )
    trainer.train()
    print(f"[3/4] Evaluating and drawing held-out images of {test}")
    # The trainer evaluates nothing itself, so that its progress lines stay together.
    results = Trainer.test(cfg, trainer.model)
    _draw(cfg, trainer.model, output / "pictures")
    print("[4/4] Counting multiply-adds\n")
    print(_table(name, cfg, trainer.model, results["panoptic_seg"]))
    print(
        f"\nPictures (image, ground truth, prediction): {output / 'pictures'}\n"
        f"Weights: {output / 'model_final.pth'}, curves: {output / 'metrics.json'}, "
        f"every class: {output / 'inference' / test / 'panoptic_seg.json'}\n"
        f"{time.monotonic() - start:.0f} seconds in all"
    )


class _DemoTrainer(Trainer):
    """The trainer with a short progress line; evaluation is the demo's own step."""

    def build_writers(self) -> list[EventWriter]:
        metrics = Path(self.cfg.OUTPUT_DIR, "metrics.json")
        return [ProgressLine(0, self.max_iter), JSONWriter(str(metrics))]


@torch.no_grad()
def _draw(cfg: CfgNode, model: nn.Module, folder: Path) -> None:
    """Draw the first test images, each beside its ground truth and the model's prediction."""
    folder.mkdir(parents=True, exist_ok=True)
    name = cfg.DATASETS.TEST[0]
    metadata, mapper = MetadataCatalog.get(name), build_mapper(cfg, is_train=False)
    model.eval()
    # Side by side: image, annotation, prediction.
    for entry in DatasetCatalog.get(name)[:NUM_PICTURES]:
        (result,) = model([mapper(entry)])
        found, segments = result["panoptic_seg"]
        image = read_image(entry["file_name"], "RGB")
        annotated = torch.from_numpy(read_panoptic_png(entry["pan_seg_file_name"]).astype("int64"))
        # Small images are enlarged, so that names of segments can be read.
        scale = max(1, 360 // image.shape[0])
        pictures = [
            image.repeat(scale, axis=0).repeat(scale, axis=1),
            draw_panoptic(image, annotated, entry["segments_info"], metadata, scale=scale),
            draw_panoptic(image, found, segments, metadata, scale=scale),
        ]
        picture = Image.fromarray(side_by_side(pictures))
        picture.save(folder / f"{Path(entry['file_name']).stem}.png")


def _table(name: str, cfg: CfgNode, model: nn.Module, quality: dict[str, float]) -> str:
    """Quality and cost of the model beside the cost of Mask2Former with the same backbone."""
    size = (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE)
    ours = count_flops(model, size)
    # The same backbone and decoder, with Mask2Former's encoder as published.
    baseline = cfg.clone()
    baseline.defrost()
    baseline.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    baseline.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = MASK2FORMER_LAYERS
    # Only its cost is wanted, so that it needs no weights.
    theirs = count_flops(build_without_weights(baseline), size)
    pairs = ((ours.encoder, theirs.encoder), (ours.total, theirs.total))
    scores = [f"{quality[key]:.1f}" for key in ("PQ", "PQ_th", "PQ_st")]
    mine, others = (
        [f"{count.encoder / 1e9:.2f}", f"{count.total / 1e9:.2f}"] for count in (ours, theirs)
    )
    saved = [f"−{100 * (1 - number / other):.0f} %" for number, other in pairs]
    return tabulate(
        [
            [name, *scores, *mine],
            ["Mask2Former, same backbone (not trained)", "", "", "", *others],
            ["difference", "", "", "", *saved],
        ],
        headers=["", "PQ", "things", "stuff", "encoder GFLOPs", "total GFLOPs"],
        stralign="right",
        disable_numparse=True,
    )
