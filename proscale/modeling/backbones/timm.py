"""Any network of timm with features of strides 4, 8, 16 and 32 as a Detectron2 backbone.

Networks are built without weights; nothing is downloaded. ``MODEL.WEIGHTS`` takes timm's own files,
classifiers too (``proscale.checkpoint.timm``).
"""

import difflib
import importlib
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from proscale.errors import ConfigError

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NORMS = ("FrozenBN", "BN", "SyncBN")
# Of the network's trial: no square, so that an order of axes shows; whole at every stride.
_TRIAL_SIZE = (64, 96)


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A network of timm, by name, with outputs ``res2`` to ``res5``.

    Args:
        name: of timm, such as ``tf_efficientnet_lite0``.
        norm: of its batch normalisation: ``FrozenBN`` keeps statistics and affine parameters as
            they are loaded, as Detectron2 does with ImageNet's; ``BN`` learns both; so does
            ``SyncBN``, over all processes. Norms of other kinds are learned in any case.
        in_channels: of the images.
        use_checkpoint: recompute blocks in the backward pass; not with ``BN`` and ``SyncBN``.

    Raises:
        ConfigError: timm does not know ``name``, the network has no features of these strides, it
            takes images of one size only, or batch norms learn in blocks that are recomputed.
        ValueError: ``norm`` is not accepted.
        ImportError: timm is not installed.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        norm: str = "FrozenBN",
        in_channels: int = 3,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}: expected {', '.join(NORMS)}")
        self.timm = _build(name, in_channels)
        # timm's functions: Detectron2's would lose activations that are part of timm's norms.
        layers = importlib.import_module("timm.layers")
        if norm == "FrozenBN":
            self.timm = layers.freeze_batch_norm_2d(self.timm)
        elif norm == "SyncBN":
            self.timm = layers.convert_sync_batchnorm(self.timm)
        if use_checkpoint:
            _recompute(self.timm, name)
        # A small image tells the strides and widths of the network's features.
        shapes = _try(self.timm, name, in_channels)
        strides = [_TRIAL_SIZE[0] // height for _, height, _ in shapes]
        missing = set(STRIDES.values()) - set(strides)
        if missing:
            raise ConfigError(
                f"the timm network is {name!r}, whose features have strides "
                f"{', '.join(map(str, strides))}: expected networks with "
                f"{', '.join(map(str, STRIDES.values()))}"
            )
        # The deepest of several of a stride.
        place_of = {stride: place for place, stride in enumerate(strides)}
        self._places = {out: place_of[stride] for out, stride in STRIDES.items()}
        self._out_features = list(STRIDES)
        self._out_feature_strides = dict(STRIDES)
        self._out_feature_channels = {out: shapes[i][0] for out, i in self._places.items()}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.TIMM
        return {
            "name": node.NAME,
            "norm": node.NORM,
            "in_channels": input_shape.channels,
            "use_checkpoint": node.USE_CHECKPOINT,
        }

    @property
    def size_divisibility(self) -> int:
        """Images are best padded to a multiple of the coarsest stride."""
        return max(STRIDES.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, in_channels, H, W)``, sides best multiples of 32, to ``(B, channels, H/stride,
        W/stride)`` by name."""
        # Of all features those of the wanted strides.
        features = _features(self.timm, images)
        return {name: features[place] for name, place in self._places.items()}


def _build(name: str, in_channels: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            "the backbone is TimmBackbone, which needs the package timm: pip install timm"
        ) from error
    # By a name such as hf-hub:…, timm would fetch a model's description.
    if not timm.is_model(name) or ":" in name:
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        told = f", such as {', '.join(nearest)}" if nearest else ""
        raise ConfigError(
            f"the timm network is {name!r}: expected what timm.list_models() lists{told}"
        )
    # Features of all stages instead of a classifier; never weights from the network.
    return timm.create_model(name, pretrained=False, features_only=True, in_chans=in_channels)


def _recompute(network: nn.Module, name: str) -> None:
    """Have ``network`` keep no activations within its blocks."""
    # A second forward pass would count a batch twice in the running statistics.
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise ConfigError(
            f"MODEL.TIMM.USE_CHECKPOINT is True with batch norms that learn, of {name}: expected "
            "MODEL.TIMM.NORM FrozenBN"
        )
    switch: Any = network.set_grad_checkpointing
    switch(True)


@torch.no_grad()
def _try(network: nn.Module, name: str, in_channels: int) -> list[tuple[int, int, int]]:
    """Shapes ``(C, H, W)`` of the features of an image of ``_TRIAL_SIZE``."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        images = torch.zeros(1, in_channels, *_TRIAL_SIZE, device=device)
        shapes = [feature.shape for feature in _features(network, images)]
        return [(channels, height, width) for _, channels, height, width in shapes]
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"the timm network is {name!r}, which does not take images of any size ({error}): "
            "expected networks that do"
        ) from error
    finally:
        network.train(was_training)


def _features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """``(B, C, H, W)`` each."""
    # Some networks, Swin for one, have channels last.
    features = network(images)
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        return [feature.permute(0, 3, 1, 2) for feature in features]
    return features
