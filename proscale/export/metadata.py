"""What a file has to say besides its graph, so that results can be made from it alone."""

import json
from importlib.metadata import version

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from proscale.export.network import ExportableNetwork
from proscale.modeling import MaskFormer


def describe(
    cfg: CfgNode, model: torch.nn.Module, network: ExportableNetwork, config_file: str
) -> str:
    """JSON of the input's format, the classes, and the thresholds of the panoptic results.

    ``classes`` has the names in the order of the logits, ``things`` the indices of those that are
    counted. Data sets that are not registered with names leave ``classes`` as numbers.
    """
    is_mask_former = isinstance(model, MaskFormer)
    document = {
        "input_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "size_divisibility": network.size_divisibility,
        "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
        "classes": class_names(cfg),
        "config": config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "proscale": version("proscale"),
        "torch": torch.__version__,
    }
    if is_mask_former:
        document |= {
            "things": sorted(model.things),
            "object_mask_threshold": model.object_mask_threshold,
            "overlap_threshold": model.overlap_threshold,
        }
    return json.dumps(document)


def class_names(cfg: CfgNode) -> list[str]:
    """Names of the classes in the order of the logits; numbers where the data set has no names for
    all of them."""
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        for key in ("stuff_classes", "thing_classes"):
            names = metadata.get(key, ())
            if len(names) == count:
                return list(names)
    return [str(number) for number in range(count)]
