import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from proscale.benchmark.merged_tokens import (
    KEYS_AND_VALUES,
    QUERIES,
    MergedMap,
    draw_merged_tokens,
    merged_maps,
)
from proscale.modeling.backbones import MixVisionTransformer


class Model(nn.Module):
    def __init__(self, token_merging):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = MixVisionTransformer(
            embed_dim=8,
            depths=[2, 1, 1, 1],
            num_heads=[1, 2, 3, 4],
            sr_ratios=[8, 4, 2, 1],
            token_merging=token_merging,
        )

    def forward(self, batch):
        return self.backbone(batch[0]["image"][None])


@pytest.fixture
def image():
    return torch.randn(3, 128, 192, generator=torch.Generator().manual_seed(0))


def test_pooling_merges_its_windows(image):
    merging = [{}, {"q_mode": "n2d", "q_s": 2}, {"kv_mode": "n2d", "kv_s": 2}, {}]
    queries, keys = merged_maps(Model(merging).eval(), image)
    assert (queries.stage, queries.side, queries.length) == (2, QUERIES, 8 * 12)
    windows = np.arange(8 * 12).reshape(8, 12).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(queries.owners, windows)
    assert (keys.stage, keys.side, keys.owners.shape) == (3, KEYS_AND_VALUES, (4, 6))


def test_matching_merges_its_share(image):
    """Stages 1 and 2 of bsm_hq: 60 % of the reduced keys; 3 and 4: 80 % of the queries."""
    maps = merged_maps(Model("bsm_hq").eval(), image)
    assert [(m.stage, m.side, m.owners.shape) for m in maps] == [
        (1, KEYS_AND_VALUES, (4, 6)),
        (2, KEYS_AND_VALUES, (4, 6)),
        (3, QUERIES, (8, 12)),
        (4, QUERIES, (4, 6)),
    ]
    assert [m.length for m in maps] == [24 - 14, 24 - 14, 96 - 76, 24 - 19]


def test_nothing_merged_nothing_noted(image):
    assert merged_maps(Model("none").eval(), image) == []


def test_model_is_left_as_it_was(image):
    model = Model("bsm_fast").eval()
    with torch.no_grad():
        before = model([{"image": image}])
        merged_maps(model, image)
        after = model([{"image": image}])
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture(tmp_path, suffix):
    owners = np.array([[0, 0, 1], [2, 3, 3]])
    path = tmp_path / "new" / f"merged{suffix}"
    image = np.full((20, 28, 3), 100, dtype=np.uint8)
    maps = {"one": [MergedMap(1, QUERIES, owners)], "two": [MergedMap(2, QUERIES, owners)] * 2}
    draw_merged_tokens(path, image, maps, padded_size=(32, 32))
    assert path.stat().st_size > 1000
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.width == 1000  # two panels


def test_tokens_alone_show_the_image():
    from proscale.benchmark.merged_tokens import _overlay

    image = np.full((4, 6, 3), 51, dtype=np.uint8)
    picture = _overlay(image, np.array([[0, 0, 1], [2, 3, 3]]), padded_size=(4, 6))
    alone = picture[:2, 4:], picture[2:, :2]
    assert all(np.allclose(part, 0.2) for part in alone)
    assert not np.isclose(picture[:2, :4], 0.2).any()
    assert np.allclose(picture[2, 2:], 1.0)  # the border of the lower region
