import pytest
import torch
from torch import nn

from proscale.modeling import SlidingWindow, with_sliding_window


class Recorder(nn.Module):
    """Scores are the image itself, scaled by how many windows were seen; notes the windows."""

    def __init__(self, factors=()):
        super().__init__()
        self.windows, self.factors = [], list(factors)

    def forward(self, batch):
        (sample,) = batch
        assert set(sample) == {"image"}
        self.windows.append(sample["image"])
        factor = self.factors.pop(0) if self.factors else 1.0
        return [{"sem_seg": sample["image"] * factor}]


def coordinates(height, width):
    """(3, H, W): row, column, one."""
    rows = torch.arange(float(height))[:, None].expand(height, width)
    columns = torch.arange(float(width)).expand(height, width)
    return torch.stack((rows, columns, torch.ones(height, width)))


def places(windows):
    return [(*map(int, w[:2, 0, 0]), *map(int, w[:2, -1, -1])) for w in windows]


def test_cityscapes_takes_three_windows():
    """As published: 1024 every 768, the last one moved back inside."""
    recorder = Recorder()
    model = SlidingWindow(recorder, crop_size=(1024, 1024), stride=(768, 768))
    model([{"image": coordinates(1024, 2048)}])
    assert places(recorder.windows) == [(0, left, 1023, left + 1023) for left in (0, 768, 1024)]


@pytest.mark.parametrize("size", [(8, 8), (9, 20), (5, 30), (23, 17), (3, 4)])
def test_mean_of_equal_scores_is_the_score(size):
    image = coordinates(*size)
    model = SlidingWindow(Recorder(), crop_size=(8, 10), stride=(3, 7))
    (result,) = model([{"image": image}])
    torch.testing.assert_close(result["sem_seg"], image)


def test_overlap_is_averaged():
    recorder = Recorder(factors=[1.0, 3.0])
    model = SlidingWindow(recorder, crop_size=(4, 4), stride=(4, 2))
    (result,) = model([{"image": torch.ones(1, 4, 6)}])
    assert result["sem_seg"][0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_result_has_the_requested_size():
    model = SlidingWindow(Recorder(), crop_size=(4, 4), stride=(4, 4))
    samples = [
        {"image": torch.ones(1, 8, 8), "height": 16, "width": 24},
        {"image": torch.ones(1, 8, 8)},
    ]
    shapes = [tuple(result["sem_seg"].shape) for result in model(samples)]
    assert shapes == [(1, 16, 24), (1, 8, 8)]


def test_off_by_default(cfg):
    model = nn.Identity()
    assert with_sliding_window(cfg, model) is model


def test_from_config(cfg):
    cfg.TEST.SLIDING_WINDOW.ENABLED = True
    cfg.TEST.SLIDING_WINDOW.CROP_SIZE = [6, 8]
    cfg.TEST.SLIDING_WINDOW.STRIDE = [3, 4]
    model = with_sliding_window(cfg, nn.Identity())
    assert (model.crop_size, model.stride) == ((6, 8), (3, 4))


@pytest.mark.parametrize("stride", [(0, 4), (1025, 4)])
def test_windows_leave_no_gaps(stride):
    with pytest.raises(ValueError, match=r"stride is \(.*, 4\): expected pixels from 1"):
        SlidingWindow(nn.Identity(), crop_size=(1024, 1024), stride=stride)


def test_mask_former_small(small_cfg):
    """Windows through a real MaskFormer: one window equals the model itself."""
    from detectron2.modeling import build_model

    test = small_cfg.MODEL.MASK_FORMER.TEST
    test.PANOPTIC_ON = test.INSTANCE_ON = False
    small_cfg.TEST.SLIDING_WINDOW.ENABLED = True
    model = build_model(small_cfg).eval()
    sample = {"image": torch.full((3, 64, 96), 7.0), "height": 32, "width": 48}
    with torch.no_grad():
        (whole,) = model([sample])
    (window,) = with_sliding_window(small_cfg, model)([sample])
    torch.testing.assert_close(window["sem_seg"], whole["sem_seg"])
