"""The share of evaluation, on the images of a small data set."""

import json

import whole_evaluation
import yaml


def test_table_and_json(own_block, capsys, tmp_path):
    config = tmp_path / "model.yaml"
    demo = whole_evaluation.__file__.replace("benchmarks/whole_evaluation.py", "configs/demo/")
    settings = {
        "_BASE_": demo + "proscale_r18_111.yaml",
        "DATASETS": {"OWN": [own_block("panoptic")]},
        "INPUT": {"MIN_SIZE_TEST": 32},
    }
    config.write_text(yaml.safe_dump(settings))
    file = tmp_path / "out.json"
    arguments = ["--config-file", str(config), "--repeats", "2", "--json", str(file)]
    whole_evaluation.main([*arguments, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "5"])
    out = capsys.readouterr().out
    assert "| with evaluation " in out and "overrides: MODEL.MASK_FORMER.NUM" in out
    runs = json.loads(file.read_text())["runs"]
    assert [len(run["samples"]) for run in runs.values()] == [2, 2]
