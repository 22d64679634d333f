"""A small decoder, and levels of features that it takes."""

import pytest
import torch

from proscale.modeling import build_transformer_decoder


@pytest.fixture
def build(small_cfg):
    """Returns a function: KEY VALUE pairs → the decoder, of the same weights each time."""

    def build(*overrides):
        small_cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return build_transformer_decoder(small_cfg, small_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)

    return build


@pytest.fixture
def features():
    """Levels ``(2, 64, h, w)``, coarse to fine, and mask features."""
    torch.manual_seed(1)
    levels = [torch.randn(2, 64, 2**i, 3 * 2**i) for i in range(3)]
    return levels, torch.randn(2, 48, 8, 24)
