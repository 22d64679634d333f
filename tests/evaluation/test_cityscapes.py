"""Cityscapes' metrics against those of ``cityscapesscripts``, on perturbed ground truth."""

import contextlib
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import Image

from proscale.errors import DataError
from proscale.evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator

CLASSES = [c["name"] for c in CITYSCAPES_CATEGORIES]
LABELS = np.array([c["id"] for c in CITYSCAPES_CATEGORIES])
TRAIN_ID = np.full(256, 255)
TRAIN_ID[LABELS] = np.arange(19)
THING_LABELS = [c["id"] for c in CITYSCAPES_CATEGORIES if c["isthing"]]

_numbers = itertools.count()


def register(gt_dir: Path) -> str:
    name = f"cityscapes_evaluation_{next(_numbers)}"
    MetadataCatalog.get(name).set(
        gt_dir=str(gt_dir), stuff_classes=CLASSES, thing_classes=CLASSES, ignore_label=255
    )
    return name


@pytest.fixture
def toy(tmp_path):
    """Frames of rectangles: stuff, instances, groups, void, small instances."""
    random = np.random.RandomState(5)
    folder = tmp_path / "gtFine" / "val" / "ulm"
    folder.mkdir(parents=True)
    for number in range(4):
        ids = np.full((60, 90), 7)
        for _ in range(25):
            label = int(random.choice([3, 11, 21, 23, 29, *THING_LABELS]))
            is_group = label in (3, 11, 21, 23) or random.rand() < 0.15
            top, left = random.randint(55), random.randint(80)
            height, width = random.randint(4, 25, size=2)
            id_ = label if is_group else label * 1000 + random.randint(30)
            ids[top : top + height, left : left + width] = id_
        stem = f"ulm_{number:06d}_000019_gtFine"
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{stem}_instanceIds.png")
        labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{stem}_labelIds.png")
    yield folder.parent
    for name in [n for n in MetadataCatalog if n.startswith("cityscapes_evaluation_")]:
        MetadataCatalog.remove(name)


@pytest.fixture
def sample():
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).resolve()
    gt_dir = root / "cityscapes" / "gtFine" / "val"
    if not gt_dir.is_dir():
        pytest.skip(f"no Cityscapes frames in {gt_dir}; point DETECTRON2_DATASETS at them")
    return gt_dir


def frames(gt_dir):
    """(file name of the image, label ids, instance ids) of every frame."""
    for path in sorted(gt_dir.glob("*/*_labelIds.png")):
        stem = path.name.removesuffix("_gtFine_labelIds.png")
        yield (
            f"leftImg8bit/val/{path.parent.name}/{stem}_leftImg8bit.png",
            np.array(Image.open(path)),
            np.array(Image.open(str(path).replace("labelIds", "instanceIds"))).astype(np.int64),
        )


def perturbed_labels(random, labels):
    """Train ids of the ground truth moved, some classes mistaken, some class where it is void."""
    moved = np.roll(TRAIN_ID[labels], random.randint(-5, 6, size=2), axis=(0, 1))
    moved[moved == 255] = random.randint(19)
    mistaken = np.where(random.rand(19) < 0.7, np.arange(19), random.permutation(19))
    return mistaken[moved]


def perturbed_instances(random, ids):
    """Predicted masks: instances moved, cut, doubled, mistaken, and random rectangles."""
    masks, classes = [], []
    for id_ in np.unique(ids):
        label = id_ // 1000 if id_ >= 1000 else id_
        if label in THING_LABELS and random.rand() < 0.9:
            for _ in range(random.randint(1, 3)):
                mask = np.roll(ids == id_, random.randint(-2, 3, size=2), axis=(0, 1))
                masks.append(mask & (random.rand(*mask.shape) < random.choice([0.6, 1.0])))
                mistaken = random.rand() < 0.15
                classes.append(TRAIN_ID[random.choice(THING_LABELS) if mistaken else label])
    for _ in range(8):
        mask = np.zeros(ids.shape, dtype=bool)
        top, left = random.randint(ids.shape[0]), random.randint(ids.shape[1])
        mask[top : top + 20, left : left + 20] = random.rand() < 0.9
        masks.append(mask)
        classes.append(TRAIN_ID[random.choice(THING_LABELS)])
    result = Instances(ids.shape)
    result.pred_masks = torch.from_numpy(np.array(masks))
    result.pred_classes = torch.tensor(np.array(classes))
    # One decimal, so that there are equal scores.
    result.scores = torch.tensor(random.rand(len(masks)).round(1), dtype=torch.float32)
    return result


def with_numpy_1_names(module, monkeypatch):
    """Names of NumPy 1 that ``cityscapesscripts`` 2.3 calls and NumPy 2.4 lacks."""
    if not hasattr(np, "in1d"):
        monkeypatch.setattr(module.np, "in1d", np.isin, raising=False)
    return module


def scripts_semantic(pairs, folder, monkeypatch):
    module = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    with_numpy_1_names(module, monkeypatch)
    monkeypatch.setattr(module.args, "JSONOutput", False)
    monkeypatch.setattr(module.args, "quiet", True)
    files = []
    for number, (_, predicted) in enumerate(pairs):
        files.append(str(folder / f"predicted_{number}.png"))
        Image.fromarray(LABELS[predicted].astype(np.uint8)).save(files[-1])
    return module.evaluateImgLists(files, [str(path) for path, _ in pairs], module.args)


def scripts_instances(pairs, folder, monkeypatch):
    module = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    with_numpy_1_names(module, monkeypatch)
    for name, value in {
        "JSONOutput": False,
        "quiet": True,
        "predictionPath": str(folder),
        "gtInstancesFile": str(folder / "gtInstances.json"),
    }.items():
        monkeypatch.setattr(module.args, name, value)
    files = []
    for number, (_, predicted) in enumerate(pairs):
        files.append(str(folder / f"{number}.txt"))
        lines = []
        for i, mask in enumerate(predicted.pred_masks.numpy()):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}_{i}.png")
            label = LABELS[predicted.pred_classes[i]]
            lines.append(f"{number}_{i}.png {label} {predicted.scores[i].item()}\n")
        Path(files[-1]).write_text("".join(lines))
    # It writes what it has matched into the working folder, and fails at NumPy's numbers.
    monkeypatch.setattr(module, "writeDict2JSON", lambda content, path: None)
    with contextlib.redirect_stdout(io.StringIO()):
        return module.evaluateImgLists(files, [str(path) for path, _ in pairs], module.args)


@pytest.fixture(params=["toy", "sample"])
def gt_dir(request):
    return request.getfixturevalue(request.param)


def ground_truth_files(gt_dir, kind):
    return sorted(gt_dir.glob(f"*/*_{kind}.png"))


def test_semantic_metrics_equal_cityscapesscripts(gt_dir, tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    evaluator = CityscapesSemanticEvaluator(register(gt_dir), str(tmp_path / "out"))
    predictions = []
    for file_name, labels, _ in frames(gt_dir):
        predictions.append(perturbed_labels(random, labels))
        output = {"sem_seg": torch.from_numpy(predictions[-1])}
        evaluator.process([{"file_name": file_name}], [output])
    found = evaluator.evaluate()["sem_seg"]
    pairs = list(zip(ground_truth_files(gt_dir, "labelIds"), predictions, strict=True))
    theirs = scripts_semantic(pairs, tmp_path, monkeypatch)
    assert found["IoU"] == found["mIoU"]
    for name, key in {
        "IoU": "averageScoreClasses",
        "iIoU": "averageScoreInstClasses",
        "IoU_sup": "averageScoreCategories",
        "iIoU_sup": "averageScoreInstCategories",
    }.items():
        assert found[name] == pytest.approx(100 * theirs[key], abs=1e-9), name
    for row in json.loads((tmp_path / "out/sem_seg.json").read_text())["per_class"]:
        for ours, key in ((row["IoU"], "classScores"), (row["iIoU"], "classInstScores")):
            expected = 100 * theirs[key][row["name"]]
            assert (float("nan") if ours is None else ours) == pytest.approx(expected, nan_ok=True)
    assert 5 < found["IoU"] < 95


def test_instance_metrics_equal_cityscapesscripts(gt_dir, tmp_path, monkeypatch):
    random = np.random.RandomState(1)
    evaluator = CityscapesInstanceEvaluator(register(gt_dir), str(tmp_path / "out"))
    predictions = []
    for file_name, _, ids in frames(gt_dir):
        predictions.append(perturbed_instances(random, ids))
        evaluator.process([{"file_name": file_name}], [{"instances": predictions[-1]}])
    found = evaluator.evaluate()["segm"]
    pairs = list(zip(ground_truth_files(gt_dir, "instanceIds"), predictions, strict=True))
    theirs = scripts_instances(pairs, tmp_path, monkeypatch)["averages"]
    assert found["AP"] == pytest.approx(100 * theirs["allAp"], abs=1e-9)
    assert found["AP50"] == pytest.approx(100 * theirs["allAp50%"], abs=1e-9)
    for row in json.loads((tmp_path / "out/cityscapes_instances.json").read_text())["per_class"]:
        expected = 100 * theirs["classes"][row["name"]]["ap"]
        ours = float("nan") if row["AP"] is None else row["AP"]
        assert ours == pytest.approx(expected, nan_ok=True, abs=1e-9)
        assert found[f"AP-{row['name']}"] == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert 1 < found["AP"] < 95


def test_ground_truth_scores_100(gt_dir):
    semantic = CityscapesSemanticEvaluator(register(gt_dir))
    instance = CityscapesInstanceEvaluator(register(gt_dir))
    for file_name, labels, ids in frames(gt_dir):
        classes = TRAIN_ID[labels]
        classes[classes == 255] = 3
        semantic.process([{"file_name": file_name}], [{"sem_seg": torch.from_numpy(classes)}])
        things = [i for i in np.unique(ids) if i // 1000 in THING_LABELS]
        result = Instances(ids.shape)
        result.pred_masks = torch.from_numpy(np.array([ids == i for i in things]))
        result.pred_classes = torch.tensor([int(TRAIN_ID[i // 1000]) for i in things])
        result.scores = torch.ones(len(things))
        instance.process([{"file_name": file_name}], [{"instances": result}])
    metrics = semantic.evaluate()["sem_seg"]
    assert metrics == pytest.approx(dict.fromkeys(metrics, 100.0))
    assert {v for v in instance.evaluate()["segm"].values() if v == v} == {100.0}


def test_ranks_merge_to_the_whole(toy, monkeypatch):
    def run(evaluator, chosen):
        random = np.random.RandomState(2)
        for number, (file_name, labels, ids) in enumerate(frames(toy)):
            output = {
                "sem_seg": torch.from_numpy(perturbed_labels(random, labels)),
                "instances": perturbed_instances(random, ids),
            }
            if number in chosen:
                evaluator.process([{"file_name": file_name}], [output])

    for kind in (CityscapesSemanticEvaluator, CityscapesInstanceEvaluator):
        whole, *ranks = (kind(register(toy)) for _ in range(3))
        run(whole, range(4))
        expected = whole.evaluate()
        run(ranks[0], (3, 1))
        run(ranks[1], (0, 2))
        sent = []
        with monkeypatch.context() as patch:
            patch.setattr(comm, "gather", lambda data, sent=sent: sent.append(data) or [])
            patch.setattr(comm, "is_main_process", lambda: False)
            assert [rank.evaluate() for rank in ranks] == [None, None]
        with monkeypatch.context() as patch:
            patch.setattr(comm, "gather", lambda data, sent=sent: sent)
            assert ranks[0].evaluate() == {
                task: pytest.approx(metrics, abs=1e-9, nan_ok=True)
                for task, metrics in expected.items()
            }


def test_no_predictions_score_0(toy):
    evaluator = CityscapesInstanceEvaluator(register(toy))
    for file_name, _, ids in frames(toy):
        nothing = Instances(ids.shape)
        nothing.pred_masks = torch.zeros((0, *ids.shape), dtype=torch.bool)
        nothing.pred_classes = torch.zeros(0, dtype=torch.long)
        nothing.scores = torch.zeros(0)
        evaluator.process([{"file_name": file_name}], [{"instances": nothing}])
    assert evaluator.evaluate()["segm"]["AP"] == 0.0


def test_errors_name_the_image_or_the_folder(toy, tmp_path):
    with pytest.raises(DataError, match=r"no instance maps .*empty"):
        CityscapesInstanceEvaluator(register(tmp_path / "empty"))
    evaluator = CityscapesInstanceEvaluator(register(toy))
    with pytest.raises(ValueError, match=r"4 of the 4 images .*ulm/ulm_000000_000019"):
        evaluator.evaluate()
    file_name, _, _ = next(frames(toy))
    small = Instances((2, 2))
    small.pred_masks = torch.zeros((0, 2, 2), dtype=torch.bool)
    with pytest.raises(ValueError, match=r"ulm_000000_.*\(2, 2\), the ground truth is \(60, 90\)"):
        evaluator.process([{"file_name": file_name}], [{"instances": small}])
    with pytest.raises(ValueError, match=r"bonn_1\.png: no ground truth for bonn/bonn_1"):
        evaluator.process([{"file_name": "val/bonn/bonn_1.png"}], [{"instances": small}])
    name = register(toy)
    MetadataCatalog.get(name).__dict__["thing_classes"] = ["person", "llama"]
    with pytest.raises(ValueError, match=rf"{name}'.*llama are no classes.*person"):
        CityscapesInstanceEvaluator(name)
