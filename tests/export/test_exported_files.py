"""One file for all sizes: exported once, it computes what the model does."""

import zipfile

import pytest
import torch
from detectron2.modeling import build_model

from proscale.errors import ExportError
from proscale.export import (
    OnnxRunner,
    ProgramRunner,
    compare,
    export_program,
    exportable,
    quantise,
    write_onnx,
    write_program,
)

# Padded and not, smaller than the example; 224 is whole windows in Swin's last stage.
SHAPES = [(2, 3, 97, 130), (1, 3, 224, 128)]


RT_M2F = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "RTDETRPixelDecoder"]
RT_M2F += ["MODEL.RT_DETR_ENCODER.HIDDEN_DIM", 64]


def make_network(cfg, *overrides):
    cfg.merge_from_list(list(overrides))
    torch.manual_seed(0)
    return exportable(build_model(cfg))


def make_batches(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes
    ]


def assert_equal(network, runner):
    assert all(one.worst < 1e-3 for one in compare(network, runner, make_batches()))


def test_torch_export(tiny_cfg, tmp_path):
    network = make_network(tiny_cfg)
    program = export_program(network)
    assert "proscale" not in str(program.graph)  # no operator of ours
    file = tmp_path / "model.pt2"
    write_program(program, file, "about")
    runner = ProgramRunner(file)
    assert runner.metadata == "about"
    assert_equal(network, runner)
    with pytest.raises((AssertionError, RuntimeError), match="size"):
        runner(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))


def test_branches_and_norms_are_fused_in_the_file(tiny_cfg):
    network = make_network(tiny_cfg, *RT_M2F)
    program = export_program(network)
    names = [name for name, _ in program.named_parameters() if "hybrid_encoder" in name]
    assert not any("norm.weight" in name for name in names)
    blocks = [name for name in names if "bottlenecks" in name]
    assert len(blocks) == 4 * 3 * 2  # a weight and a bias each
    assert_equal(network, program.module())


@pytest.mark.slow
def test_segformer(small_segformer_cfg, tmp_path):
    pytest.importorskip("onnxruntime")
    network = make_network(small_segformer_cfg)
    file, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    write_onnx(export_program(network), network.outputs, file, "")
    assert_equal(network, OnnxRunner(file))
    quantise(file, small)  # weights that the head makes of others, too
    assert small.stat().st_size < 0.7 * file.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],  # Swin
        ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"],
        ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "LiteDETRPixelDecoder"],
        ["MODEL.PROSCALE.IS_EXCITE_CONV", True, "MODEL.PROSCALE.RECALIBRATION", "transposed"],
        RT_M2F,
        ["MODEL.BACKBONE.NAME", "MixVisionTransformer"],
        ["MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.TOKEN_MERGING", "n2d_2x2"],
    ],
)
def test_other_models(small_cfg, overrides, tmp_path):
    network = make_network(small_cfg, *overrides)
    program = export_program(network)
    write_program(program, tmp_path / "model.pt2", "")
    assert_equal(network, ProgramRunner(tmp_path / "model.pt2"))
    pytest.importorskip("onnxruntime")
    write_onnx(program, network.outputs, tmp_path / "model.onnx", "")
    assert_equal(network, OnnxRunner(tmp_path / "model.onnx"))


def test_a_comparison_finds_what_differs(tiny_cfg):
    network = make_network(tiny_cfg)

    def off_by_one(images):
        classes, masks = network(images)
        return classes, masks + 1

    def other_shape(images):
        return network(images)[0], torch.zeros(1)

    (deviation,) = compare(network, off_by_one, make_batches(SHAPES[:1]))
    assert deviation.differences["class_logits"] == 0
    assert deviation.worst == pytest.approx(1, abs=1e-4)
    (deviation,) = compare(network, other_shape, make_batches(SHAPES[:1]))
    assert deviation.worst == float("inf")


def bomb(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_0", bytes(10**7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "there is no such file"),
        (lambda file: file.mkdir(), "it is a folder: expected a file"),
        (lambda file: file.write_bytes(b""), "it is no "),
        (lambda file: file.write_text("<html>"), "it is no "),
        (bomb, "unpack to 10000000: expected|it is no "),
    ],
    ids=["missing", "folder", "empty", "page", "bomb"],
)
@pytest.mark.parametrize("runner", [ProgramRunner, OnnxRunner])
def test_other_files_are_refused(tmp_path, runner, make, message):
    if runner is OnnxRunner:
        pytest.importorskip("onnxruntime")
    file = tmp_path / "model"
    make(file)
    with pytest.raises(ExportError, match=message) as error:
        runner(file)
    assert str(error.value).startswith(f"{file}: ") and str(error.value).isprintable()


def test_detectors(small_detector_cfg, tmp_path):
    # 96 pixels to the side make more tokens than queries.
    network = make_network(small_detector_cfg, "MODEL.DETECTOR.ENCODER", "proscale")
    file = tmp_path / "model.onnx"
    write_onnx(export_program(network), network.outputs, file, "{}")
    assert_equal(network, OnnxRunner(file))


def test_pose_estimators(small_pose_cfg, tmp_path):
    network = make_network(small_pose_cfg)
    file = tmp_path / "model.onnx"
    write_onnx(export_program(network), network.outputs, file, "{}")
    runner = OnnxRunner(file)
    assert_equal(network, runner)
    assert runner(torch.zeros(3, 3, 96, 128, dtype=torch.uint8))[0].shape == (3, 17, 24, 32)
