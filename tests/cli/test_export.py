"""The command, and the example of its document."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from proscale.config import setup_cfg
from proscale.export import OnnxRunner, files, quantise
from proscale_cli import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture
def arguments(small_cfg, tmp_path):
    """A model that is exported in seconds, whose segments pass without training."""
    small_cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [1, 0, 0], "MODEL.MASK_FORMER.DEC_LAYERS", 2),
            *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0),
            *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0),
            *("INPUT.MIN_SIZE_TEST", 100, "INPUT.MAX_SIZE_TEST", 200, "DATASETS.TEST", ()),
        ]
    )
    config, weights = tmp_path / "config.yaml", tmp_path / "weights.pth"
    config.write_text(small_cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(small_cfg).state_dict()}, weights)
    return ["--config-file", str(config), "--weights", str(weights)]


def check_quantisation(file, small):
    quantise(file, small)
    assert small.stat().st_size < 0.5 * file.stat().st_size
    full, quantised = OnnxRunner(file), OnnxRunner(small)
    assert quantised.metadata == full.metadata
    images = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    outputs = zip(full(images), quantised(images), strict=True)
    assert all(0 < (one - other).abs().max() < 1 for one, other in outputs)
    assert [path.name for path in small.parent.glob("*.onnx")] == ["int8.onnx"]  # and nothing else
    in_place = shutil.copy(file, small.with_name("in_place.onnx"))
    quantise(Path(in_place), Path(in_place))
    assert Path(in_place).read_bytes() == small.read_bytes()


def test_a_checked_file_and_the_documents_example(arguments, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file, figures = tmp_path / "new" / "model.onnx", tmp_path / "figures.json"
    main(
        ["export", *arguments, "--format", "onnx", "--output", str(file), "--json", str(figures)]
        + ["--check-size", "96x128", "128x100", "--repeats", "1"]
    )
    check_quantisation(file, tmp_path / "int8.onnx")
    printed = capsys.readouterr().out
    assert "Checked on random pixels" in printed
    assert f"Written: {file}" in printed
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    document = json.loads(figures.read_text())
    found = document["files"]["float32"]
    assert [one["shape"] for one in found["differences"]] == [[2, 3, 96, 128], [1, 3, 128, 100]]
    assert all(one["mask_logits"] < 1e-3 for one in found["differences"])
    assert found["bytes"] == file.stat().st_size

    # The first example, as it stands in the document, on an image that needs no resizing.
    example, *_ = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    script, picture = tmp_path / "example.py", tmp_path / "image.png"
    script.write_text(example)
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (10, 15, 3), dtype=np.uint8))
    coarse.resize((150, 100), Image.Resampling.BICUBIC).save(picture)
    completed = subprocess.run(
        [sys.executable, script, file, picture],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    result = np.asarray(Image.open(tmp_path / "panoptic.png"))

    model = build_model(setup_cfg(arguments[1], ["MODEL.WEIGHTS", ""])).eval()
    model.load_state_dict(torch.load(arguments[3])["model"])
    pixels = np.asarray(Image.open(picture))[..., ::-1].transpose(2, 0, 1)  # BGR, the default
    with torch.no_grad():
        (expected,) = model([{"image": torch.from_numpy(np.ascontiguousarray(pixels))}])
    expected, segments = expected["panoptic_seg"]
    assert len(segments) == len(completed.stdout.splitlines()) > 1
    assert (result == expected.numpy()).mean() > 0.999


def test_a_file_that_fails_its_check_is_not_written(arguments, tmp_path, monkeypatch):
    wrong = (torch.zeros(1), torch.zeros(1))
    monkeypatch.setattr(files, "ProgramRunner", lambda file: lambda images: wrong)
    monkeypatch.setattr(files, "export_program", lambda network: None)
    monkeypatch.setattr(files, "write_program", lambda program, file, about: file.touch())
    file = tmp_path / "model.pt2"
    with pytest.raises(SystemExit, match=r"model\.pt2 is not written: outputs differ by more"):
        main(
            ["export", *arguments, "--format", "torch-export", "--output", str(file)]
            + ["--check-size", "96x128", "128x96", "--repeats", "1"]
        )
    assert not list(tmp_path.glob("*.pt2"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "torch-export"], r"--output is model\.onnx: .* end in \.pt2"),
        (
            ["--format", "torch-export", "--output", "model.pt2", "--int8"],
            "--int8 goes with --format onnx",
        ),
        (["--check-size", "64x64", "96x96"], "--check-size is 64x64: expected sides from 96"),
        (["--evaluate"], r"--evaluate: the data set '' of DATASETS\.TEST cannot be read"),
        (["--weights", "nowhere.pth"], r"MODEL\.WEIGHTS: there is no file nowhere\.pth"),
        (
            ["MODEL.MASK_FORMER.TEST.DTYPE", "bfloat16"],
            r"MODEL\.MASK_FORMER\.TEST\.DTYPE is bfloat16: expected float32",
        ),
    ],
)
def test_ends_with_one_sentence(arguments, extra, message):
    with pytest.raises(SystemExit, match=message):
        main(["export", *arguments, "--format", "onnx", "--output", "model.onnx", *extra])


def test_missing_packages_are_named(arguments, monkeypatch):
    monkeypatch.setattr("proscale.export.files.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'proscale\[export\]'"):
        main(["export", *arguments, "--format", "onnx", "--output", "model.onnx"])
