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


def test_no_recorded_step(tmp_path):
    with pytest.raises(SystemExit, match=r"proscale: there is no file .*none\.pth"):
        main(["replay", str(tmp_path / "none.pth")])


def test_configuration_of_a_step_has_no_base(tmp_path):
    RecordedStep("_BASE_: /work/base.yaml", 0, 0, 0, {}, []).write(tmp_path / "fault.pth")
    with pytest.raises(SystemExit, match=r"_BASE_ is \['/work/base.yaml'\]: expected none in the"):
        main(["replay", str(tmp_path / "fault.pth")])
