"""Words to models: names, and repositories in a local cache with weights of Transformers."""

import json
import re

import pytest
import torch
from detectron2.modeling import build_model
from huggingface_hub import constants
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from proscale.checkpoint import Checkpointer
from proscale.config import setup_cfg
from proscale.errors import ConfigError
from proscale.predict import Predictor
from proscale.zoo import CATALOGUE, find_weights, is_model, model_names
from proscale.zoo.catalogue import PublishedModel

pytestmark = pytest.mark.usefixtures("restored_catalogs")

LABELS = dict(enumerate(("sky", "sea", "sand")))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Returns a function: OWNER/NAME, model → the model in the Hub's cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def write(name: str, model, *, safe: bool = True) -> str:
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        model.save_pretrained(snapshot)
        if not safe:
            # As the Hub tells which files a repository does not have.
            missing = folder / ".no_exist" / ("0" * 40) / "model.safetensors"
            missing.parent.mkdir(parents=True)
            missing.touch()
            (snapshot / "model.safetensors").unlink()
            torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
        return f"hf://{name}"

    return write


@pytest.fixture
def segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[16, 32, 80, 128], num_attention_heads=[1, 2, 5, 8], depths=[1, 1, 2, 1]
    )
    config.decoder_hidden_size, config.id2label = 48, LABELS
    return SegformerForSemanticSegmentation(config).eval()


@pytest.fixture
def mask2former():
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 4],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=48,
        hidden_dim=64,
        num_attention_heads=4,
        dim_feedforward=96,
        encoder_layers=2,
        decoder_layers=3,
        num_queries=9,
    )
    config.id2label = LABELS
    return Mask2FormerForUniversalSegmentation(config).eval()


def _incompatible(cfg, monkeypatch):
    """Names that differ between the model of ``cfg`` and its weights."""
    found = []
    monkeypatch.setattr(
        Checkpointer, "_log_incompatible_keys", lambda self, keys: found.append(keys)
    )
    model = build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    (keys,) = found
    return keys.missing_keys, keys.unexpected_keys


class TestRepositories:
    def test_segformer(self, repository, segformer):
        word = repository("someone/segformer-beach", segformer)
        predictor = Predictor(word)
        assert predictor.classes.names == ("sky", "sea", "sand")
        image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8)
        cfg = predictor.cfg
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        with torch.no_grad():
            theirs = segformer((image.permute(2, 0, 1) - mean)[None] / std).logits
            model = build_model(cfg).eval()
            Checkpointer(model).load(cfg.MODEL.WEIGHTS)
            ours = model.sem_seg_head.layers(
                model.backbone((image.permute(2, 0, 1) - mean)[None] / std)
            )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_mask2former(self, repository, mask2former, monkeypatch):
        word = repository("someone/mask2former-swin-coco-panoptic", mask2former)
        cfg = setup_cfg(word)
        assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 9
        assert cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
        missing, unexpected = _incompatible(cfg, monkeypatch)
        assert not missing
        assert not unexpected
        assert Predictor(word).classes.names == ("sky", "sea", "sand")

    def test_pickles_are_read_where_there_is_nothing_else(self, repository, segformer):
        word = repository("someone/segformer-old", segformer, safe=False)
        assert Predictor(word).classes.names == ("sky", "sea", "sand")

    def test_as_weights_of_a_configuration(self, repository, segformer):
        word = repository("someone/segformer-beach", segformer)
        assert find_weights(word).endswith("model.safetensors")
        cfg = setup_cfg("ade20k/semantic/segformer_b0", ["MODEL.WEIGHTS", word])
        assert find_weights(word) == cfg.MODEL.WEIGHTS

    def test_a_task_is_needed(self, repository, mask2former):
        word = repository("someone/mask2former-beach", mask2former)
        with pytest.raises(ConfigError, match="its name has no task: expected one with panoptic"):
            setup_cfg(word)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "detr"}, 'model_type is "detr": expected mask2former, segformer'),
            ({"depths": None}, r"is no|expected"),
            ({"id2label": {"0": "a\nb"}}, "expected names of classes"),
            ({"id2label": {"7": "a"}}, "it has no usable '0'"),
        ],
    )
    def test_other_configurations_are_refused(
        self, repository, segformer, tmp_path, change, message
    ):
        word = repository("someone/segformer-beach", segformer)
        (file,) = tmp_path.rglob("config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ConfigError, match=message):
            setup_cfg(word)

    @pytest.mark.usefixtures("repository")
    def test_without_a_network_the_remedy_is_told(self, tmp_path):
        expected = (
            "cannot be fetched (there is no network): expected a network, or `hf download a/b`"
        )
        with pytest.raises(ConfigError, match=re.escape(expected)):
            setup_cfg("hf://a/b")

    @pytest.mark.parametrize("word", ["hf://", "hf://a", "hf://a/b/c", "hf://../b c"])
    def test_other_addresses_are_refused(self, word):
        with pytest.raises(ConfigError, match="expected hf://OWNER/NAME"):
            setup_cfg(word)


class TestNames:
    def test_of_the_catalogue_lead_to_their_source(self, repository, segformer, monkeypatch):
        source = repository("someone/segformer-beach", segformer)
        published = PublishedModel(source, "", "semantic", "beach", "MiT", "", "")
        monkeypatch.setitem(CATALOGUE, "beach", published)
        assert Predictor("beach").classes.names == ("sky", "sea", "sand")
        assert find_weights("beach") == find_weights(source)

    def test_configurations_of_the_catalogue_exist(self):
        for published in CATALOGUE.values():
            assert setup_cfg(published.config, published.overrides)

    def test_names_are_models(self):
        assert all(map(is_model, model_names()))
        assert not is_model("coco/panoptic/proscale_r50_333")
        assert not is_model("my.yaml")

    def test_the_nearest_is_told(self):
        with pytest.raises(ConfigError, match=r"nearest are .*segformer_b0_ade20k"):
            setup_cfg("segformer_b0_ade20")

    def test_files_that_name_their_weights_by_name_fetch_nothing(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text("MODEL: {WEIGHTS: 'hf://a/b'}")
        assert setup_cfg(str(file)).MODEL.WEIGHTS == "hf://a/b"
