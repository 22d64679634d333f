"""``proscale models``: names of weights and configurations, and their cost."""

import json

import pytest

from proscale_cli import main


def test_lists_what_the_words_name(capsys):
    main(["models", "r50", "coco"])
    lines = capsys.readouterr().out.splitlines()
    (published,) = [line for line in lines if "mask2former_r50_coco_panoptic" in line]
    assert "PQ 51.9 (Mask2Former, CVPR 2022)" in published
    assert "model_final_94dc52.pkl" in published
    assert any("coco/panoptic/proscale_r50_333" in line for line in lines)
    assert not any("swin" in line or "/base" in line for line in lines)


def test_costs_are_those_of_the_configuration(tmp_path, capsys):
    file = tmp_path / "models.json"
    words = ["mask2former_r50", "coco", "panoptic"]
    main(["models", *words, "--cost", "--json", str(file)])
    document = json.loads(file.read_text())
    for kind, name in (
        ("weights", "mask2former_r50_coco_panoptic"),
        ("configurations", "coco/panoptic/mask2former_r50"),
    ):
        entry = document[kind][name]
        assert (entry["GFLOPs"], entry["parameters, M"]) == ("257.1", "44.0")
    assert capsys.readouterr().out.count("257.1") == 2


def test_unknown_words_are_told():
    with pytest.raises(SystemExit, match=r"no name has nothing: expected parts of names"):
        main(["models", "nothing"])
