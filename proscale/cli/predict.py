"""``proscale predict``: images and videos through a trained model, and a page to look at.

INPUT are images, videos, folders and patterns. OUTPUT gets pictures with the segments drawn over
them, the results in COCO's panoptic format, as COCO's instance results or as label images, and
index.html, a single file that shows everything in a browser, without a server. A file that cannot
be read, or whose results cannot be written, is reported and skipped; the exit status is then 1.
"""

import argparse
import sys
from pathlib import Path

from proscale.cli.arguments import (
    parse_milliseconds,
    parse_percentage,
    positive,
    split_at_key,
)
from proscale.config import setup_cfg
from proscale.errors import ConfigError
from proscale.predict import TASKS, Predictor
from proscale.predict.files import VIDEO_SAMPLES, FilePredictor, find_sources, first_image
from proscale.predict.outputs import OutputFolder, try_output_folder
from proscale.predict.predictor import choose_task
from proscale.utils.malloc import disable_malloc_trim

INSTANCE_THRESHOLD = 0.5
"""Default score below which instances are left out; a model gives a hundred of an image."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        f"Every frame of a video is predicted into a video; {VIDEO_SAMPLES} of them, evenly "
        "spread, have results like images."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its weights")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder")
    parser.add_argument(
        "--task", choices=TASKS, help="which results (default: the first of these that it gives)"
    )
    parser.add_argument(
        "--score-threshold",
        type=_fraction,
        metavar="SCORE",
        help="leave out segments that score less, 0 to 1 (default: 0 for panoptic segments, which "
        "have passed MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD; "
        f"{INSTANCE_THRESHOLD} for instances; semantic results have no scores)",
    )
    numbers = {
        "--batch-size": (1, "images in the model together, as far as they have one size"),
        "--workers": (2, "threads that read, and that draw and write"),
    }
    for name, (default, meaning) in numbers.items():
        text = f"{meaning} (default: %(default)s)"
        parser.add_argument(name, type=positive, default=default, metavar="N", help=text)
    parser.add_argument(
        "--latency",
        type=parse_milliseconds,
        metavar="TIME",
        help="of an elastic PRO-SCALE compute the most layers with which the first image takes at "
        "most this, such as 300ms, measured before all others",
    )
    parser.add_argument(
        "--budget",
        type=parse_percentage,
        metavar="PERCENT",
        help="the same by multiply-adds of the encoder, at most this of Mask2Former's, such as "
        "55%%",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder or pattern; KEY VALUE pairs are configuration overrides",
    )
    parser.set_defaults(opts=[])


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    inputs, overrides = split_at_key([*options.inputs, *options.opts])
    disable_malloc_trim()
    sources = find_sources(inputs, leave_out=options.output)
    cfg = setup_cfg(options.config_file, overrides)
    task = choose_task(cfg, options.task)
    threshold = options.score_threshold
    if task == "semantic" and threshold is not None:
        raise ConfigError(
            "--score-threshold is for panoptic and instance results: semantic ones have no scores"
        )
    if threshold is None:
        threshold = INSTANCE_THRESHOLD if task == "instance" else 0.0
    try_output_folder(options.output, task)
    predictor = Predictor(cfg, options.weights, task=task, score_threshold=threshold)
    output = OutputFolder(
        options.output,
        task=task,
        classes=predictor.classes,
        dataset=cfg.DATASETS.TEST[0],
        title=f"Predictions of {Path(options.config_file).stem}",
    )
    if options.latency or options.budget:
        image = first_image(sources)
        chosen = predictor.choose_budget(image, latency=options.latency, share=options.budget)
        print("{} (the first image, {}x{} pixels)".format(chosen, *image.shape[:2]))
    files = FilePredictor(predictor, output, batch_size=options.batch_size, workers=options.workers)
    failures = files.predict(sources)
    print(f"{len(sources) - len(failures)} of {len(sources)} files: {output.page}")
    if failures:
        sys.exit(f"proscale: {len(failures)} of {len(sources)} files could not be read or written")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 to 1")
    return value
