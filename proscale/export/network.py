"""The part of a model that is exported: from pixels to logits, normalisation and padding included.

Results are made from logits outside: that takes sizes which only the caller knows, and is short in
NumPy (``docs/export.md``).
"""

import json
from importlib.metadata import version
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.errors import ExportError
from proscale.modeling import MaskFormer, SegFormerHead
from proscale.modeling.backbones import MixVisionTransformer
from proscale.modeling.backbones.swin import whole_windows
from proscale.modeling.backbones.token_merging import BipartiteSoftMatching
from proscale.ops.fused import fuse_for_inference
from proscale.utils.types import Size


class ExportableNetwork(nn.Module):
    """From images ``(B, 3, H, W)`` uint8, channels in the order of ``INPUT.FORMAT``, to logits.

    Args:
        model: its ``backbone``, ``sem_seg_head``, ``pixel_mean`` and ``pixel_std`` are shared.
        size_divisibility: images are padded to a multiple of it, on the right and below.
    """

    outputs: tuple[str, ...]  # names, in the order of ``forward``
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, size_divisibility: int):
        super().__init__()
        # Shared, not copied: the network is as large as the model. Weights of convolutions that
        # are fused are its own.
        self.backbone = model.get_submodule("backbone")
        self.sem_seg_head = fuse_for_inference(model.get_submodule("sem_seg_head"))
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
        outputs = self.sem_seg_head(self.features(images))
        return outputs["pred_logits"], outputs["pred_masks"]


class SemanticNetwork(ExportableNetwork):
    """That of Detectron2's ``SemanticSegmentor`` with a ``SegFormerHead``: the logits
    ``(B, K, H, W)`` of every pixel."""

    outputs = ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        logits, _ = self.sem_seg_head(self.features(images))
        # Without the padding.
        height, width = images.shape[-2:]
        return (logits[..., :height, :width],)


def exportable(model: nn.Module) -> ExportableNetwork:
    """The network of ``model``, which shares its weights, in evaluation mode.

    Raises:
        ExportError: models of this kind cannot be exported; the configuration's key is named.
    """
    backbone, head = model.get_submodule("backbone"), model.get_submodule("sem_seg_head")
    # Before the kind of model, because every kind may have this backbone.
    stages = backbone.token_merging if isinstance(backbone, MixVisionTransformer) else ()
    methods = [method for stage in stages for method in vars(stage).values()]
    if any(isinstance(method, BipartiteSoftMatching) for method in methods):
        raise ExportError(
            "MODEL.MIT.TOKEN_MERGING has mode bsm, whose number of tokens is no expression of the "
            "image's size that exporters know: expected none, n2d_2x2, and the modes n1d and n2d"
        )
    # Numbers in half precision would be compared with those of a file in single precision.
    if isinstance(model, MaskFormer):
        if model.inference_dtype is not None:
            name = str(model.inference_dtype).removeprefix("torch.")
            raise ExportError(f"MODEL.MASK_FORMER.TEST.DTYPE is {name}: expected float32")
        if model.gated:
            raise ExportError(
                "MODEL.PROSCALE.GATE chooses layers image by image: expected [] in a file, with "
                "MODEL.PROSCALE.BUDGET"
            )
        return MaskNetwork(model, model.size_divisibility).eval()
    if isinstance(model, SemanticSegmentor) and isinstance(head, SegFormerHead):
        return SemanticNetwork(model, model.backbone.size_divisibility).eval()
    raise ExportError(
        f"MODEL.META_ARCHITECTURE is {type(model).__name__} and MODEL.SEM_SEG_HEAD.NAME "
        f"{type(head).__name__}: expected MaskFormer, and SemanticSegmentor with SegFormerHead"
    )


def describe(cfg: CfgNode, model: nn.Module, network: ExportableNetwork, config_file: str) -> str:
    """The metadata of a file, from which results can be made without this project.

    Returns:
        JSON of the input's format, the classes, and the thresholds of the panoptic results.
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
        "proscale": version("proscale"),
        "torch": torch.__version__,
    }
    # Settings of the panoptic results, which a reader needs to repeat them.
    if isinstance(model, MaskFormer):
        document |= {
            "things": sorted(model.things),
            "object_mask_threshold": model.object_mask_threshold,
            "overlap_threshold": model.overlap_threshold,
        }
    return json.dumps(document)
