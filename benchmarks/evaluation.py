"""Speed of panoptic evaluation, in turns with COCO's ``panopticapi`` on the same images.

Scenes are cells of random outline, of COCO's number and size; predictions are the ground truth
moved, with some segments lost or of another category.
"""

import argparse
import contextlib
import importlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog

from proscale.benchmark.latency import Timing, measure
from proscale.benchmark.machine import print_header
from proscale.cli.arguments import add_json, parse_size, positive
from proscale.cost.tables import markdown_table, write_json
from proscale.data.formats.image_file import MAX_ID, read_panoptic_png, write_panoptic_png
from proscale.evaluation import CocoPanopticEvaluator, PanopticQuality
from proscale.utils.background import BackgroundWorkers

MEMORY = "maps in memory"
EVALUATOR = "evaluator, ground truth from PNG"
FILES = "ground truth and predictions from PNG"
PANOPTICAPI = "panopticapi, one process"
PANOPTICAPI_PARALLEL = "panopticapi, all cores"

#: Scenes that differ; more images are these again.
SCENES = 50
SEGMENTS = 12
CATEGORIES = [{"id": 2 * i + 1, "name": f"c{i}", "isthing": int(i < 80)} for i in range(133)]
_DATASET = "evaluation_benchmark"


@dataclass(frozen=True)
class EvaluationSettings:
    """The images that are scored.

    Attributes:
        images: scored in every call.
        size: (height, width) of an image, pixels.
        workers: threads of this project's evaluator.
    """

    images: int
    size: tuple[int, int]
    workers: int


class Scenes:
    """A generated data set with predictions, in memory and on disk.

    Args:
        folder: where the files go; it exists.
        settings: see :class:`EvaluationSettings`.
    """

    def __init__(self, folder: Path, settings: EvaluationSettings):
        random = np.random.default_rng(0)
        self.folder, self.settings = folder, settings
        scenes = [_scene(random, settings.size) for _ in range(min(SCENES, settings.images))]
        self.maps = {"true": [s[0] for s in scenes], "predicted": [s[2] for s in scenes]}
        self.segments = {"true": [s[1] for s in scenes], "predicted": [s[3] for s in scenes]}
        for kind, maps in self.maps.items():
            (folder / kind).mkdir()
            for number, ids in enumerate(maps):
                write_panoptic_png(folder / kind / f"{number}.png", ids)
            annotations = [
                {
                    "image_id": image,
                    "file_name": f"{image % len(maps)}.png",
                    "segments_info": self.segments[kind][image % len(maps)],
                }
                for image in range(settings.images)
            ]
            content = {"images": [], "annotations": annotations, "categories": CATEGORIES}
            (folder / f"{kind}.json").write_text(json.dumps(content))

    def score_maps(self) -> PanopticQuality:
        """Count all images from arrays."""
        quality = PanopticQuality(CATEGORIES)
        for image in range(self.settings.images):
            self._count(quality, image, *(self._map(kind, image) for kind in self.maps))
        return quality

    def score_files(self) -> PanopticQuality:
        """Count all images, both maps read from PNG files, on threads."""
        total = PanopticQuality(CATEGORIES)
        background = BackgroundWorkers(total.merge, num_workers=self.settings.workers)
        for image in range(self.settings.images):
            background.submit(partial(self._score_file, image))
        background.finish()
        return total

    def run_evaluator(self) -> float:
        """PQ by the evaluator, as in an evaluation of a model."""
        with _registered(self.folder):
            evaluator = CocoPanopticEvaluator(_DATASET, num_workers=self.settings.workers)
            things = {c["id"] for c in CATEGORIES if c["isthing"]}
            contiguous = {c["id"]: i for i, c in enumerate(CATEGORIES)}
            for image in range(self.settings.images):
                number = image % len(self.maps["true"])
                segments = [
                    {
                        "id": s["id"],
                        "isthing": s["category_id"] in things,
                        "category_id": contiguous[s["category_id"]],
                    }
                    for s in self.segments["predicted"][number]
                ]
                ids = torch.from_numpy(self._map("predicted", image))
                evaluator.process(
                    [{"image_id": image, "file_name": str(image)}],
                    [{"panoptic_seg": (ids, segments)}],
                )
            return evaluator.evaluate()["panoptic_seg"]["PQ"]

    def run_panopticapi(self, evaluation: ModuleType, *, parallel: bool) -> float:
        """PQ by ``panopticapi``, all of it from files."""
        annotated, predicted = (
            json.loads((self.folder / f"{kind}.json").read_text()) for kind in self.maps
        )
        pairs = list(zip(annotated["annotations"], predicted["annotations"], strict=True))
        by_id = {category["id"]: category for category in annotated["categories"]}
        folders = str(self.folder / "true"), str(self.folder / "predicted")
        with contextlib.redirect_stdout(io.StringIO()):
            if parallel:
                counts = evaluation.pq_compute_multi_core(pairs, *folders, by_id)
            else:
                counts = evaluation.pq_compute_single_core(0, pairs, *folders, by_id)
        return 100 * counts.pq_average(by_id, isthing=None)[0]["pq"]

    def _map(self, kind: str, image: int) -> np.ndarray:
        return self.maps[kind][image % len(self.maps[kind])]

    def _score_file(self, image: int) -> PanopticQuality:
        name = f"{image % len(self.maps['true'])}.png"
        quality = PanopticQuality(CATEGORIES)
        maps = (read_panoptic_png(self.folder / kind / name) for kind in self.maps)
        self._count(quality, image, *maps)
        return quality

    def _count(
        self, quality: PanopticQuality, image: int, true_map: np.ndarray, predicted_map: np.ndarray
    ) -> None:
        number = image % len(self.maps["true"])
        quality.update(
            predicted_map,
            self.segments["predicted"][number],
            true_map,
            self.segments["true"][number],
        )


def benchmark_evaluation(
    settings: EvaluationSettings, folder: Path, *, repeats: int
) -> dict[str, Timing]:
    """Time the scoring of all images, first of all from :data:`MEMORY`.

    Args:
        settings: see :class:`EvaluationSettings`.
        folder: for the generated files.
        repeats: calls that count, of each.

    Returns:
        seconds for all images; those of ``panopticapi`` where it is installed.

    Raises:
        RuntimeError: PQ differs between two of them, so that they did not do the same.
    """
    scenes = Scenes(folder, settings)
    runs: dict[str, Callable[[], float]] = {
        MEMORY: lambda: scenes.score_maps().results().all.pq,
        EVALUATOR: scenes.run_evaluator,
        FILES: lambda: scenes.score_files().results().all.pq,
    }
    evaluation = panopticapi()
    if evaluation is not None:
        runs[PANOPTICAPI] = partial(scenes.run_panopticapi, evaluation, parallel=False)
        runs[PANOPTICAPI_PARALLEL] = partial(scenes.run_panopticapi, evaluation, parallel=True)
    expected = runs[MEMORY]()
    for name, run in runs.items():
        found = run()
        if abs(found - expected) > 1e-9:
            raise RuntimeError(f"PQ is {expected} by {MEMORY!r}, but {found} by {name!r}")
    return measure(runs, repeats=repeats, warmup=0)  # all of them ran just now


def panopticapi() -> ModuleType | None:
    """COCO's evaluator, or None where it is not installed."""
    try:
        return importlib.import_module("panopticapi.evaluation")
    except ModuleNotFoundError:
        return None


@contextlib.contextmanager
def _registered(folder: Path) -> Iterator[None]:
    contiguous = {c["id"]: i for i, c in enumerate(CATEGORIES)}
    MetadataCatalog.get(_DATASET).set(
        panoptic_json=str(folder / "true.json"),
        panoptic_root=str(folder / "true"),
        thing_dataset_id_to_contiguous_id={
            c["id"]: contiguous[c["id"]] for c in CATEGORIES if c["isthing"]
        },
        stuff_dataset_id_to_contiguous_id={
            c["id"]: contiguous[c["id"]] for c in CATEGORIES if not c["isthing"]
        },
    )
    try:
        yield
    finally:
        MetadataCatalog.remove(_DATASET)


def _scene(
    random: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, list[dict], np.ndarray, list[dict]]:
    """True map and segments, predicted map and segments; the maps (H, W) int32."""
    height, width = size
    rows, columns = np.indices(size, dtype=np.float32)
    wobble = [cv2.resize(random.normal(size=(9, 9)), (width, height)) for _ in range(2)]
    rows, columns = rows + 0.03 * height * wobble[0], columns + 0.03 * width * wobble[1]
    nearest = np.full(size, np.inf, dtype=np.float32)
    cells = np.zeros(size, dtype=np.int64)
    for number in range(SEGMENTS):
        distance = (rows - random.uniform(0, height)) ** 2 + (
            columns - random.uniform(0, width)
        ) ** 2
        cells[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    ids = random.choice(MAX_ID, SEGMENTS, replace=False) + 1
    chosen = random.choice(len(CATEGORIES), SEGMENTS)
    true_map = ids[cells].astype(np.int32)
    moved = np.roll(true_map, random.integers(-8, 9, 2), axis=(0, 1))
    lost = ids[random.random(SEGMENTS) < 0.1]
    predicted_map = np.where(np.isin(moved, lost), 0, moved).astype(np.int32)
    mistaken = np.where(random.random(SEGMENTS) < 0.2, random.permutation(chosen), chosen)
    return (
        true_map,
        _segments(true_map, ids, chosen),
        predicted_map,
        _segments(predicted_map, ids, mistaken),
    )


def _segments(segment_map: np.ndarray, ids: np.ndarray, categories: np.ndarray) -> list[dict]:
    area = dict(zip(*(a.tolist() for a in np.unique(segment_map, return_counts=True)), strict=True))
    return [
        {"id": id_, "category_id": CATEGORIES[c]["id"], "iscrowd": 0, "area": area[id_]}
        for id_, c in zip(ids.tolist(), categories.tolist(), strict=True)
        if id_ in area
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=500, help="scored in a call")
    parser.add_argument(
        "--size", type=parse_size, default="480x640", metavar="HxW", help="of the images, pixels"
    )
    parser.add_argument("--workers", type=positive, default=2, help="threads of the evaluator")
    parser.add_argument("--repeats", type=positive, default=3, help="calls that count")
    add_json(parser)
    run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    settings = EvaluationSettings(images=options.images, size=options.size, workers=options.workers)
    shown: dict[str, str | int] = {
        "images": options.images,
        "size": "{}x{}".format(*options.size),
        "workers": options.workers,
        "repeats": options.repeats,
    }
    header = print_header(torch.device("cpu"), shown)
    with tempfile.TemporaryDirectory() as folder:
        times = benchmark_evaluation(settings, Path(folder), repeats=options.repeats)
    print(evaluation_table(times, options.images))
    if PANOPTICAPI not in times:
        print("\npanopticapi is not installed (pip install --no-deps panopticapi-lite==0.2.0)")
    runs = {name: timing.as_dict() for name, timing in times.items()}
    write_json(options.json, {**header, "runs": runs})


def evaluation_table(times: Mapping[str, Timing], images: int) -> str:
    """A row for every way of scoring, with its speed-up over ``panopticapi``."""
    baseline = times.get(PANOPTICAPI)
    rows = []
    for name, timing in times.items():
        lower, upper = timing.quartiles
        rows.append(
            [
                name,
                f"{timing.median:.2f}",
                f"{lower:.2f}–{upper:.2f}",
                f"{1e3 * timing.median / images:.2f}",
                f"{baseline.median / timing.median:.2f}x" if baseline else "",
            ]
        )
    headers = ["scored from", "s", "quartiles", "ms per image", "speed-up"]
    return markdown_table(rows, headers, headers[:1])


if __name__ == "__main__":
    main()
