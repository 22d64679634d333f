"""Top-down human pose estimation: one person's crop to heatmaps, heatmaps to keypoints."""

from proscale.modeling.pose.estimator import PoseEstimator
from proscale.modeling.pose.head import SegFormerPoseHead
from proscale.modeling.pose.heatmap_codec import HeatmapCodec, flip_heatmaps, heatmap_loss

__all__ = [
    "HeatmapCodec",
    "PoseEstimator",
    "SegFormerPoseHead",
    "flip_heatmaps",
    "heatmap_loss",
]
