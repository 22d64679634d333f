"""What hostile inputs are made of: sound files of every kind, which cases copy and spoil."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from PIL import Image

from proscale.checkpoint.files import save_archive
from proscale.config import setup_cfg
from proscale.data.datasets.shapes import CATEGORIES, generate
from proscale.data.formats.image_file import read_panoptic_png
from proscale.engine.recorded_step import RecordedStep
from proscale.engine.trainer import Trainer

SMALL: dict[str, Any] = {
    "_BASE_": "demo/proscale_r18_111",
    "OUTPUT_DIR": "output",
    "INPUT": {"IMAGE_SIZE": 64, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 64},
    "MODEL": {
        "BACKBONE": {"NAME": "D2SwinTransformer"},
        "SWIN": {"EMBED_DIM": 16, "DEPTHS": [1, 1, 2, 1], "NUM_HEADS": [1, 2, 4, 4]},
        "SEM_SEG_HEAD": {
            "CONVS_DIM": 32,
            "MASK_DIM": 32,
            "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 64,
        },
        "MASK_FORMER": {
            "HIDDEN_DIM": 32,
            "DIM_FEEDFORWARD": 64,
            "DEC_LAYERS": 2,
            "NUM_OBJECT_QUERIES": 10,
            "TRAIN_NUM_POINTS": 64,
            "TEST": {"OBJECT_MASK_THRESHOLD": 0.0, "OVERLAP_THRESHOLD": 0.0},
        },
    },
    "SOLVER": {"MAX_ITER": 1, "IMS_PER_BATCH": 1, "WARMUP_ITERS": 0},
}
"""A model that is built and run in a fraction of a second."""

_SPLITS = {
    "panoptic": {
        "IMAGES": "{split}",
        "ANNOTATIONS": "annotations/panoptic_{split}.json",
        "MASKS": "panoptic_{split}",
    },
    "instance": {"IMAGES": "{split}", "ANNOTATIONS": "annotations/instances_{split}.json"},
    "semantic": {"IMAGES": "{split}", "MASKS": "labels_{split}"},
    "detection": {"IMAGES": "{split}", "ANNOTATIONS": "annotations/instances_{split}.json"},
    "keypoints": {"IMAGES": "{split}", "ANNOTATIONS": "annotations/keypoints_{split}.json"},
}
KEYPOINTS = ("top", "left_side", "right_side")


def make_own_data(root: Path) -> Path:
    """A few generated images of 64×64 pixels, as a user may bring them.

    For the splits ``train`` (3 images) and ``val`` (2): panoptic and instance annotations in COCO's
    formats, see ``proscale.data.datasets.shapes``, label images in ``labels_{train,val}``, and
    keypoints on the border of every shape's box.
    """
    generate(root, num_train=3, num_val=2, image_size=64)
    labels = {category["id"]: index for index, category in enumerate(CATEGORIES)}
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"panoptic_{split}.json").read_text())
        (root / f"labels_{split}").mkdir()
        for annotation in content["annotations"]:
            ids = read_panoptic_png(root / f"panoptic_{split}" / annotation["file_name"])
            classes = np.full(ids.shape, 255, np.uint8)
            for segment in annotation["segments_info"]:
                classes[ids == segment["id"]] = labels[segment["category_id"]]
            Image.fromarray(classes).save(root / f"labels_{split}" / annotation["file_name"])
        _write_keypoints(root / "annotations", split)
    return root


def _write_keypoints(folder: Path, split: str) -> None:
    content = json.loads((folder / f"instances_{split}.json").read_text())
    skeleton = {"keypoints": list(KEYPOINTS), "skeleton": [[1, 2], [1, 3]]}
    content["categories"] = [{"id": 1, "name": "shape", **skeleton}]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        points = [(x + width // 2, y), (x, y + height // 2), (x + width - 1, y + height // 2)]
        annotation |= {"category_id": 1, "num_keypoints": len(points)}
        annotation["keypoints"] = [value for point in points for value in (*point, 2)]
        del annotation["segmentation"]
    (folder / f"keypoints_{split}.json").write_text(json.dumps(content))


def own_block(root: Path | str, task: str) -> dict[str, Any]:
    """The block of ``DATASETS.OWN`` that describes the folder of :func:`make_own_data`."""
    return {
        "NAME": f"own_{task}",
        "TASK": task,
        "ROOT": str(root),
        **{
            key: {name: path.format(split=key.lower()) for name, path in _SPLITS[task].items()}
            for key in ("TRAIN", "VAL")
        },
    }


def make(folder: Path) -> None:
    """Write everything that cases start from into ``folder``."""
    own = make_own_data(folder / "own")
    Image.new("RGB", (8, 8), "red").save(folder / "secret.png")
    Image.open(own / "train" / "000001.jpg").save(folder / "image.png")
    # A configuration with the data set, and a model for it.
    content = {**SMALL, "DATASETS": {"OWN": [own_block("own", "panoptic")]}}
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    content["DATASETS"]["OWN"][0]["ROOT"] = str(own)
    (folder / "absolute.yaml").write_text(yaml.safe_dump(content))
    cfg = setup_cfg(str(folder / "absolute.yaml"), ["OUTPUT_DIR", str(folder / "run")])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    _make_run(folder / "run", cfg, model)
    _make_step(folder / "step.pth", cfg, model)


def _make_run(run: Path, cfg: Any, model: torch.nn.Module) -> None:
    """A folder as training and evaluation leave it."""
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    (run / "last_checkpoint").write_text("model_final.pth")
    Trainer.test(cfg, model)
    lines = [
        {"iteration": i, "total_loss": 9.0 - i, "loss_ce": 1.0, "time": 0.5, "lr": 0.1}
        for i in (0, 1)
    ]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "log.txt").write_text("[11/21 11:25:04] d2 INFO: iter: 1 max_mem: 2048M\n")


def _make_step(path: Path, cfg: Any, model: torch.nn.Module) -> None:
    """A recorded training step, finite."""
    instances = Instances((64, 64))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
    batch = [
        {"file_name": "1.jpg", "image": torch.full((3, 64, 64), 100.0), "instances": instances}
    ]
    RecordedStep(cfg.dump(), 3, 12, 0, model.state_dict(), batch).write(path)


def edit_step(place: Any, change: Any) -> str:
    """A copy of the recorded step with its content changed; returns its name."""
    content = torch.load(place.material / "step.pth", weights_only=True)
    changed = change(content)
    save_archive(place / "step.pth", content if changed is None else changed)
    return "step.pth"
