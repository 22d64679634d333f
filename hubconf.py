"""Models for ``torch.hub.load``, built from this repository's configurations.

Weights come from a file; nothing is downloaded, and no data are needed::

    import torch
    model = torch.hub.load("path/of/this/repository", "proscale_r50", source="local")
    segments = model([{"image": image}])[0]["panoptic_seg"]

The models are the public functions here; their arguments are in their docstrings.
"""

from collections.abc import Callable as _Callable
from collections.abc import Sequence as _Sequence
from pathlib import Path as _Path

from detectron2.modeling import build_model as _build_model
from torch import nn as _nn

from proscale.checkpoint import check_weights as _check_weights
from proscale.checkpoint import load_weights as _load_weights
from proscale.config import setup_cfg as _setup_cfg
from proscale.errors import ConfigError as _ConfigError

dependencies = ["torch", "torchvision", "detectron2", "pycocotools", "safetensors", "scipy"]

_CONFIGS = _Path(__file__).parent / "configs"
_COMMON = """

    Args:
        weights: a checkpoint file of any kind that MODEL.WEIGHTS takes; None leaves random weights.
        task: folder of the configuration below configs/, such as {tasks}.
        device: of the model, such as cpu or cuda.
        overrides: configuration keys and values, alternating.{more}

    Returns:
        the model in evaluation mode. It takes Detectron2's list of dictionaries, each with
        ``image`` (3, H, W), RGB, 0 to 255, and optionally ``height`` and ``width`` of the results.

    Raises:
        ConfigError: there is no such configuration or file of weights, or a key is unknown.
        CheckpointError: the weights do not fit.
"""
_LAYERS = """
        layers: of the encoder's three stages, such as "333" or "111"."""
_MERGING = """
        merging: of tokens (SegFormer++): none, bsm_hq, bsm_fast, n2d_2x2, or a list as
            MODEL.MIT.TOKEN_MERGING takes it. The weights are the same for all."""
_ENCODER = """
        encoder: full, lite (Lite DETR's), or the layers of PRO-SCALE's four stages, such as "0333"
            or "0111"."""
_CROPS = """
        (Of each person in place of an image: what ``proscale.data.PoseMapper.view`` makes of it;
        ``proscale.Predictor`` does that of whole images.)"""
_MASK_TASKS = "coco/panoptic, ade20k/semantic, cityscapes/instance"


def _load(file: str, weights: str | None, device: str, overrides: _Sequence[object]) -> _nn.Module:
    path = _CONFIGS / file
    if not path.is_file():
        family = path.stem.partition("_")[0]
        files = _CONFIGS.rglob(f"{family}_*.yaml")
        known = ", ".join(sorted(str(file.relative_to(_CONFIGS)) for file in files))
        raise _ConfigError(f"there is no configuration {file}: expected {known}")
    arguments = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", str(weights or "")]
    cfg = _setup_cfg(str(path), [*overrides, *arguments])
    _check_weights(cfg, resume=False, required=weights is not None)
    model = _build_model(cfg).eval()
    _load_weights(model, cfg)
    return model


def _mask2former(backbone: str, title: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="coco/panoptic", device="cpu", overrides=()):
        return _load(f"{task}/mask2former_{backbone}.yaml", weights, device, overrides)

    build.__doc__ = f"Mask2Former with {title}." + _COMMON.format(tasks=_MASK_TASKS, more="")
    return build


def _proscale(backbone: str, title: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="coco/panoptic", layers="333", device="cpu", overrides=()):
        return _load(f"{task}/proscale_{backbone}_{layers}.yaml", weights, device, overrides)

    build.__doc__ = f"PRO-SCALE with {title}." + _COMMON.format(tasks=_MASK_TASKS, more=_LAYERS)
    return build


def _rt_m2f(backbone: str, title: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="coco/panoptic", device="cpu", overrides=()):
        return _load(f"{task}/rt_m2f_{backbone}.yaml", weights, device, overrides)

    build.__doc__ = f"RT-M2F with {title}." + _COMMON.format(
        tasks="coco/panoptic, cityscapes/panoptic", more=""
    )
    return build


def _lite_m2f(backbone: str, title: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="coco/panoptic", device="cpu", overrides=()):
        return _load(f"{task}/lite_m2f_{backbone}.yaml", weights, device, overrides)

    build.__doc__ = f"Lite-M2F with {title}." + _COMMON.format(
        tasks="coco/panoptic, cityscapes/panoptic, ade20k/panoptic", more=""
    )
    return build


def _proscale_mit(variant: str) -> _Callable[..., _nn.Module]:
    build_unmerged = _proscale(f"mit_{variant}", f"MiT-{variant}")

    def build(weights=None, *, merging="none", overrides=(), **options):
        overrides = [*overrides, "MODEL.MIT.TOKEN_MERGING", merging]
        return build_unmerged(weights, overrides=overrides, **options)

    build.__doc__ = f"PRO-SCALE with MiT-{variant}." + _COMMON.format(
        tasks="coco/panoptic", more=_LAYERS + _MERGING
    )
    return build


def _segformer(variant: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="ade20k/semantic", merging="none", device="cpu", overrides=()):
        overrides = [*overrides, "MODEL.MIT.TOKEN_MERGING", merging]
        return _load(f"{task}/segformer_{variant}.yaml", weights, device, overrides)

    build.__doc__ = f"SegFormer {variant}." + _COMMON.format(
        tasks="ade20k/semantic, cityscapes/semantic", more=_MERGING
    )
    return build


def _dino(backbone: str, title: str) -> _Callable[..., _nn.Module]:
    def build(weights=None, *, task="coco/detection", encoder="full", device="cpu", overrides=()):
        kind = {"full": "", "lite": "lite_"}.get(encoder, "proscale_")
        layers = f"_{encoder}" if kind == "proscale_" else ""
        file = f"{task}/dino_{kind}{backbone}{layers}.yaml"
        return _load(file, weights, device, overrides)

    build.__doc__ = f"DINO with {title}." + _COMMON.format(tasks="coco/detection", more=_ENCODER)
    return build


def _segformer_pose(variant: str) -> _Callable[..., _nn.Module]:
    build_any = _segformer(variant)

    def build(weights=None, *, task="coco/keypoints", **options):
        return build_any(weights, task=task, **options)

    build.__doc__ = f"SegFormer++ {variant} for human pose." + _COMMON.format(
        tasks="coco/keypoints, jbd/keypoints", more=_MERGING + _CROPS
    )
    return build


mask2former_r50 = _mask2former("r50", "ResNet-50")
mask2former_swin_t = _mask2former("swin_tiny", "Swin-T")
proscale_r50 = _proscale("r50", "ResNet-50")
proscale_swin_t = _proscale("swin_tiny", "Swin-T")
rt_m2f_r50 = _rt_m2f("r50", "ResNet-50")
rt_m2f_swin_t = _rt_m2f("swin_tiny", "Swin-T")
lite_m2f_r50 = _lite_m2f("r50", "ResNet-50")
lite_m2f_swin_t = _lite_m2f("swin_tiny", "Swin-T")
proscale_efficientnet_lite0 = _proscale("efficientnet_lite0", "timm's EfficientNet-Lite0")
proscale_mit_b0, proscale_mit_b2, proscale_mit_b5 = map(_proscale_mit, ("b0", "b2", "b5"))
(
    segformer_b0, segformer_b1, segformer_b2, segformer_b3, segformer_b4, segformer_b5,
) = map(_segformer, ("b0", "b1", "b2", "b3", "b4", "b5"))  # fmt: skip
dino_r50 = _dino("r50", "ResNet-50")
dino_swin_t = _dino("swin_tiny", "Swin-T")
segformer_pose_b0, segformer_pose_b5 = map(_segformer_pose, ("b0", "b5"))
