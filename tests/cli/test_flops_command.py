"""The command, on a small model."""

import json

import pytest
from detectron2.data import DatasetCatalog

from proscale.config import setup_cfg
from proscale_cli import main


@pytest.fixture
def config_file(small_cfg, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(small_cfg.dump())
    return str(path)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; returns its output and its JSON."""

    def run(*arguments):
        file = tmp_path / "figures" / "flops.json"
        main(["flops", "--json", str(file), *arguments])
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def test_one_model_in_detail(run, config_file, tmp_path):
    tables = tmp_path / "tables.md"
    printed, document = run(
        *("--size", "64x96", "--markdown", str(tables), "--config-file", config_file)
    )
    assert "multiply-adds" in printed
    for heading in ("## Models", "## Parts", "## Operators", "## Tokens"):
        assert heading in printed
        assert heading in tables.read_text()
    assert "| – 1 layer over res5 + res4 " in printed
    assert "| 3                |      126 |" in printed  # 6 + 24 + 96 tokens
    assert "Warning" not in printed
    model = document["models"]["small"]
    assert model["uncounted"] == {}
    network = next(part for part in model["parts"] if part["name"] == "network")
    operators = sum(figure["mean"] for figure in model["operators"].values())
    assert network["multiply_adds"]["mean"] == operators


def test_models_side_by_side_in_a_picture(run, config_file, small_cfg, tmp_path):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [3, 3, 3]
    other, picture = tmp_path / "deeper.yaml", tmp_path / "cost.svg"
    other.write_text(small_cfg.dump())
    quality = tmp_path / "quality.json"
    quality.write_text('{"small": {"PQ": 40.0}, "deeper": {"PQ": 41.5}}')
    printed, _ = run(
        *("--size", "64x64", "--plot", str(picture), "--results", str(quality)),
        *("--config-file", config_file, str(other)),
    )
    assert "encoder vs first*" in printed
    assert "+0.0 %" in printed
    drawn = picture.read_text()
    assert all(text in drawn for text in ("small", "deeper", "transformer decoder", "PQ"))


def test_fused_count_and_variants_of_rt_m2f(run, small_cfg, tmp_path):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "RTDETRPixelDecoder"
    small_cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = 64
    file = tmp_path / "rt.yaml"
    file.write_text(small_cfg.dump())
    costs = []
    for option in ([], ["--fused"]):
        _, document = run("--size", "64x64", "--config-file", str(file), *option)
        parts = {part["name"]: part for part in document["models"]["rt"]["parts"]}
        costs.append(parts["encoder"]["multiply_adds"]["mean"])
    assert costs[0] > costs[1]
    printed, document = run("--size", "64x64", "--config-file", str(file), "--budget", "500%")
    assert "RTDETRPixelDecoder" in printed
    assert len(document["rt_m2f"]) == 4


def test_planning_tells_what_merging_saves(run, small_cfg, tmp_path):
    small_cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    small_cfg.MODEL.MIT.VARIANT = "b0"
    file = tmp_path / "mit.yaml"
    file.write_text(small_cfg.dump())
    printed, document = run("--size", "128x192", "--config-file", str(file), "--budget", "70%")
    backbones = document["backbone_by_token_merging"]
    assert list(backbones) == ["none", "bsm_hq", "bsm_fast", "n2d_2x2"]
    assert backbones["none"] > backbones["bsm_hq"] > backbones["bsm_fast"]
    assert "| none " in printed
    assert "100.0 %" in printed


def test_average_over_the_sizes_of_a_data_set(run, config_file, tmp_path):
    # There are no such files: only sizes are read.
    sizes = [(60, 90), (60, 90), (90, 60), (64, 64)]
    entries = [{"file_name": "none.jpg", "height": h, "width": w} for h, w in sizes]
    DatasetCatalog.register("flops_sizes", lambda: entries)
    try:
        printed, document = run(
            *("--dataset", "flops_sizes", "-n", "3", "--config-file", config_file),
            *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"),
        )
    finally:
        DatasetCatalog.remove("flops_sizes")
    assert "the first 3 of flops_sizes" in printed
    _, at_size = run("--size", "64x96", "--config-file", config_file)
    parts = {part["name"]: part for part in document["models"]["small"]["parts"]}
    expected = {part["name"]: part for part in at_size["models"]["small"]["parts"]}
    # 64x96 and 96x64 cost the same but in Swin's windows.
    found = parts["encoder"]["multiply_adds"]
    assert found == {"mean": expected["encoder"]["multiply_adds"]["mean"], "deviation": 0.0}
    assert parts["results"]["multiply_adds"]["mean"] < expected["results"]["multiply_adds"]["mean"]


def test_planning_writes_a_model_that_builds(run, config_file, tmp_path):
    file = tmp_path / "chosen.yaml"
    printed, document = run(
        *("--size", "64x64", "--budget", "70%", "--choose", "1,1,2", "--write", str(file)),
        *("--max-layers", "3", "--config-file", config_file),
    )
    assert "layers seen by res5" in printed
    assert all(one["share"] <= 0.7 for one in document["front"])
    assert document["lite_m2f"]
    for one in document["lite_m2f"]:
        assert one["share"] <= 0.7
        per_block = one["num_layers"] // one["num_blocks"]
        assert f"| ({per_block}+1)x{one['num_blocks']} " in printed
    assert f"{file}: builds" in printed
    assert setup_cfg(str(file)).MODEL.PROSCALE.PROSCALE_NUM_LAYERS == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choose", "1,1,1"], "--choose and --write go together"),
        (["--choose", "1,1,1", "--write", "a.yaml"], "--choose needs --budget"),
        (["--budget", "1%"], "--budget is 1%: even one layer"),
        (
            ["--budget", "50%", "--choose", "6,6,6", "--write", "a.yaml"],
            "--choose is 6,6,6: expected layers within --budget 50% and --max-layers 6",
        ),
        (["--dataset", "nowhere"], "--dataset is nowhere: expected registered ones"),
        (["--plot", "a.gif"], r"--plot is a.gif: expected a name that ends in \.svg"),
        (["--results", "a.json"], "--results needs --plot"),
    ],
)
def test_wrong_options_end_with_one_sentence(arguments, message, config_file):
    with pytest.raises(SystemExit, match=message):
        main(["flops", *arguments, "--config-file", config_file])


def test_impossible_models_end_with_one_sentence(config_file):
    override = ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN")
    with pytest.raises(SystemExit, match=r"small\.yaml: MODEL.*DECODER_NAME is"):
        main(["flops", "--config-file", config_file, "--size", "64x64", *override])


@pytest.mark.parametrize("budget", ["55", "0%", "much%", "nan%", "inf%"])
def test_wrong_budgets_are_refused(budget, capsys):
    with pytest.raises(SystemExit):
        main(["flops", "--config-file", "any.yaml", "--budget", budget])
    assert "expected a percentage, such as 55%" in capsys.readouterr().err


def test_budget_of_a_detector(tmp_path, capsys):
    base, file = "configs/coco/detection/dino_r50.yaml", tmp_path / "dino.yaml"
    choice = ["--budget", "25%", "--max-layers", "2", "--choose", "0,1,1,1", "--write", str(file)]
    main(["flops", "--size", "256x320", "--config-file", base, *choice])
    printed = capsys.readouterr().out
    assert "cost at most 25% of the full encoder's" in printed
    assert "p1,p2,p3,p4" in printed and "layers seen by res6" in printed
    cfg = setup_cfg(str(file), ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.DETECTOR.ENCODER == "proscale"
    assert cfg.MODEL.DETECTOR.PROSCALE_NUM_LAYERS == [0, 1, 1, 1]
    assert "its encoder is counted at" in printed
