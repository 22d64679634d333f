"""Write ``golden_panoptic_quality.json``: small images and their results by COCO's evaluator.

Run once, by hand; the test reads the file and does not need the evaluator:

    pip install --no-deps panopticapi-lite==0.2.0   # COCO's panopticapi; works with numpy 2 as well
    python tests/evaluation/make_golden_panoptic_quality.py

The images are rectangles painted over each other. Between them they have void pixels, crowd
segments (also several of one category), a category that is only predicted and one that never
occurs, and predictions that match, nearly match, and lie on void and on crowds.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 11, "name": "dog", "isthing": 1},
    {"id": 12, "name": "unicorn", "isthing": 1},
    {"id": 100, "name": "sky", "isthing": 0},
    {"id": 150, "name": "grass", "isthing": 0},
    {"id": 133, "name": "lava", "isthing": 0},
]
TRUE_CATEGORIES = [3, 11, 100, 150]  # 133 is only ever predicted, 12 occurs nowhere
HEIGHT, WIDTH = 14, 18
NUM_IMAGES = 24


def paint(random: np.random.RandomState, canvas: np.ndarray, segments: dict, count: int) -> None:
    """Paint ``count`` rectangles of new segments (or void) on ``canvas``, in place."""
    for _ in range(count):
        top, left = random.randint(HEIGHT - 3), random.randint(WIDTH - 3)
        height, width = random.randint(3, HEIGHT), random.randint(3, WIDTH)
        segment_id = 0
        if random.rand() < 0.85:
            segment_id = int(random.choice([random.randint(1, 200), random.randint(1, 256**3)]))
            segments[segment_id] = int(random.choice(TRUE_CATEGORIES))
        canvas[top : top + height, left : left + width] = segment_id


def infos(canvas: np.ndarray, segments: dict) -> list[dict]:
    """``segments_info`` of the segments that are still visible."""
    return [
        {
            "id": segment_id,
            "category_id": segments[segment_id],
            "iscrowd": 0,
            "area": int((canvas == segment_id).sum()),
        }
        for segment_id in np.unique(canvas).tolist()
        if segment_id
    ]


def make_image(random: np.random.RandomState) -> dict:
    truth, segments = np.zeros((HEIGHT, WIDTH), dtype=np.int64), {}
    paint(random, truth, segments, 6)
    # Predictions see the same scene, moved and painted over, with some categories mistaken.
    prediction = np.roll(truth, random.randint(-1, 2, size=2), axis=(0, 1))
    predicted = {
        segment_id: category if random.rand() < 0.8 else 133
        for segment_id, category in segments.items()
    }
    paint(random, prediction, predicted, random.randint(4))

    true_segments = infos(truth, segments)
    things = {c["id"] for c in CATEGORIES if c["isthing"]}
    for segment in true_segments:
        segment["iscrowd"] = int(segment["category_id"] in things and random.rand() < 0.4)
    predicted_segments = [
        {"id": s["id"], "category_id": s["category_id"]} for s in infos(prediction, predicted)
    ]
    return {
        "true_map": truth.tolist(),
        "true_segments": true_segments,
        "predicted_map": prediction.tolist(),
        "predicted_segments": predicted_segments,
    }


def evaluate(images: list[dict]) -> dict:
    """Run the evaluator on ``images``; fractions, as it gives them."""
    categories = {c["id"]: c for c in CATEGORIES}
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for number, image in enumerate(images):
            pair = []
            for kind in ("true", "predicted"):
                (Path(folder) / kind).mkdir(exist_ok=True)
                colours = id2rgb(np.array(image[f"{kind}_map"]))
                Image.fromarray(colours).save(Path(folder) / kind / f"{number}.png")
                pair.append(
                    {
                        "image_id": number,
                        "file_name": f"{number}.png",
                        "segments_info": image[f"{kind}_segments"],
                    }
                )
            pairs.append(tuple(pair))
        counts: PQStat = pq_compute_single_core(
            0, pairs, str(Path(folder) / "true"), str(Path(folder) / "predicted"), categories
        )
    means = {}
    for name, isthing in (("all", None), ("things", True), ("stuff", False)):
        means[name], per_category = counts.pq_average(categories, isthing=isthing)
        if isthing is None:
            # Counts of a category that never occurred are created by asking for them.
            for category_id, quality in per_category.items():
                seen = counts[category_id]
                quality.update(tp=seen.tp, fp=seen.fp, fn=seen.fn)
            means["per_category"] = per_category
    return means


def main() -> None:
    random = np.random.RandomState(2019)
    images = [make_image(random) for _ in range(NUM_IMAGES)]
    golden = {"categories": CATEGORIES, "images": images, "results": evaluate(images)}
    target = Path(__file__).with_name("golden_panoptic_quality.json")
    target.write_text(json.dumps(golden, separators=(",", ":"), default=float) + "\n")


if __name__ == "__main__":
    main()
