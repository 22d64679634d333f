"""Two processes, each with some of the images; this file is also what they run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances

from proscale.evaluation import (
    BoxEvaluator,
    CocoPanopticEvaluator,
    InstanceEvaluator,
    PoseEvaluator,
    SemanticEvaluator,
)

EVALUATORS = {
    "panoptic": CocoPanopticEvaluator,
    "instance": InstanceEvaluator,
    "semantic": SemanticEvaluator,
    "detection": BoxEvaluator,
    "keypoints": PoseEvaluator,
}


def evaluate(job: dict, image_ids: tuple[int, ...], output_dir: str) -> dict:
    """The metrics of all evaluators over some images; None on ranks other than 0."""
    name = job["name"]
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: job["entries"])
        MetadataCatalog.get(name).set(**job["metadata"])
    results = {}
    for kind, evaluator in EVALUATORS.items():
        options = {} if kind == "semantic" else {"save_predictions": True}
        evaluator = evaluator(name, output_dir=output_dir, **options)
        evaluator.reset()
        for image_id in image_ids:
            evaluator.process([job["inputs"][image_id]], [job["outputs"][image_id]])
        results[kind] = evaluator.evaluate()
    return results


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    job = pickle.loads(Path(folder, "job").read_bytes())
    results = evaluate(job, ((5,), (7, 3))[rank], f"{folder}/two")
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()  # a process whose peer has gone may be aborted
    dist.destroy_process_group()


def perturbed_outputs(toy):
    """Predictions of a poor model: ground truth moved by a few columns."""

    outputs = {}
    for image_id in (3, 5, 7):
        segment_map, infos = toy.panoptic(image_id)["panoptic_seg"]
        segment_map = segment_map.roll(image_id - 4, dims=1)
        things = [s for s in infos if s["isthing"]]
        instances = Instances(tuple(segment_map.shape))
        instances.pred_masks = torch.stack([segment_map == s["id"] for s in things])
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        corners = instances.pred_boxes.tensor[:, [0, 1]] + 1.5
        points = torch.cat([corners, torch.ones(len(things), 1)], dim=1)
        instances.pred_keypoints = points[:, None].expand(-1, 17, -1)
        instances.scores = instances.box_scores = torch.tensor([0.5] * len(things))
        instances.pred_classes = torch.tensor([s["category_id"] for s in things])
        classes = np.roll(toy.classes(image_id), 1, axis=1) % 4
        outputs[image_id] = {
            "panoptic_seg": (segment_map, infos),
            "instances": instances,
            "sem_seg": torch.from_numpy(classes),
        }
    return outputs


def add_keypoints(path: Path) -> None:
    """Make poses of the instances of a file's first category, all keypoints in one place."""
    content = json.loads(path.read_text())
    content["categories"][0]["keypoints"] = [f"k{i}" for i in range(17)]
    for annotation in content["annotations"]:
        x, y, *_ = annotation["bbox"]
        annotation |= {"keypoints": [int(x) + 1, int(y) + 1, 2] * 17, "num_keypoints": 17}
    path.write_text(json.dumps(content))


def test_two_processes_equal_one(toy_with_instances, tmp_path):
    toy = toy_with_instances
    add_keypoints(Path(MetadataCatalog.get(toy.name).json_file))
    job = {
        "name": toy.name,
        "entries": DatasetCatalog.get(toy.name),
        "metadata": {
            k: v for k, v in MetadataCatalog.get(toy.name).as_dict().items() if k != "name"
        },
        "inputs": {image_id: toy.inputs(image_id) for image_id in (3, 5, 7)},
        "outputs": perturbed_outputs(toy),
    }
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    python_path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": python_path},
        )
        for rank in range(2)
    ]
    expected = evaluate(job, (3, 5, 7), f"{tmp_path}/one")
    assert expected["keypoints"]["keypoints"]["AP"] > 0
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in range(2))
    assert first == json.dumps(expected), "not to the last digit"
    assert json.loads(second) == dict.fromkeys(EVALUATORS)
    one, two = (
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*"))
        for name in ("one", "two")
    )
    assert one == two and len(one) > 6


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
