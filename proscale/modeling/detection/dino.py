"""DINO (Zhang et al., ICLR 2023): a two-stage Deformable DETR with mixed query selection, look
forward twice and contrastive denoising."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from proscale.modeling.detection.boxes import YXWH, inverse_sigmoid, sine_box_embedding
from proscale.modeling.detection.decoder import DeformableDecoder, DeformableDecoderLayer
from proscale.modeling.detection.denoising import (
    DenoisingArguments,
    DenoisingQueries,
    contrastive_denoising,
)
from proscale.modeling.detection.head import (
    DetectionHead,
    box_head,
    class_head,
    head_arguments,
    rank_tokens,
    take,
)
from proscale.modeling.mlp import MLP
from proscale.modeling.pixel_decoders.deformable_encoder import EncoderLayerArguments
from proscale.ops.fused import at_least_float32
from proscale.utils.types import Size

# Least probability, and least distance from 1, of numbers whose logits are taken.
EPS = 1e-3
# Of the position encoding (DINO's code; 10000 in DETR).
TEMPERATURE = 20.0


class DINOHead(DetectionHead):
    """DINO without its backbone.

    Args:
        input_shape, hidden_dim, nheads, dim_feedforward, num_levels, enc_layers, n_points, encoder:
            see :class:`~proscale.modeling.detection.head.DetectionHead`.
        num_classes: K; “no object” is all of them being improbable.
        dec_layers: layers of the decoder, D from 1.
        num_queries: Q.
        denoising_queries: about how many queries of an image start from its noised targets in
            training; 0 for no denoising.
        label_noise, box_noise: see
            :class:`~proscale.modeling.detection.denoising.DenoisingArguments`.
    """

    class_agnostic_proposals = False

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 2048,
        num_levels: int = 4,
        enc_layers: int = 6,
        dec_layers: int = 6,
        num_queries: int = 900,
        n_points: int = 4,
        encoder: nn.Module | None = None,
        denoising_queries: int = 0,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ):
        super().__init__(
            input_shape,
            hidden_dim=hidden_dim,
            nheads=nheads,
            n_points=n_points,
            dim_feedforward=dim_feedforward,
            num_levels=num_levels,
            enc_layers=enc_layers,
            encoder=encoder,
            encoding={"temperature": TEMPERATURE},
        )
        if dec_layers < 1:
            raise ValueError(f"dec_layers is {dec_layers}: expected whole numbers from 1")
        self.num_queries, self.num_classes = num_queries, num_classes
        # Proposals: their heads, and the learned content of the queries.
        self.transformer.enc_output = nn.Linear(hidden_dim, hidden_dim)
        self.transformer.enc_output_norm = nn.LayerNorm(hidden_dim)
        self.transformer.enc_out_class_embed = class_head(hidden_dim, num_classes)
        self.transformer.enc_out_bbox_embed = box_head(hidden_dim)
        self.transformer.tgt_embed = nn.Embedding(num_queries, hidden_dim)
        # The decoder, and its heads, one for all layers.
        layer = EncoderLayerArguments(hidden_dim, dim_feedforward, 0.0, nheads, n_points)
        self.transformer.decoder = DeformableDecoder(
            [DeformableDecoderLayer(layer, num_levels) for _ in range(dec_layers)],
            nn.LayerNorm(hidden_dim),
        )
        self.transformer.decoder.ref_point_head = MLP(2 * hidden_dim, hidden_dim, hidden_dim)
        self.class_embed = class_head(hidden_dim, num_classes)
        self.bbox_embed = box_head(hidden_dim)
        self.noise = DenoisingArguments(denoising_queries, label_noise, box_noise)
        if denoising_queries:
            # One more than the classes, as in the published checkpoints.
            self.label_enc = nn.Embedding(num_classes + 1, hidden_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.DETECTOR
        return {
            **head_arguments(cfg, input_shape),
            "denoising_queries": node.DN_NUMBER,
            "label_noise": node.DN_LABEL_NOISE,
            "box_noise": node.DN_BOX_NOISE,
        }

    def denoise(
        self, targets: Sequence[Mapping[str, Tensor]], most: int
    ) -> DenoisingQueries | None:
        """Queries that start from noised targets, see
        :func:`~proscale.modeling.detection.denoising.contrastive_denoising`; None without."""
        if not self.noise.number:
            return None
        return contrastive_denoising(
            targets, self.label_enc, self.noise, num_queries=self.num_queries, most=most, eps=EPS
        )

    def forward(
        self,
        features: Mapping[str, Tensor],
        denoising: Sequence[Any] | None = None,
        image_sizes: Sequence[Size] | None = None,
    ) -> dict[str, Tensor]:
        """Predict boxes from the backbone's features.

        Args:
            features: ``(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`` by level name.
            denoising: content ``(B, P, C)``, boxes before the sigmoid ``(B, P, 4)`` and mask
                ``(P + Q, P + Q)``, True where a query may not look, of further queries that come
                first.
            image_sizes: (height, width) of every image, pixels, where some are padded at the right
                and below; None where none is. Padding is not attended.

        Returns:
            ``logits`` ``(D, B, P + Q, K)`` and ``boxes`` ``(D, B, P + Q, 4)`` of every layer, boxes
            as (cx, cy, w, h), fractions of the image; ``proposal_logits`` ``(B, Q, K)`` and
            ``proposal_boxes`` ``(B, Q, 4)``; ``kept_tokens`` ``(B, Q)``, the proposals' places
            among the tokens, levels from coarse to fine. Q is less where there are fewer tokens.
        """
        transformer = self.transformer
        memory, plan = self.encode(features, image_sizes)

        # Two-stage: the tokens with the largest logit of any class propose boxes.
        content, logits, anchors = self.propose(memory, plan, transformer.enc_out_class_embed)
        kept = rank_tokens(logits.amax(-1), plan, self.num_queries)
        change = transformer.enc_out_bbox_embed(take(content, kept))
        proposals = at_least_float32(change) + take(anchors, kept)

        # Mixed query selection (§3.4): boxes of the proposals, without gradient; learned content.
        queries = transformer.tgt_embed.weight[: kept.shape[1]].expand(kept.shape[0], -1, -1)
        unbounded, mask = proposals.detach(), None
        if denoising is not None:
            first_queries, first_boxes, blocked = denoising[:3]
            queries = torch.cat((first_queries, queries), dim=1)
            unbounded = torch.cat((first_boxes.detach(), unbounded), dim=1)
            mask = ~blocked[: queries.shape[1], : queries.shape[1]]

        boxes = unbounded.sigmoid()  # that the layer attends around
        undetached = boxes  # the same, with the gradient of the layer before
        all_logits, all_boxes = [], []
        for number, layer in enumerate(transformer.decoder.layers):
            # Iterative refinement: the box that the layer before makes, of queries without norm.
            if number:
                change = at_least_float32(self.bbox_embed(queries))
                undetached = (change + inverse_sigmoid(boxes, EPS)).sigmoid()
                boxes = undetached.detach()
            # Positions are those of the current boxes (DAB-DETR, §4.2).
            embedding = sine_box_embedding(boxes, queries.shape[2] // 2, YXWH)
            position = transformer.decoder.ref_point_head(embedding)
            queries = layer(queries, position, boxes, memory, plan, mask)
            # Look forward twice (§3.5): a prediction is made from the box with the gradient of the
            # layer before, so that this layer learns from the next one's loss, too.
            normed = transformer.decoder.norm(queries)
            change = at_least_float32(self.bbox_embed(normed))
            all_boxes.append((change + inverse_sigmoid(undetached, EPS)).sigmoid())
            all_logits.append(self.class_embed(normed))
        return {
            "logits": torch.stack(all_logits),
            "boxes": torch.stack(all_boxes),
            "proposal_logits": take(logits, kept),
            "proposal_boxes": proposals.sigmoid(),
            "kept_tokens": kept,
        }
