"""The command, on models that take milliseconds."""

import json
import re

import pytest

from proscale_cli import main

LAYERS = ("1,1,1", "1,2,1")


@pytest.fixture
def config_file(small_cfg, tmp_path):
    """Writes the small model's YAML under a name, with overrides."""

    def write(name, *overrides):
        cfg = small_cfg.clone()
        cfg.merge_from_list(list(overrides))
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(cfg.dump())
        return str(path)

    return write


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the command on the CPU without warm-up; returns its output and its JSON.

    Peak memory takes a process of its own, for seconds, and is tested elsewhere.
    """
    monkeypatch.setattr("proscale.benchmark.models.WARMUP", 0)
    monkeypatch.setattr("proscale.benchmark.models.can_measure_resident", lambda: True)
    monkeypatch.setattr("proscale.benchmark.models.in_fresh_process", lambda *_: 300 * 2**20)
    monkeypatch.setattr("proscale.cli.benchmark.fp32_peak", lambda device: 4e11)

    def run(*arguments):
        file = tmp_path / "figures" / "benchmark.json"
        main(["benchmark", "--device", "cpu", "--json", str(file), *arguments])
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def test_models_in_turns(run, config_file):
    first = config_file("first.yaml")
    second = config_file("second.yaml", "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [2, 2, 2])
    printed, document = run(
        *("--config-file", first, second, "--size", "50x70", "--batch", "2"),
        *("--repeats", "2", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "12"),
    )
    assert "weights: random, MODEL.WEIGHTS is not loaded; size: 50x70; batch: 2" in printed
    assert "overrides: MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 12" in printed
    assert "fp32 peak (matrix products, measured in this run): 400 GFLOP/s" in printed
    assert list(document["models"]) == ["first", "second"]
    for model in document["models"].values():
        total = model["times"]["total"]
        assert len(total["samples"]) == 2
        assert model["images_per_second"] == pytest.approx(2 / total["median"])
        network = model["speed"]["network"]
        parts = [speed for part, speed in model["speed"].items() if part != "network"]
        assert network["multiply_adds"] == sum(part["multiply_adds"] for part in parts)
        seconds = sum(
            model["times"][part]["median"]
            for part in ("backbone", "encoder", "transformer decoder")
        )
        assert model["times"]["network"]["median"] == pytest.approx(seconds, rel=0.5)
        assert network["flops_per_second"] == pytest.approx(
            2 * 2 * network["multiply_adds"] / model["times"]["network"]["median"]
        )
        assert network["share_of_fp32_peak"] == pytest.approx(
            network["flops_per_second"] / document["fp32_peak_flops"]
        )
    rows = [line.split("|") for line in printed.splitlines() if "| total" in line]
    assert [row[1].strip() for row in rows] == ["first", "second"]
    assert rows[0][5].strip() == "1.00"


def test_training_step(run, config_file):
    printed, document = run(
        *("--config-file", config_file("small.yaml"), "--size", "64x64"),
        *("--repeats", "1", "--train", "--dtype", "bf16"),
    )
    assert "training step" in printed
    assert "dtype: bf16" in printed
    assert "of fp32 peak" not in printed
    model = document["models"]["small"]
    assert {"losses", "backward"} < set(model["times"])
    assert model["peak_memory_bytes"] > 300 * 2**20
    assert model["speed"] == {}


def test_dtypes_side_by_side(run, config_file, tmp_path):
    picture, tables = tmp_path / "out" / "latency.svg", tmp_path / "tables.md"
    quality = tmp_path / "quality.json"
    quality.write_text('{"small, bf16": {"PQ": 40.0}}')
    _, document = run(
        *("--dtype", "fp32", "bf16", "--size", "32x64", "--repeats", "1"),
        *("--plot", str(picture), "--markdown", str(tables), "--results", str(quality)),
        *("--config-file", config_file("small.yaml")),
    )
    assert list(document["models"]) == ["small, fp32", "small, bf16"]
    assert "| small, bf16 |" in tables.read_text()
    drawn = picture.read_text()
    assert all(name in drawn for name in ("small, fp32", "small, bf16", "PQ", "latency, ms"))


@pytest.mark.parametrize(("kept", "reported"), [(True, "kept"), (False, "given back")])
def test_freed_memory_is_reported(run, config_file, monkeypatch, kept, reported):
    monkeypatch.setattr("proscale.cli.benchmark.disable_malloc_trim", lambda: kept)
    arguments = ("--size", "32x32", "--repeats", "1", "--config-file", config_file("small.yaml"))
    _, document = run(*arguments)
    assert document["settings"]["freed memory"] == reported


def test_files_of_the_same_name_keep_their_folders(run, config_file):
    files = [config_file("a/small.yaml"), config_file("b/small.yaml")]
    _, document = run("--config-file", *files, "--size", "32x32", "--repeats", "1")
    assert list(document["models"]) == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no.yaml"], "there is no configuration file no.yaml"),
        (["--config-file", "a.yaml", "a.yaml"], "--config-file has a file twice"),
        (["--config-file", "a.yaml", "--plot", "a.gif"], r"--plot is a.gif: expected .* \.svg"),
        (["--config-file", "a.yaml", "--results", "a.json"], "--results needs --plot"),
    ],
)
def test_wrong_options_end_with_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["benchmark", *arguments])


def test_impossible_models_end_with_one_sentence(config_file):
    file = config_file("small.yaml", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN")
    with pytest.raises(SystemExit, match=r"small\.yaml: MODEL.*DECODER_NAME is"):
        main(["benchmark", "--config-file", file])


def test_missing_cuda_ends_with_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device is cuda, but CUDA is not available"):
        main(["benchmark", "--device", "cuda", "--config-file", "any.yaml"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("--size", "640"), ("--size", "0x32"), ("--size", "-1x32"), ("--repeats", "0")],
)
def test_wrong_numbers_are_refused_by_option(option, value, config_file, capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--config-file", "any.yaml", f"{option}={value}"])
    assert f'argument {option}: "{value.split("x")[0]}' in capsys.readouterr().err


def test_budgets(run, config_file, tmp_path):
    picture = tmp_path / "budgets.svg"
    file = config_file("small.yaml", "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [2, 1, 2])
    arguments = ("--size", "32x64", "--repeats", "1", "--plot", str(picture))
    printed, document = run(
        *("--budgets", "all", "--latency", "100000ms", *arguments, "--config-file", file)
    )
    assert list(document["budgets"]) == ["1,1,1", "1,1,2", "2,1,1", "2,1,2"]
    assert "MODEL.PROSCALE.BUDGET [2,1,2]" in printed
    costs = [found["encoder_multiply_adds"] for found in document["budgets"].values()]
    assert costs[0] == min(costs) < costs[-1] == max(costs)
    networks = [found["network_multiply_adds"] for found in document["budgets"].values()]
    assert networks[3] - networks[0] == costs[3] - costs[0]
    drawn = picture.read_text()
    assert all(budget in drawn for budget in document["budgets"])
    printed, document = run("--budgets", "1,1,1:2,1,1", *arguments[:4], "--config-file", file)
    assert list(document["budgets"]) == ["1,1,1", "2,1,1"]


def test_budgets_with_merging_and_scales(run, config_file):
    overrides = ["MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.VARIANT", "b0"]
    printed, document = run(
        *("--budgets", "1,1,1:1,2,1", "--merging", "none", "bsm_fast", "--scales", "0.5", "1"),
        *("--size", "128x192", "--repeats", "1", "--budget", "9%"),
        *("--config-file", config_file("small.yaml", *overrides)),
        *("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[1,2,1]"),
    )
    names = [f"{layers} {merging}" for merging in ("none", "bsm_fast") for layers in LAYERS]
    assert list(document["budgets"]) == [*(f"{name} ×0.5" for name in names), *names]
    networks = {name: one["network_multiply_adds"] for name, one in document["budgets"].items()}
    assert networks["1,1,1 bsm_fast ×0.5"] == min(networks.values())
    assert networks["1,2,1 none"] == max(networks.values())
    best = "MODEL.PROSCALE.BUDGET [1,2,1] MODEL.MIT.TOKEN_MERGING none INPUT.MIN_SIZE_TEST 400"
    assert f"The best one affordable: {best} INPUT.MAX_SIZE_TEST 666" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "3,1,2"], r"budget is \[3, 1, 2\]: expected, for each stage, layers from"),
        (["--budgets", "all", "--train"], r"--budgets is for inference of one --config-file"),
        (["--evaluate"], r"--evaluate needs --budgets: all, or some"),
        (["--scales", "0.5"], r"--scales needs --budgets: all, or some"),
        (["--budgets", "all", "--scales", "2"], '"2": expected numbers above 0, up to 1'),
        (["--budgets", "all", "--merging", "none"], "the backbone is a .*: expected a MixVision"),
        (["--budgets", "all", "--latency", "3s"], "expected milliseconds, such as 300ms"),
        (["--budgets", "1;2"], "expected layers of each stage, such as 3,3,3"),
    ],
)
def test_wrong_arguments_of_budgets_are_named(run, config_file, arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments, "--size", "32x32", "--config-file", config_file("small.yaml"))
    assert re.search(message, f"{error.value.code} {capsys.readouterr().err}")
