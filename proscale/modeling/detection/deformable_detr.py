"""Deformable DETR (Zhu et al., ICLR 2021), with learned queries or two-stage, with iterative
refinement of the boxes or without."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from proscale.modeling.detection.boxes import XYWH, inverse_sigmoid, sine_box_embedding
from proscale.modeling.detection.decoder import DeformableDecoder, DeformableDecoderLayer
from proscale.modeling.detection.head import (
    DetectionHead,
    box_head,
    class_head,
    head_arguments,
    rank_tokens,
    take,
)
from proscale.modeling.pixel_decoders.deformable_encoder import EncoderLayerArguments
from proscale.ops.fused import at_least_float32
from proscale.utils.types import Size

# Least probability, and least distance from 1, of numbers whose logits are taken.
EPS = 1e-5
# Logit of the width and height of the boxes that are made of points at the start, as published.
FIRST_SIZE = -2.0


class DeformableDETRHead(DetectionHead):
    """Deformable DETR without its backbone.

    Args:
        input_shape, hidden_dim, nheads, dim_feedforward, num_levels, enc_layers, n_points, encoder:
            see :class:`~proscale.modeling.detection.head.DetectionHead`.
        num_classes: K; “no object” is all of them being improbable.
        dec_layers: layers of the decoder, D from 1.
        num_queries: Q.
        two_stage: queries are made of the best proposals of the tokens; otherwise they are learned.
        with_box_refine: every layer starts from the boxes of the one before; otherwise from the
            first references, with heads that all layers share.

    Raises:
        ValueError: ``two_stage`` without ``with_box_refine``.
    """

    #: Proposals have to find objects of any class, by the logit of class 0.
    class_agnostic_proposals = True

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 1024,
        num_levels: int = 4,
        enc_layers: int = 6,
        dec_layers: int = 6,
        num_queries: int = 300,
        n_points: int = 4,
        encoder: nn.Module | None = None,
        two_stage: bool = False,
        with_box_refine: bool = True,
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
            # Positions are those of the cells' centres.
            encoding={"centred": True},
        )
        if dec_layers < 1:
            raise ValueError(f"dec_layers is {dec_layers}: expected whole numbers from 1")
        if two_stage and not with_box_refine:
            raise ValueError("with_box_refine is False: expected True with two_stage")
        self.num_queries, self.num_classes = num_queries, num_classes
        self.two_stage, self.with_box_refine = two_stage, with_box_refine
        if two_stage:
            # Proposals, and queries of their boxes.
            self.transformer.enc_output = nn.Linear(hidden_dim, hidden_dim)
            self.transformer.enc_output_norm = nn.LayerNorm(hidden_dim)
            self.transformer.pos_trans = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
            self.transformer.pos_trans_norm = nn.LayerNorm(2 * hidden_dim)
        else:
            # Learned queries, position and content, and points that follow from the position.
            self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)
            self.transformer.reference_points = nn.Linear(hidden_dim, 2)
            nn.init.xavier_uniform_(self.transformer.reference_points.weight)
            nn.init.zeros_(self.transformer.reference_points.bias)
        layer = EncoderLayerArguments(hidden_dim, dim_feedforward, 0.0, nheads, n_points)
        self.transformer.decoder = DeformableDecoder(
            [DeformableDecoderLayer(layer, num_levels) for _ in range(dec_layers)]
        )
        # Heads of every layer, and one more pair for the proposals; or one pair under all names.
        if with_box_refine:
            count = dec_layers + two_stage
            class_heads = [class_head(hidden_dim, num_classes) for _ in range(count)]
            box_heads = [box_head(hidden_dim) for _ in range(count)]
        else:
            class_heads = [class_head(hidden_dim, num_classes)] * dec_layers
            box_heads = [box_head(hidden_dim)] * dec_layers
        if not two_stage:
            nn.init.constant_(box_heads[0].last.bias[2:], FIRST_SIZE)
        self.class_embed = nn.ModuleList(class_heads)
        self.bbox_embed = nn.ModuleList(box_heads)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.DETECTOR
        return {
            **head_arguments(cfg, input_shape),
            "two_stage": node.QUERIES == "deformable",
            "with_box_refine": node.BOX_REFINEMENT,
        }

    def denoise(self, targets: Sequence[Mapping[str, Tensor]], most: int) -> None:
        """There are no denoising queries, see
        :meth:`~proscale.modeling.detection.dino.DINOHead.denoise`."""

    def forward(
        self,
        features: Mapping[str, Tensor],
        denoising: None = None,
        image_sizes: Sequence[Size] | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`~proscale.modeling.detection.dino.DINOHead.forward`; proposals are returned
        where the head is two-stage."""
        memory, plan = self.encode(features, image_sizes)
        outputs = {}
        if self.two_stage:
            # The tokens with the largest logit of class 0 propose boxes.
            content, logits, anchors = self.propose(memory, plan, self.class_embed[-1])
            kept = rank_tokens(logits[..., 0], plan, self.num_queries)
            change = self.bbox_embed[-1](take(content, kept))
            proposals = at_least_float32(change) + take(anchors, kept)
            outputs = {
                "proposal_logits": take(logits, kept),
                "proposal_boxes": proposals.sigmoid(),
                "kept_tokens": kept,
            }
            # Queries are made of the boxes, without gradient: position first, then content.
            references = proposals.detach().sigmoid()
            embedding = sine_box_embedding(references, memory.shape[2] // 2, XYWH)
            embedding = self.transformer.pos_trans_norm(self.transformer.pos_trans(embedding))
            position, queries = embedding.chunk(2, dim=-1)
        else:
            # Learned queries with points, (B, Q, C) and (B, Q, 2).
            learned = self.query_embed.weight.expand(memory.shape[0], -1, -1)
            position, queries = learned.chunk(2, dim=-1)
            references = at_least_float32(self.transformer.reference_points(position)).sigmoid()

        all_logits, all_boxes = [], []
        for layer, class_embed, bbox_embed in zip(
            self.transformer.decoder.layers, self.class_embed, self.bbox_embed, strict=False
        ):
            queries = layer(queries, position, references, memory, plan)
            # A change of the reference before the sigmoid; points have no size to start from.
            start = inverse_sigmoid(references, EPS)
            if references.shape[-1] == 2:
                start = torch.cat((start, torch.zeros_like(start)), dim=-1)
            boxes = (at_least_float32(bbox_embed(queries)) + start).sigmoid()
            all_boxes.append(boxes)
            all_logits.append(class_embed(queries))
            # Iterative refinement (§4.2): the next layer looks around this prediction.
            if self.with_box_refine:
                references = boxes.detach()
        return {"logits": torch.stack(all_logits), "boxes": torch.stack(all_boxes), **outputs}
