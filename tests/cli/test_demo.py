"""The demo, with a few iterations on a few small images."""

import json
import os

import pytest
from detectron2.data import MetadataCatalog

from proscale.data.datasets import shapes
from proscale_cli import main


@pytest.fixture
def few_shapes(monkeypatch):
    """The demo's data set, but smaller."""
    generate = shapes.generate
    monkeypatch.setattr(
        "proscale.cli.demo.generate",
        lambda root: generate(root, num_train=8, num_val=4),
    )


def test_trains_evaluates_and_draws(few_shapes, tmp_path, monkeypatch, capsys, request):
    config = request.config.rootpath / "configs" / "demo" / "proscale_r18_111.yaml"
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    main(
        ["demo", "--config-file", str(config), "--output", str(output)]
        + ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    )

    printed = capsys.readouterr().out
    assert "8 training and 4 held-out images" in printed
    assert "iteration 2/2" in printed
    assert "encoder GFLOPs" in printed
    assert "Mask2Former" in printed
    results = json.loads((output / "results.json").read_text())
    assert 0 <= results["shapes_val"]["panoptic_seg"]["PQ"] <= 100
    assert len(list((output / "pictures").glob("*.png"))) == 4
    assert (output / "model_final.pth").is_file()
    assert "MAX_ITER: 2" in (output / "config.yaml").read_text()
    assert "PyTorch" in (output / "log.txt").read_text()
    assert os.path.isdir(MetadataCatalog.get("shapes_val").image_root)


def test_wrong_key_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="there is no configuration file"):
        main(["demo", "--config-file", "missing.yaml"])
