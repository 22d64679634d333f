"""The meta-architecture of top-down pose estimation: crops of persons to heatmaps to keypoints."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from proscale.data.skeleton import flip_indices
from proscale.modeling.pose.head import SegFormerPoseHead
from proscale.modeling.pose.heatmap_codec import HeatmapCodec, flip_heatmaps, heatmap_loss
from proscale.modeling.pose.scores import pose_scores


@META_ARCH_REGISTRY.register()
class PoseEstimator(nn.Module):
    """Keypoints of one person in a crop around its box (SegFormer++, Kienzle et al., MIPR 2024).

    Args:
        backbone: Detectron2 backbone.
        pose_head: heatmaps from its features.
        codec: between keypoints and heatmaps.
        pixel_mean, pixel_std: of each channel, in the range of the input.
        flip_indices: of each keypoint its counterpart on the other side of the body; with them
            heatmaps of the mirrored crop are averaged in, without them not.
        shift_heatmap: see :func:`~proscale.modeling.pose.flip_heatmaps`.
        keypoint_score_thresh: keypoints with higher scores count in the score of a pose.
        loss_weight: factor of the loss.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pose_head: SegFormerPoseHead,
        codec: HeatmapCodec,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        flip_indices: Sequence[int] | None,
        shift_heatmap: bool,
        keypoint_score_thresh: float,
        loss_weight: float,
    ):
        super().__init__()
        self.backbone = backbone
        self.pose_head = pose_head
        self.codec = codec
        # Not persistent: checkpoints do not hold them.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.flip_indices = flip_indices
        self.shift_heatmap = shift_heatmap
        self.keypoint_score_thresh = keypoint_score_thresh
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        # The head's heatmaps have the resolution of the finest stage, a quarter of the crop's.
        node, head = cfg.MODEL.POSE, SegFormerPoseHead(cfg, backbone.output_shape())
        width, height = node.INPUT_SIZE
        heatmap_size = (width // head.common_stride, height // head.common_stride)
        return {
            "backbone": backbone,
            "pose_head": head,
            "codec": HeatmapCodec(node.INPUT_SIZE, heatmap_size, node.SIGMA),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "flip_indices": flip_indices(cfg) if node.FLIP_TEST else None,
            "shift_heatmap": node.SHIFT_HEATMAP,
            "keypoint_score_thresh": node.KEYPOINT_SCORE_THRESH,
            "loss_weight": cfg.MODEL.POSE_HEAD.LOSS_WEIGHT,
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: of each person what :class:`~proscale.data.PoseMapper` gives: ``image``,
                the crop ``(3, H, W)`` in the range of ``pixel_mean``; when training ``keypoints``
                ``(K, 2)`` in it, pixel indices, and ``visible`` ``(K,)``; otherwise ``crop``, the
                :class:`~proscale.data.PersonCrop`, ``box`` ``(4,)`` and ``box_score``, and
                ``height`` and ``width`` of the image.

        Returns:
            the weighted loss by name; or for each person a dict of ``instances``, on the CPU and
            in the image, in Detectron2's coordinates, which begin at the corner of the first pixel
            and not at its centre: ``pred_keypoints`` ``(1, K, 3)`` of x, y and score, ``scores``
            of the pose, ``pred_boxes`` and ``box_scores`` as given, ``pred_classes`` 0.
        """
        if not batched_inputs:
            return []
        # Crops are all of the codec's input size: persons of many images are one batch.
        images = torch.stack([sample["image"].to(self.device) for sample in batched_inputs])
        batch = (images - self.pixel_mean) / self.pixel_std
        if self.training:
            # No flip test: the mapper mirrors crops at random.
            return self._losses(self.heatmaps(batch), batched_inputs)
        return self.results(self.infer(batch), batched_inputs)

    def results(self, heatmaps: Tensor, samples: Sequence[dict]) -> list[dict]:
        """The results of persons, see :meth:`forward`, whose heatmaps ``(B, K, h, w)`` may come
        from elsewhere, an exported file say."""
        # Decoded in the crop, (B, K, 2) and (B, K), and taken back to the image.
        decoded = self.codec.decode(heatmaps)
        keypoints, scores = (values.detach().cpu().numpy() for values in decoded)
        return [
            {"instances": self._result(*person)}
            for person in zip(samples, keypoints, scores, strict=True)
        ]

    def heatmaps(self, batch: Tensor) -> Tensor:
        """``(B, K, h, w)`` for normalised crops ``(B, 3, H, W)``."""
        # Mix Transformer, then the all-MLP decoder; mixed precision ends before the loss.
        return self.pose_head(self.backbone(batch)).float()

    def infer(self, batch: Tensor) -> Tensor:
        """As :meth:`heatmaps`, with the flip test if it is on."""
        if self.flip_indices is None:
            return self.heatmaps(batch)
        # The mirrored crops are seen as well, their heatmaps mirrored back, and both averaged.
        return self.average(*self.heatmaps(torch.cat((batch, batch.flip(-1)))).chunk(2))

    def average(self, plain: Tensor, mirrored: Tensor) -> Tensor:
        """The flip test: heatmaps of crops and of the mirrored crops, averaged."""
        assert self.flip_indices is not None  # the flip test is on
        return (plain + flip_heatmaps(mirrored, self.flip_indices, self.shift_heatmap)) / 2

    def _losses(self, heatmaps: Tensor, samples: list[dict]) -> dict[str, Tensor]:
        # Targets are made where the heatmaps are: cheaper than moving them there.
        keypoints, visible = (
            torch.stack([sample[name] for sample in samples]).to(self.device)
            for name in ("keypoints", "visible")
        )
        # A Gaussian for each labelled keypoint; others have weight 0.
        targets, weights = self.codec.encode(keypoints, visible)
        return {"loss_keypoint": self.loss_weight * heatmap_loss(heatmaps, targets, weights)}

    def _result(self, sample: dict, keypoints: np.ndarray, scores: np.ndarray) -> Instances:
        """The pose of one person, of keypoints ``(K, 2)`` in its crop and their scores ``(K,)``."""
        # From pixel indices in the crop to those in the image, then to Detectron2's coordinates.
        found = sample["crop"].to_image(keypoints) + 0.5
        points = torch.from_numpy(np.column_stack((found, scores))).float()
        # The box's score times the mean of the keypoints' scores that count.
        score = pose_scores(scores[None], [sample["box_score"]], self.keypoint_score_thresh)
        return Instances(
            (sample["height"], sample["width"]),
            pred_keypoints=points[None],
            scores=torch.from_numpy(score).float(),
            pred_boxes=Boxes(sample["box"][None]),
            box_scores=torch.tensor([sample["box_score"]]),
            # Persons are the only class.
            pred_classes=torch.zeros(1, dtype=torch.int64),
        )
