import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from proscale.benchmark.merging import VARIANTS
from proscale.config import setup_cfg
from proscale_cli import main

DATASET = "compare_merging_toy"
MODEL = {
    "META_ARCHITECTURE": "SemanticSegmentor",
    "DEVICE": "cpu",
    "BACKBONE": {"NAME": "MixVisionTransformer"},
    "MIT": {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1]},
    "SEM_SEG_HEAD": {
        "NAME": "SegFormerHead",
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "NUM_CLASSES": 3,
        "CONVS_DIM": 16,
        "NORM": "BN",
    },
}


@pytest.fixture
def arguments(tmp_path):
    """A configuration file, its weights, and a data set of one image."""
    random = np.random.default_rng(0)
    image, truth = tmp_path / "image.png", tmp_path / "truth.png"
    Image.fromarray(random.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(image)
    Image.fromarray(random.integers(0, 3, (96, 128), dtype=np.uint8)).save(truth)
    entry = {"file_name": str(image), "sem_seg_file_name": str(truth), "height": 96, "width": 128}
    DatasetCatalog.register(DATASET, lambda: [entry])
    MetadataCatalog.get(DATASET).set(stuff_classes=list("abc"), ignore_label=255)

    config, weights = tmp_path / "config.yaml", tmp_path / "weights.pth"
    document = {
        "MODEL": MODEL,
        "DATASETS": {"TEST": [DATASET]},
        "INPUT": {"MIN_SIZE_TEST": 96},
        "DATALOADER": {"NUM_WORKERS": 0},
        "VERSION": 2,
    }
    config.write_text(yaml.safe_dump(document))
    torch.manual_seed(0)
    model = build_model(setup_cfg(str(config)))
    torch.save({"model": model.state_dict()}, weights)
    yield ["--config-file", str(config), "--weights", str(weights), "--repeats", "1"]
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_table_figures_and_picture(arguments, tmp_path, capsys):
    figures, picture = tmp_path / "figures.json", tmp_path / "tokens.png"
    main(["compare-merging", *arguments, "--json", str(figures), "--picture", str(picture)])
    output = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == list(VARIANTS)
    document = json.loads(figures.read_text())
    assert document["settings"]["dataset"] == DATASET
    assert list(document["merging"]) == list(VARIANTS)
    unmerged = document["merging"]["none"]
    assert unmerged["agreement"] == 100
    assert f"{unmerged['metrics']['mIoU']:.2f}" == rows[2][1].strip()
    assert f"{unmerged['multiply_adds'] / 1e9:.2f}" == rows[2][3].strip()
    assert picture.is_file()


@pytest.mark.parametrize("extra", [[], ["--without-photo"]])
def test_picture_without_photo(arguments, extra, tmp_path, monkeypatch):
    grounds = []
    monkeypatch.setattr(
        "proscale.cli.compare_merging.draw_merged_tokens",
        lambda path, ground, maps, *, padded_size: grounds.append(ground),
    )
    main(["compare-merging", *arguments, "--picture", str(tmp_path / "tokens.png"), *extra])
    assert (grounds[0] == 255).all() == bool(extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--picture", "tokens.txt"], r"--picture is tokens\.txt: expected \.png"),
        (["--weights", "nowhere.pth"], r"MODEL\.WEIGHTS: there is no file nowhere\.pth"),
        (["MODEL.BACKBONE.NAME", "D2SwinTransformer"], r"expected MixVisionTransformer"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"], r"weights\.pth: the weights do not fit"),
    ],
)
def test_ends_with_one_sentence(arguments, extra, message):
    with pytest.raises(SystemExit, match=message):
        main(["compare-merging", *arguments, *extra])
