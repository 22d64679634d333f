"""Models of ``hubconf.py`` by torch.hub: all build, arguments take effect, without a network."""

import importlib.util
import inspect
import socket
from pathlib import Path

import pytest
import torch

from proscale.checkpoint import write_checkpoint

REPO = str(Path(__file__).parents[1])
SPEC = importlib.util.spec_from_file_location("hubconf", f"{REPO}/hubconf.py")
HUBCONF = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(HUBCONF)
ENTRIES = [
    name for name, value in vars(HUBCONF).items() if callable(value) and not name.startswith("_")
]
SMALL = [
    "MODEL.MIT.VARIANT", "", "MODEL.MIT.EMBED_DIM", 8, "MODEL.MIT.NUM_HEADS", [1, 2, 3, 4],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16,
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(entry: str, *args, **options) -> torch.nn.Module:
    return torch.hub.load(REPO, entry, *args, source="local", **options)


def test_entries():
    assert set(ENTRIES) == {
        "mask2former_r50", "mask2former_swin_t", "proscale_r50", "proscale_swin_t",
        "rt_m2f_r50", "rt_m2f_swin_t",
        "lite_m2f_r50", "lite_m2f_swin_t",
        "proscale_efficientnet_lite0", "proscale_mit_b0", "proscale_mit_b2", "proscale_mit_b5",
        *(f"segformer_b{i}" for i in range(6)),
        "dino_r50", "dino_swin_t", "segformer_pose_b0", "segformer_pose_b5",
    }  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_builds(entry):
    with torch.device("meta"):
        model = load(entry, device="meta")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    documented = inspect.getdoc(getattr(HUBCONF, entry))
    for word in ("weights:", "task:", "device:", "overrides:", "Returns:"):
        assert word in documented
    assert ("merging:" in documented) == ("mit" in entry or "segformer" in entry)
    assert ("layers:" in documented) == ("proscale" in entry)


def test_encoders_of_detectors():
    with torch.device("meta"):
        stages = load("dino_r50", encoder="0111", device="meta").detection_head.transformer.encoder
        lite = load("dino_swin_t", encoder="lite", device="meta").detection_head.transformer.encoder
    assert stages.num_layers == [0, 1, 1, 1]
    assert type(lite).__name__ == "InterleavedEncoder"


def test_layers_and_task():
    with torch.device("meta"):
        model = load("proscale_r50", layers="111", task="cityscapes/semantic", device="meta")
    assert model.sem_seg_head.pixel_decoder.transformer.encoder.num_layers == [1, 1, 1]
    assert model.sem_seg_head.num_classes == 19


def test_merging_changes_the_result_of_the_same_weights(tmp_path):
    torch.manual_seed(0)
    unmerged = load("segformer_b0", overrides=SMALL)
    path = tmp_path / "weights.safetensors"
    write_checkpoint(path, unmerged.state_dict(), container=None)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    results = {}
    for merging in ("none", "n2d_2x2"):
        model = load("segformer_b0", str(path), merging=merging, overrides=SMALL)
        assert torch.equal(
            model.state_dict()["sem_seg_head.predictor.weight"],
            unmerged.state_dict()["sem_seg_head.predictor.weight"],
        )
        with torch.no_grad():
            results[merging] = model([{"image": image}])[0]["sem_seg"]
    assert results["none"].shape == (150, 64, 64)
    assert not torch.allclose(results["none"], results["n2d_2x2"])


def test_proscale_on_merged_tokens():
    with torch.device("meta"):
        merged = load("proscale_mit_b0", merging="bsm_hq", device="meta")
        unmerged = load("proscale_mit_b0", device="meta")
    assert merged.backbone.token_merging != unmerged.backbone.token_merging


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "999"},
            r"no configuration coco/panoptic/proscale_r50_999\.yaml: expected .*333",
        ),
        ({"task": "coco/nothing"}, "expected ade20k/instance/proscale_r50_111.yaml, "),
        ({"overrides": ["MODEL.NOTHING", 1]}, "no config key MODEL.NOTHING"),
        ({"weights": "nowhere.pth"}, "no file nowhere.pth"),
    ],
)
def test_errors_name_the_argument(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        load("proscale_r50", device="meta", **options)
