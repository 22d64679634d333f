"""The part of a model that is exported: from pixels to logits, boxes or heatmaps, normalisation and
padding included.

Results are made from these outside: that takes sizes which only the caller knows, and is short in
NumPy (``docs/export.md``).
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.checkpoint import ModelDescription
from proscale.errors import ExportError
from proscale.modeling import Detector, MaskFormer, PoseEstimator, SegFormerHead
from proscale.modeling.backbones import MixVisionTransformer
from proscale.modeling.backbones.swin import whole_windows
from proscale.modeling.backbones.token_merging import BipartiteSoftMatching
from proscale.ops.fused import fuse_for_inference
from proscale.utils.types import Size


class ExportableNetwork(nn.Module):
    """From images ``(B, 3, H, W)`` uint8, channels in the order of ``INPUT.FORMAT``, to outputs.

    Args:
        model: its ``backbone``, head, ``pixel_mean`` and ``pixel_std`` are shared.
        size_divisibility: images are padded to a multiple of it, on the right and below.
    """

    head_name = "sem_seg_head"  # of the model's head
    head: Any
    outputs: tuple[str, ...]  # names, in the order of ``forward``
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, size_divisibility: int):
        super().__init__()
        # Shared, not copied: the network is as large as the model. Weights of convolutions that
        # are fused are its own.
        self.backbone = model.get_submodule("backbone")
        self.head = fuse_for_inference(model.get_submodule(self.head_name))
        self.register_buffer("pixel_mean", model.get_buffer("pixel_mean"))
        self.register_buffer("pixel_std", model.get_buffer("pixel_std"))
        self.size_divisibility = max(size_divisibility, 1)

    def padded(self, size: Size) -> Size:
        """The size that images of ``size`` (H, W) are padded to."""
        height, width = (whole_windows(side, self.size_divisibility) for side in size)
        return height, width

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's, of ``images`` normalised and padded."""
        normalised = (images - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        below, right = self.padded((height, width))
        # Zeros behind normalisation, as the model pads: the colour of the mean.
        return self.backbone(F.pad(normalised, (0, right - width, 0, below - height)))


class MaskNetwork(ExportableNetwork):
    """That of :class:`~proscale.modeling.MaskFormer`: class logits ``(B, Q, K + 1)``, “no object”
    last, and mask logits ``(B, Q, h, w)``, which cover the padded images."""

    outputs = ("class_logits", "mask_logits")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head(self.features(images))
        return outputs["pred_logits"], outputs["pred_masks"]


class SemanticNetwork(ExportableNetwork):
    """That of Detectron2's ``SemanticSegmentor`` with a ``SegFormerHead``: the logits
    ``(B, K, H, W)`` of every pixel."""

    outputs = ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        logits, _ = self.head(self.features(images))
        # Without the padding.
        height, width = images.shape[-2:]
        return (logits[..., :height, :width],)


class DetectionNetwork(ExportableNetwork):
    """That of :class:`~proscale.modeling.Detector`: class logits ``(B, Q, K)`` and boxes
    ``(B, Q, 4)`` of the last layer, (cx, cy, w, h) as fractions of the image."""

    head_name = "detection_head"
    outputs = ("class_logits", "boxes")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, (height, width) = self.features(images), images.shape[-2:]
        # Cells of the padding are not attended: all images have one size, so that they are left
        # out at once. Quotients of negative numbers would be rounded to zero in an ONNX file.
        if self.size_divisibility > 1:
            features = {
                name: features[name][
                    ..., : (height + stride - 1) // stride, : (width + stride - 1) // stride
                ]
                for name, stride in self.head.strides.items()
            }
        outputs = self.head(features)
        return outputs["logits"][-1], outputs["boxes"][-1]


class PoseNetwork(ExportableNetwork):
    """That of :class:`~proscale.modeling.PoseEstimator`: heatmaps ``(B, K, h, w)`` of crops of
    persons, in one pass, without the flip test."""

    head_name = "pose_head"
    outputs = ("heatmaps",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.head(self.features(images)),)


def exportable(model: nn.Module) -> ExportableNetwork:
    """The network of ``model``, which shares its weights, in evaluation mode.

    Raises:
        ExportError: models of this kind cannot be exported; the configuration's key is named.
    """
    backbone = model.get_submodule("backbone")
    # Before the kind of model, because every kind may have this backbone.
    stages = backbone.token_merging if isinstance(backbone, MixVisionTransformer) else ()
    methods = [method for stage in stages for method in vars(stage).values()]
    if any(isinstance(method, BipartiteSoftMatching) for method in methods):
        raise ExportError(
            "MODEL.MIT.TOKEN_MERGING has mode bsm, whose number of tokens is no expression of the "
            "image's size that exporters know: expected none, n2d_2x2, and the modes n1d and n2d"
        )
    # Numbers in half precision would be compared with those of a file in single precision.
    if isinstance(model, (MaskFormer, Detector)) and model.inference_dtype is not None:
        name = str(model.inference_dtype).removeprefix("torch.")
        raise ExportError(f"MODEL.MASK_FORMER.TEST.DTYPE is {name}: expected float32")
    if isinstance(model, MaskFormer):
        if model.gated:
            raise ExportError(
                "MODEL.PROSCALE.GATE chooses layers image by image: expected [] in a file, with "
                "MODEL.PROSCALE.BUDGET"
            )
        return MaskNetwork(model, model.size_divisibility).eval()
    if isinstance(model, Detector):
        return DetectionNetwork(model, model.size_divisibility).eval()
    if isinstance(model, PoseEstimator):
        return PoseNetwork(model, 1).eval()
    head = getattr(model, "sem_seg_head", None)
    if isinstance(model, SemanticSegmentor) and isinstance(head, SegFormerHead):
        return SemanticNetwork(model, model.backbone.size_divisibility).eval()
    raise ExportError(
        f"MODEL.META_ARCHITECTURE is {type(model).__name__} and MODEL.SEM_SEG_HEAD.NAME "
        f"{type(head).__name__}: expected MaskFormer, Detector, PoseEstimator, and "
        "SemanticSegmentor with SegFormerHead"
    )


def describe(cfg: CfgNode, model: nn.Module, network: ExportableNetwork, config_file: str) -> str:
    """The metadata of a file, from which results can be made without this project.

    Returns:
        JSON of the input's format, the classes, and what the results need besides: thresholds of
        panoptic results, the number of boxes, or crops and keypoints.
        ``classes`` has the names in the order of the logits, numbers where no data set of the
        configuration has names for all; ``things`` the indices of those that are counted.
    """
    # Names are in the order of the logits where their number is that of the classes.
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = (
        MetadataCatalog.get(data_set).get(key, ())
        for data_set in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        for key in ("stuff_classes", "thing_classes")
    )
    classes = next((list(found) for found in names if len(found) == count), None)
    document: dict[str, Any] = {
        "input_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "size_divisibility": network.size_divisibility,
        "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
        "classes": classes or [str(number) for number in range(count)],
        "config": config_file,
        "weights": cfg.MODEL.WEIGHTS,
        # What a checkpoint has, from which the model can be built again.
        "description": asdict(ModelDescription.of(cfg)),
        "proscale": version("proscale"),
        "torch": torch.__version__,
    }
    # Settings of the results, which a reader needs to repeat them.
    if isinstance(model, MaskFormer):
        document |= {
            "things": sorted(model.things),
            "object_mask_threshold": model.object_mask_threshold,
            "overlap_threshold": model.overlap_threshold,
        }
    if isinstance(model, Detector):
        document["detections"] = model.max_detections
    if isinstance(model, PoseEstimator):
        keypoints = MetadataCatalog.get(next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))))
        document |= {
            "keypoints": list(keypoints.keypoint_names),
            "input_size": list(cfg.MODEL.POSE.INPUT_SIZE),
            "box_padding": cfg.MODEL.POSE.BOX_PADDING,
            "keypoint_score_thresh": cfg.MODEL.POSE.KEYPOINT_SCORE_THRESH,
            # Of each keypoint its counterpart on the other side; null without the flip test.
            "flip_indices": model.flip_indices,
            "shift_heatmap": model.shift_heatmap,
        }
    return json.dumps(document)
