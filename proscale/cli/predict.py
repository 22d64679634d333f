"""``proscale predict``: images and videos through a trained model, and a page to look at.

INPUT are images, videos, folders and patterns. OUTPUT gets pictures with the predictions drawn over
them, the results in COCO's panoptic format, as COCO's results of instances, boxes or keypoints, or
as label images, and index.html, a single file that shows everything in a browser, without a server.
A pose estimator takes the persons from a file of boxes or from a second model. A file that cannot
be read, or whose results cannot be written, is reported and skipped; the exit status is then 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from proscale.cli.arguments import (
    add_model,
    naming,
    parse_milliseconds,
    parse_percentage,
    positive,
    split_at_key,
    weights_override,
)
from proscale.config import class_dataset, setup_cfg
from proscale.errors import ConfigError, DataError
from proscale.predict import TASKS, Predictor
from proscale.predict.files import VIDEO_SAMPLES, FilePredictor, find_sources, first_image
from proscale.predict.outputs import OutputFolder, Source, try_output_folder
from proscale.predict.persons import read_boxes
from proscale.predict.predictor import choose_task
from proscale.utils.malloc import disable_malloc_trim

THRESHOLDS = {"instance": 0.5, "detection": 0.3}
"""Default scores below which instances and boxes are left out; a model gives hundreds of an image.
The scores of a detector's classes, which are trained by the focal loss, are the lower ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        f"Every frame of a video is predicted into a video; {VIDEO_SAMPLES} of them, evenly "
        "spread, have results like images."
    )
    add_model(parser, "its weights")
    help_ = "folder (default: %(default)s)"
    folder = Path("output/predictions")
    parser.add_argument("--output", default=folder, type=Path, metavar="DIR", help=help_)
    parser.add_argument(
        "--task", choices=TASKS, help="which results (default: the first of these that it gives)"
    )
    parser.add_argument(
        "--score-threshold",
        type=_fraction,
        metavar="SCORE",
        help="leave out what scores less, 0 to 1 (default: 0 for panoptic segments, which have "
        "passed MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD, and for poses; "
        "{instance} for instances, {detection} for boxes; semantic results have no "
        "scores)".format(**THRESHOLDS),
    )
    numbers = {
        "--batch-size": (1, "images in the model together, as far as they have one size"),
        "--workers": (2, "threads that read, and that draw and write"),
    }
    for name, (default, meaning) in numbers.items():
        text = f"{meaning} (default: %(default)s)"
        parser.add_argument(name, type=positive, default=default, metavar="N", help=text)
    persons = parser.add_argument_group("persons of a pose estimator, by one of these")
    persons.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="a detector's boxes, as COCO's results: image_id, category_id, bbox, score",
    )
    persons.add_argument(
        *("--person-model", "--person-config"),
        dest="person_config_file",
        metavar="MODEL",
        help="a panoptic, instance or detection model, as --model",
    )
    persons.add_argument("--person-weights", metavar="FILE", help="its weights, as --weights")
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
    cfg = setup_cfg(options.config_file, [*overrides, *weights_override(options)])
    task = choose_task(cfg, options.task)
    threshold = options.score_threshold
    if task == "semantic" and threshold is not None:
        raise ConfigError("--score-threshold is for results with scores: semantic ones have none")
    if threshold is None:
        threshold = THRESHOLDS.get(task, 0.0)
    _check_persons(options, task, sources)
    try_output_folder(options.output, task)
    predictor = Predictor(
        cfg,
        task=task,
        score_threshold=threshold,
        persons=_person_predictor(options),
    )
    boxes = None
    if options.boxes is not None:
        boxes = read_boxes(options.boxes, predictor.classes.category_ids)
        # A file without any says that there is nobody.
        if boxes and not boxes.keys() & {source.image_id for source in sources}:
            raise DataError(
                f"{options.boxes}: no boxes of persons in the images: expected image_id "
                f"{_some_ids(sources)}"
            )
    output = OutputFolder(
        options.output,
        task=task,
        classes=predictor.classes,
        dataset=class_dataset(cfg),
        title=f"Predictions of {Path(options.config_file).stem}",
    )
    if options.latency or options.budget:
        image = first_image(sources)
        chosen = predictor.choose_budget(image, latency=options.latency, share=options.budget)
        print("{} (the first image, {}x{} pixels)".format(chosen, *image.shape[:2]))
    files = FilePredictor(
        predictor, output, batch_size=options.batch_size, workers=options.workers, boxes=boxes
    )
    failures = files.predict(sources)
    print(f"{len(sources) - len(failures)} of {len(sources)} files: {output.page}")
    if failures:
        sys.exit(f"proscale: {len(failures)} of {len(sources)} files could not be read or written")


def _check_persons(options: argparse.Namespace, task: str, sources: Sequence[Source]) -> None:
    """Refuse options for persons that do not go together; before any model is built."""
    config, weights = options.person_config_file, options.person_weights
    given = [options.boxes is not None, config is not None or weights is not None]
    if task != "keypoints":
        if any(given):
            raise ConfigError(
                f"--boxes and --person-model are for pose estimators: the task is {task}"
            )
        return
    if sum(given) != 1:
        raise ConfigError(
            "a pose estimator needs the boxes of persons: expected either --boxes FILE, or "
            "--person-model MODEL, which finds persons"
        )
    if given[1] and config is None:
        raise ConfigError(
            "--person-weights are given alone: expected --person-model, too, with their "
            "configuration"
        )
    videos = [source for source in sources if source.image_id is None]
    if given[0] and videos:
        raise ConfigError(
            f"--boxes has no frames of videos such as {videos[0].path}: expected images, or "
            "--person-model"
        )


def _person_predictor(options: argparse.Namespace) -> Predictor | None:
    if options.person_config_file is None:
        return None
    overrides = weights_override(options, "person_")
    with naming(options.person_config_file):
        cfg = setup_cfg(options.person_config_file, overrides)
        task = choose_task(cfg, None)
        return Predictor(cfg, task=task, score_threshold=THRESHOLDS.get(task, 0.0))


def _some_ids(sources: Sequence[Source]) -> str:
    """The ids of the first images with their names, for messages."""
    some = [f"{source.image_id} ({source.path.name})" for source in sources[:3]]
    return ", ".join(some) + " …" * (len(sources) > 3)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 to 1")
    return value
