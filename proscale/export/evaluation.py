"""The quality of an exported file on a data set, by this project's own evaluators."""

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from proscale.engine.trainer import Trainer
from proscale.evaluation import build_evaluator
from proscale.export.check import Runner
from proscale.export.network import ExportableNetwork
from proscale.modeling import MaskFormer, with_sliding_window

METRICS = {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}
"""The main metric of each kind of results."""


class ExportedModel(nn.Module):
    """Computes logits by a file, and makes the model's results from them.

    Args:
        model: makes the results.
        network: of the model; knows how images are padded.
        run: runs the file.
    """

    def __init__(self, model: nn.Module, network: ExportableNetwork, run: Runner):
        super().__init__()
        self.model, self.network, self.run = model, network, run

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the model's own in evaluation; an image at a time."""
        return [self._segment(sample) for sample in batched_inputs]

    def _segment(self, sample: dict) -> dict:
        # Logits by the file, a batch of one.
        images = sample["image"][None]
        size = (images.shape[2], images.shape[3])
        outputs: list[Tensor] = [output[0] for output in self.run(images)]
        # Results by the model, at the size of the original image.
        if isinstance(self.model, MaskFormer):
            return self.model.results(
                *outputs, padded_size=self.network.padded(size), image_size=size, sample=sample
            )
        height, width = sample.get("height", size[0]), sample.get("width", size[1])
        return {"sem_seg": sem_seg_postprocess(*outputs, size, height, width)}


def evaluate(
    cfg: CfgNode, model: nn.Module, network: ExportableNetwork, run: Runner
) -> dict[str, float]:
    """:data:`METRICS` of a file on the first data set of ``DATASETS.TEST``, percent; for the
    arguments see :class:`ExportedModel`."""
    # As ``Trainer.test`` does, with the file in place of the model's network.
    name = cfg.DATASETS.TEST[0]
    results = inference_on_dataset(
        with_sliding_window(cfg, ExportedModel(model, network, run).eval()),
        Trainer.build_test_loader(cfg, name),
        build_evaluator(cfg, name),
    )
    return {metric: results[kind][metric] for kind, metric in METRICS.items() if kind in results}
