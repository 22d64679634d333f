import pytest
import torch
from torch import nn

from proscale.config import setup_cfg
from proscale.engine.optimizer import build_optimizer, full_model_clip_norm, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv = nn.Conv2d(3, 4, 1)
        self.backbone.norm = nn.LayerNorm(4)
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.backbone.frozen = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.backbone.dwconv = nn.Conv2d(4, 4, 3, groups=4)
        self.sem_seg_head = nn.ModuleDict({"fuse": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
        self.query_embed = nn.Embedding(5, 4)
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.head = nn.Linear(4, 4)
        self.tied = self.head
        self.tied_weight = nn.Linear(4, 4, bias=False)
        self.tied_weight.weight = self.head.weight


def make_cfg(**solver):
    solver = {
        "BASE_LR": 1.0,
        "BACKBONE_MULTIPLIER": 0.5,
        "HEAD_MULTIPLIER": 10.0,
        "WEIGHT_DECAY": 0.25,
        "WEIGHT_DECAY_NORM": 0.125,
        "WEIGHT_DECAY_EMBED": 0.0625,
        **solver,
    }
    overrides = [item for key, value in solver.items() for item in (f"SOLVER.{key}", value)]
    return setup_cfg("", ["MODEL.DEVICE", "cpu", *overrides])


def settings_by_name(cfg, model):
    return {
        name: (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for name in group["param_names"]
    }


def test_every_trainable_parameter_is_in_one_group():
    model = Model()
    grouped = [p for group in parameter_groups(make_cfg(), model) for p in group["params"]]
    expected = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(expected)
    assert {id(p) for p in grouped} == {id(p) for p in expected}


def test_names_belong_to_the_parameters():
    model = Model()
    by_name = dict(model.named_parameters())
    for group in parameter_groups(make_cfg(), model):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert by_name[name] is parameter


def test_settings():
    assert settings_by_name(make_cfg(), Model()) == {
        "level_embed": (1.0, 0.25),
        "backbone.relative_position_bias_table": (0.5, 0.0),
        "backbone.conv.weight": (0.5, 0.25),
        "backbone.conv.bias": (0.5, 0.25),
        "backbone.norm.weight": (0.5, 0.125),
        "backbone.norm.bias": (0.5, 0.125),
        "backbone.dwconv.weight": (0.5, 0.0),
        "backbone.dwconv.bias": (0.5, 0.0),
        "sem_seg_head.fuse.weight": (10.0, 0.25),
        "sem_seg_head.fuse.bias": (10.0, 0.25),
        "sem_seg_head.norm.weight": (10.0, 0.125),
        "sem_seg_head.norm.bias": (10.0, 0.125),
        "norms.0.weight": (1.0, 0.125),
        "norms.0.bias": (1.0, 0.125),
        "norms.1.weight": (1.0, 0.125),
        "norms.1.bias": (1.0, 0.125),
        "query_embed.weight": (1.0, 0.0625),
        "head.weight": (1.0, 0.25),
        "head.bias": (1.0, 0.25),
    }


def test_groups_have_distinct_settings():
    groups = parameter_groups(make_cfg(), Model())
    assert len({(g["lr"], g["weight_decay"]) for g in groups}) == len(groups) == 8


def test_settings_of_biases():
    settings = settings_by_name(make_cfg(BIAS_LR_FACTOR=2.0, WEIGHT_DECAY_BIAS=0.0), Model())
    assert settings["head.bias"] == (2.0, 0.0)
    assert settings["backbone.conv.bias"] == (1.0, 0.0)
    assert settings["head.weight"] == (1.0, 0.25)


def test_optimizer_by_name():
    model = Model()
    assert type(build_optimizer(make_cfg(), model)) is torch.optim.AdamW
    sgd = build_optimizer(make_cfg(OPTIMIZER="SGD", MOMENTUM=0.7, NESTEROV=True), model)
    assert type(sgd) is torch.optim.SGD
    assert {(g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.7, True)}


@pytest.mark.parametrize(
    ("clip_type", "bounds"), [("value", [0.1, 0.1]), ("norm", [0.06, 0.08]), ("full_model", [3, 4])]
)
def test_optimizer_clips_single_parameters_only(clip_type, bounds):
    """full_model clipping belongs to the training step, so that here the gradients stay."""
    cfg = make_cfg(
        OPTIMIZER="SGD",
        MOMENTUM=0.0,
        WEIGHT_DECAY=0.0,
        **{
            "CLIP_GRADIENTS.ENABLED": True,
            "CLIP_GRADIENTS.CLIP_TYPE": clip_type,
            "CLIP_GRADIENTS.CLIP_VALUE": 0.1,
        },
    )
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    build_optimizer(cfg, model).step()
    torch.testing.assert_close(model.weight.data, -torch.tensor([bounds], dtype=torch.float32))


def test_full_model_clip_norm():
    enabled = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 0.01}
    assert full_model_clip_norm(make_cfg()) is None
    assert full_model_clip_norm(make_cfg(**enabled)) is None
    cfg = make_cfg(**enabled, **{"CLIP_GRADIENTS.CLIP_TYPE": "full_model"})
    assert full_model_clip_norm(cfg) == 0.01
