"""SegFormer's all-MLP decoder: project every stage, fuse, predict (Xie et al., NeurIPS 2021, §3.2).

The published decoder up-samples all stages to the finest one, concatenates and fuses them. Here
every stage is fused at its own resolution: the same numbers, with a fraction of the multiply-adds.
:class:`SegFormerHead` predicts classes with it, and
:class:`~proscale.modeling.pose.SegFormerPoseHead` heatmaps of keypoints.
"""

from collections.abc import Mapping, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.errors import ConfigError
from proscale.ops.fused import convolve, fuse_and_classify

FORMS = ("openmmlab", "nvidia")
NORMS = ("BN", "SyncBN")


class AllMLPDecoder(nn.Module):
    """The all-MLP decoder on the stages of a backbone.

    Form ``openmmlab`` (SegFormer++'s weights) projects a stage by 1×1 convolution, norm and ReLU,
    ``nvidia`` (NVIDIA's and Hugging Face's weights) linearly. Both fuse by 1×1 convolution, norm
    and ReLU, then predict by a 1×1 convolution with bias.

    Args:
        input_shape: channels and strides of the stages.
        form: one of :data:`FORMS`.
        num_outputs: maps K that are predicted.
        conv_dims: channels C of the projections and of the fusion.
        norm: one of :data:`NORMS`.
        dropout: probability of dropping a channel before the prediction.
    """

    fuse: Conv2d

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        form: str,
        num_outputs: int,
        conv_dims: int,
        norm: str,
        dropout: float,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form is {form!r}: expected {' or '.join(FORMS)}")
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}: expected {' or '.join(NORMS)}")
        # Stages from the finest to the coarsest.
        stages = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in stages]
        self.common_stride = stages[0][1].stride
        self.form = form

        self.projections = nn.ModuleList(
            _conv(shape.channels, conv_dims, norm)
            if form == "openmmlab"
            else Conv2d(shape.channels, conv_dims, kernel_size=1)
            for _, shape in stages
        )
        # C·stages to C channels, then K maps.
        self.fuse = _conv(len(stages) * conv_dims, conv_dims, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = Conv2d(conv_dims, num_outputs, kernel_size=1)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps ``(B, K, h, w)`` at the finest stage's resolution, from ``features`` by name."""
        # 1x1 convolutions run fastest on channels-last maps.
        maps = [
            features[name].contiguous(memory_format=torch.channels_last)
            for name in self.in_features
        ]
        # A 1x1 convolution of concatenated maps is the sum of a convolution of each: the fusion's
        # part (C, C, 1, 1) of each stage.
        weights = list(self.fuse.weight.chunk(len(maps), dim=1))
        bias = None
        if self.form == "openmmlab":
            # Step 1 of the paper: all stages to C channels, by convolution, norm and ReLU.
            maps = [convolve(project, x) for project, x in zip(self.projections, maps, strict=True)]
        else:
            # Linear projections are one with the fusion: W_fuse · (W_i · x + b_i).
            parts = [weight.flatten(1) for weight in weights]
            pairs: list[tuple[Tensor, Conv2d]] = list(zip(parts, self.projections, strict=True))
            weights = [(part @ p.weight.flatten(1))[..., None, None] for part, p in pairs]
            bias = torch.stack([part @ p.bias for part, p in pairs]).sum(0)
        # Steps 2 to 4: resize to the finest stage, concatenate and fuse, classify.
        return fuse_and_classify(maps, weights, bias, self.fuse.norm, self.dropout, self.predictor)

    def published_layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`layers`, in the published order: resize, concatenate, fuse, predict."""
        maps = [
            project(features[name])
            for project, name in zip(self.projections, self.in_features, strict=True)
        ]
        size = maps[0].shape[-2:]
        maps = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]
        return self.predictor(self.dropout(self.fuse(torch.cat(maps, dim=1))))


def stages_of(
    cfg: CfgNode, key: str, names: Sequence[str], input_shape: Mapping[str, ShapeSpec]
) -> dict[str, ShapeSpec]:
    """The backbone's levels of these names, which ``key`` has.

    Raises:
        ConfigError: there are none, or the backbone lacks one.
    """
    if not names or any(name not in input_shape for name in names):
        raise ConfigError(
            f"{key} is {list(names)}: expected levels that the backbone "
            f"{cfg.MODEL.BACKBONE.NAME} has, {sorted(input_shape)}"
        )
    return {name: input_shape[name] for name in names}


@SEM_SEG_HEADS_REGISTRY.register()
class SegFormerHead(AllMLPDecoder):
    """Semantic segmentation head for Detectron2's ``SemanticSegmentor``.

    Args:
        input_shape, form, conv_dims, norm, dropout: see :class:`AllMLPDecoder`.
        num_classes: K.
        loss_weight: factor of the loss.
        ignore_value: label of the pixels that do not count.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        form: str,
        num_classes: int,
        conv_dims: int,
        norm: str,
        dropout: float,
        loss_weight: float,
        ignore_value: int,
    ):
        super().__init__(
            input_shape,
            form=form,
            num_outputs=num_classes,
            conv_dims=conv_dims,
            norm=norm,
            dropout=dropout,
        )
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        for conv in (*self.projections, self.fuse):
            weight_init.c2_msra_fill(conv)
        # Small weights: classes start out equally likely.
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": stages_of(
                cfg, "MODEL.SEM_SEG_HEAD.IN_FEATURES", node.IN_FEATURES, input_shape
            ),
            "form": node.SEGFORMER_FORM,
            "num_classes": node.NUM_CLASSES,
            "conv_dims": node.CONVS_DIM,
            "norm": node.NORM,
            "dropout": node.SEGFORMER_DROPOUT,
            "loss_weight": node.LOSS_WEIGHT,
            "ignore_value": node.IGNORE_VALUE,
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """As Detectron2's ``SemSegFPNHead``, ``(B, channels, H / stride, W / stride)`` by name.

        Returns:
            None and the losses in training, of ``targets`` ``(B, H, W)``, class ids; otherwise the
            logits ``(B, K, H, W)`` and no losses.
        """
        logits = self.layers(features)
        # Losses and results are made at the images' resolution.
        if self.training:
            assert targets is not None
            return None, self.losses(logits, targets)
        return self._upsample(logits), {}

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy averaged over the labelled pixels; 0 where there are none. ``logits`` are
        those of ``layers``, ``targets`` ``(B, H, W)`` class ids."""
        # Logits at the images' resolution; sizes that the stride does not divide end in a partial
        # cell.
        height, width = targets.shape[-2:]
        logits = self._upsample(logits.float())[..., :height, :width]
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        # The mean over labelled pixels; a batch without any has no loss.
        labelled = (targets != self.ignore_value).sum().clamp(min=1)
        return {"loss_sem_seg": self.loss_weight * total / labelled}

    def _upsample(self, logits: Tensor) -> Tensor:
        # Results are made from them class by class.
        logits = logits.contiguous()
        return F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )


def _conv(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    """1×1 convolution without bias, norm, ReLU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=1,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu_,
    )
