"""``proscale replay`` on a step of a real model that was not finite."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from proscale.engine.recorded_step import RecordedStep, record_fault
from proscale.engine.train_loop import TrainLoop
from proscale_cli import main


@pytest.fixture
def record(small_cfg, tmp_path):
    """Returns a function: value of a pixel → path of the recorded step of a small PRO-SCALE."""
    small_cfg.OUTPUT_DIR = str(tmp_path)
    small_cfg.SEED = 3

    def record(pixel: float):
        torch.manual_seed(0)
        model = build_model(small_cfg)
        instances = Instances((64, 64))
        instances.gt_classes = torch.tensor([2])
        instances.gt_masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
        image = torch.full((3, 64, 64), 100.0)
        image[0, 0, 0] = pixel
        batch = [{"file_name": "wrong.jpg", "image": image, "instances": instances}]
        loop = TrainLoop(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
        loop.seed, loop.iter = 3, 12
        record_fault(small_cfg, loop, batch, model.state_dict())
        with EventStorage(12) as storage:
            try:
                loop.run_step()
                loss = storage.latest()["total_loss"][0]
            except FloatingPointError as error:
                loss = str(error)
        return tmp_path / "fault_0000012_rank0.pth", loss

    return record


def test_fault_is_seen_again_with_the_module_it_came_from(record, capsys):
    path, message = record(float("nan"))
    main(["replay", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Iteration 12 of process 0: wrong.jpg"
    assert lines[1] == message.partition("; images")[0]
    assert lines[1] == (
        "not finite at iteration 12: matching the last output: class cost and mask cost and dice "
        "cost of image 0 of the batch"
    )
    assert lines[2].startswith("first output that is not finite: backbone.patch_embed.")


def test_finite_step_gives_the_same_loss(record, capsys):
    path, loss = record(50.0)
    main(["replay", str(path), "MODEL.DEVICE", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert f"total_loss = {loss:.6g}" in lines
    assert lines[-1] == "everything is finite"


def change(part, **values):
    """Set values of a part of the file."""
    return lambda content: (content["batch"][0] if part == "sample" else content).update(values)


def set_field(name, value):
    def function(content):
        content["batch"][0]["instances"]["fields"][name] = value

    return function


def set_weight(name, value):
    def function(content):
        content["weights"].pop(name, None)
        if value is not None:
            content["weights"][name] = value

    return function


# The same list twice, 60 times over.
NESTED: list = []
for _ in range(60):
    NESTED = [NESTED, NESTED]
LAYER, INDEX = (
    "sem_seg_head.predictor.level_embed.weight",
    ("backbone.layers.0.blocks.0.attn.relative_position_index"),
)
# What is changed in the file, and the message behind its name.
DAMAGES = {
    "no_batch": (change("file", batch=[]), r"batch is \[\]: expected one or more samples"),
    "no_list": (change("file", batch={}), r"batch is \{\}: expected one or more samples"),
    "no_sample": (change("file", batch=[3]), r"batch\[0\]\.image: expected a tensor \(3, H, W\)"),
    "no_weights": (change("file", weights=None), "weights is null: expected tensors by name"),
    "empty_weights": (change("file", weights={}), "weights differ from those of the model"),
    "missing": (set_weight(LAYER, None), rf"in name or shape: {LAYER}$"),
    "unknown": (set_weight("a\nb", torch.ones(1)), r"in name or shape: a\\nb$"),
    "no_tensor": (set_weight(LAYER, "text"), rf"in name or shape: {LAYER}$"),
    "shape": (set_weight(LAYER, torch.ones(1)), rf"in name or shape: {LAYER}$"),
    "int8": (set_weight(LAYER, torch.ones(3, 64).to(torch.int8)), rf"{LAYER} is of torch\.int8"),
    "index": (set_weight(INDEX, torch.full((49, 49), 10**6)), f"{INDEX} has other indices"),
    "meta": (set_weight(LAYER, torch.ones(3, 64, device="meta")), f"{LAYER} is a meta tensor"),
    "negative": (change("file", iteration=-1), "iteration is -1: expected a whole number from 0"),
    "huge": (change("file", iteration=10**30), "iteration is 10+: expected a whole number"),
    "text": (change("file", seed="3"), 'seed is "3": expected a whole number from 0'),
    "truth": (change("file", rank=True), "rank is true: expected a whole number from 0"),
    "nested": (
        change("file", weights=NESTED),
        r"weights is \[\[\[.{56}…: expected tensors by name",
    ),
    "config": (change("file", config=3), "config is 3: expected the configuration as YAML"),
    "kind": (
        change("sample", instances={"__kind__": "Evil"}),
        'batch cannot be restored: __kind__ is "Evil": expected Instances, BitMasks, Boxes',
    ),
    "kind_list": (change("sample", instances={"__kind__": []}), r"__kind__ is \[\]: expected"),
    "size": (change("sample", instances={"__kind__": "Instances"}), "batch cannot be restored: "),
    "lengths": (set_field("gt_classes", torch.tensor([1, 2])), "batch cannot be restored: "),
    "class": (set_field("gt_classes", torch.tensor([999])), "has class 999: expected 0 to 132"),
    "below": (set_field("gt_classes", torch.tensor([-1])), "has class -1: expected 0 to 132"),
    "floats": (set_field("gt_classes", torch.ones(1)), r"gt_classes: expected a tensor \(N,\) of"),
    "masks": (set_field("gt_masks", [1]), r"gt_masks: expected masks \(N, H, W\), as large as"),
    "large": (set_field("gt_masks", torch.ones(1, 65, 64)), "gt_masks: expected masks"),
    "grey": (change("sample", image=torch.ones(1, 64, 64)), r"image: expected a tensor \(3, H, W"),
    "nothing": (change("sample", image=torch.ones(3, 0, 64)), "image: expected a tensor"),
    "complex": (
        change("sample", image=torch.ones(3, 64, 64) + 0j),
        r"image is of torch\.complex64",
    ),
    "no_image": (change("sample", image="x"), "image: expected a tensor"),
    "no_instances": (change("sample", instances=None), "instances: expected instances of an image"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_of_others_are_refused(small_cfg, tmp_path, name):
    damage, message = DAMAGES[name]
    masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
    instances = Instances((64, 64), gt_classes=torch.tensor([2]), gt_masks=masks)
    batch = [{"file_name": "a.jpg", "image": torch.ones(3, 64, 64), "instances": instances}]
    weights = build_model(small_cfg).state_dict()
    path = tmp_path / "fault.pth"
    RecordedStep(small_cfg.dump(), 3, 12, 0, weights, batch).write(path)
    content = torch.load(path)
    damage(content)
    torch.save(content, path)
    with pytest.raises(SystemExit, match=message) as error:
        main(["replay", str(path)])
    assert str(error.value).startswith(f"proscale: {path}: ")
    assert str(error.value).isprintable()


def test_too_few_samples_for_the_parts(record, tmp_path):
    path, _ = record(50.0)
    with pytest.raises(SystemExit, match=r"batch has 1 samples: expected 2 or more \(SOLVER\.ACC"):
        main(["replay", str(path), "SOLVER.ACCUMULATION_STEPS", "2"])


def test_no_recorded_step(tmp_path):
    with pytest.raises(SystemExit, match=r"proscale: there is no file .*none\.pth"):
        main(["replay", str(tmp_path / "none.pth")])


def test_configuration_of_a_step_has_no_base(tmp_path):
    RecordedStep("_BASE_: /other/base.yaml", 0, 0, 0, {}, [{}]).write(tmp_path / "fault.pth")
    with pytest.raises(SystemExit, match=r"_BASE_ is \['/other/base.yaml'\]: expected none in the"):
        main(["replay", str(tmp_path / "fault.pth")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"image": torch.ones(3, 64, 96)}, "image: expected 96x64 pixels, MODEL.POSE.INPUT_SIZE"),
        ({"keypoints": torch.ones(16, 2)}, r"keypoints: expected a tensor \(17, 2\) of floats"),
        ({"visible": torch.ones(17, dtype=torch.int64)}, r"visible: expected a tensor \(17,\) of"),
    ],
)
def test_steps_of_pose_estimation(small_pose_cfg, tmp_path, capsys, change, message):
    sample = {"keypoints": torch.full((17, 2), 30.0), "visible": torch.ones(17)}
    sample |= {"file_name": "a.jpg", "image": torch.ones(3, 96, 64), **change}
    weights, path = build_model(small_pose_cfg).state_dict(), tmp_path / "fault.pth"
    RecordedStep(small_pose_cfg.dump(), 3, 12, 0, weights, [sample, sample]).write(path)
    if not message:
        main(["replay", str(path)])
        assert "everything is finite" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit, match=rf"batch\[0\]\.{message}"):
        main(["replay", str(path)])
