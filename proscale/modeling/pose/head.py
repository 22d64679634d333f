"""SegFormer's all-MLP decoder as a head for heatmaps of keypoints."""

from collections.abc import Mapping

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn

from proscale.modeling.segformer_head import AllMLPDecoder, stages_of


class SegFormerPoseHead(AllMLPDecoder):
    """Heatmaps by the decoder that segments, in its OpenMMLab form, without dropout (SegFormer++,
    Kienzle et al., MIPR 2024, §4).

    Args:
        input_shape, conv_dims, norm: see :class:`~proscale.modeling.segformer_head.AllMLPDecoder`.
        num_keypoints: heatmaps K.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_keypoints: int,
        conv_dims: int,
        norm: str,
    ):
        super().__init__(
            input_shape,
            form="openmmlab",
            num_outputs=num_keypoints,
            conv_dims=conv_dims,
            norm=norm,
            dropout=0.0,
        )
        self.num_keypoints = num_keypoints
        # As published: small weights, so that training starts from empty heatmaps, but for the
        # fusion, which batch norm follows.
        for conv in (*self.projections, self.predictor):
            nn.init.normal_(conv.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)
        weight_init.c2_msra_fill(self.fuse)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.POSE_HEAD
        return {
            "input_shape": stages_of(
                cfg, "MODEL.POSE_HEAD.IN_FEATURES", node.IN_FEATURES, input_shape
            ),
            "num_keypoints": node.NUM_KEYPOINTS,
            "conv_dims": node.CONVS_DIM,
            "norm": node.NORM,
        }

    def forward(self, features: Mapping[str, Tensor], *, published_order: bool = False) -> Tensor:
        """Heatmaps ``(B, K, h, w)`` at the finest stage's resolution, from ``features`` by name.

        ``published_order`` resizes the stages before they are fused: the same numbers at the
        published cost.
        """
        # A 1x1 convolution and bilinear resizing commute.
        return self.published_layers(features) if published_order else self.layers(features)
