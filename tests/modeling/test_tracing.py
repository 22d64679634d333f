"""PyTorch's tracers see the whole network: no break in the graph, and the same predictions."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn


class Network(nn.Module):
    """From a padded batch of images to class and mask logits."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, images):
        outputs = self.head(self.backbone(images))
        return outputs["pred_logits"], outputs["pred_masks"]


@pytest.fixture(
    params=["PROSCALE", "MSDeformAttnPixelDecoder", "RTDETRPixelDecoder", "LiteDETRPixelDecoder"]
)
def network(small_cfg, request):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = request.param
    small_cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = small_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
    torch.manual_seed(0)
    return Network(build_model(small_cfg)).eval()


@pytest.fixture
def images():
    return torch.rand(1, 3, 96, 128)


@torch.no_grad()
def test_compiles_without_a_graph_break(network, images):
    expected = network(images)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exports(network, images):
    expected = network(images)  # first, so that what is kept of it would be met again
    program = torch.export.export(network, (images,))
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
    names = {str(node.target) for node in program.graph.nodes}
    expected = {
        "RTDETRPixelDecoder": set(),
        "LiteDETRPixelDecoder": {"proscale.key_aware_deformable_attention.default"},
    }.get(type(network.head.pixel_decoder).__name__, {"proscale.deformable_attention.default"})
    assert {name for name in names if "deformable_attention" in name} == expected


def test_kept_tensors_of_an_inference_serve_training(network, images):
    with torch.inference_mode():
        network(images)
    network.train()
    logits, masks = network(images)
    (logits.sum() + masks.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.head.pixel_decoder.parameters())


class Detection(nn.Module):
    """From a padded batch of images to class logits and boxes."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.detection_head

    def forward(self, images):
        outputs = self.head(self.backbone(images))
        return outputs["logits"][-1], outputs["boxes"][-1]


@pytest.fixture(params=["mixed", "deformable", "learned"])
def detector(small_cfg, request):
    small_cfg.MODEL.META_ARCHITECTURE = "Detector"
    small_cfg.MODEL.DETECTOR.QUERIES, small_cfg.MODEL.DETECTOR.NUM_QUERIES = request.param, 20
    small_cfg.MODEL.DETECTOR.ENCODER, small_cfg.MODEL.DETECTOR.DEC_LAYERS = "proscale", 2
    small_cfg.MODEL.DETECTOR.PROSCALE_NUM_LAYERS = [0, 1, 1, 1]
    torch.manual_seed(0)
    return Detection(build_model(small_cfg)).eval()


@torch.no_grad()
def test_detectors_compile_and_export(detector, images):
    expected = detector(images)
    compiled = torch.compile(detector, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    program = torch.export.export(detector, (images,))
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
