"""The predictor against evaluation, and the inputs that it accepts."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import proscale
from proscale.checkpoint import Checkpointer
from proscale.data import build_mapper
from proscale.errors import ConfigError
from proscale.modeling import with_sliding_window
from proscale.modeling.test_time_augmentation import with_test_time_augmentation
from proscale.ops.fused import FusibleConvolution


def evaluated(cfg, weights, files, wrap=with_sliding_window):
    """The outputs that evaluation would score."""
    mapper = build_mapper(cfg, is_train=False)
    model = build_model(cfg).eval()
    Checkpointer(model, fine_tune=False).load(weights)
    with torch.no_grad():
        return [wrap(cfg, model)([mapper({"file_name": file})])[0] for file in files]


def assert_alike(prediction, other):
    """Equal but for rounding, which depends on how many images are in the model."""
    kinds = [[(s.id, s.class_id) for s in p.segments] for p in (prediction, other)]
    assert kinds[0] == kinds[1]
    if prediction.scores is not None:
        assert prediction.scores == pytest.approx(other.scores, abs=1e-5)
    assert prediction.id_map.shape == other.id_map.shape
    assert (prediction.id_map == other.id_map).mean() > 0.995


@pytest.fixture
def files(pixels, tmp_path):
    """An upright, a turned, a greyscale, a transparent and a CMYK image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels())
    image.save(tmp_path / "upright.png")
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("RGBA").save(tmp_path / "transparent.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    return [str(path) for path in sorted(tmp_path.glob("*.[pj]*g"))]


@pytest.mark.parametrize("weights", [None, ""])
def test_weights_are_those_of_the_configuration(mask_cfg, random_weights, pixels, weights):
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty: expected a checkpoint file"):
        proscale.Predictor(mask_cfg, weights)
    mask_cfg.MODEL.WEIGHTS = str(random_weights(mask_cfg))
    assert proscale.Predictor(mask_cfg, weights)(pixels()).id_map.any()


def test_fused_convolutions_predict_as_evaluation_does(mask_cfg, random_weights, files):
    mask_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "RTDETRPixelDecoder"
    mask_cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = mask_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
    weights = random_weights(mask_cfg)
    predictor = proscale.Predictor(mask_cfg, weights)
    assert not any(isinstance(m, FusibleConvolution) for m in predictor._model.modules())
    for file, output in zip(files, evaluated(mask_cfg, weights, files), strict=True):
        found, (expected, _) = predictor(file), output["panoptic_seg"]
        assert found.segments
        assert (found.id_map == expected.numpy()).mean() > 0.995


def test_panoptic_equals_evaluation(mask_cfg, random_weights, files):
    weights = random_weights(mask_cfg)
    predictions = proscale.Predictor(mask_cfg, weights)(files)
    for prediction, output in zip(predictions, evaluated(mask_cfg, weights, files), strict=True):
        panoptic, segments = output["panoptic_seg"]
        assert prediction.task == "panoptic" and prediction.segments
        assert np.array_equal(prediction.id_map, panoptic.numpy())
        assert [s.id for s in prediction.segments] == [s["id"] for s in segments]
        assert [s.class_id for s in prediction.segments] == [s["category_id"] for s in segments]
        assert [s.isthing for s in prediction.segments] == [s["isthing"] for s in segments]
        assert all(0 < score <= 1 for score in prediction.scores)


@pytest.mark.parametrize("panoptic_on", [True, False])
def test_instances_equal_evaluation(mask_cfg, random_weights, files, panoptic_on):
    mask_cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = panoptic_on
    weights = random_weights(mask_cfg)
    predictions = proscale.Predictor(mask_cfg, weights, task="instance")(files)
    for prediction, output in zip(predictions, evaluated(mask_cfg, weights, files), strict=True):
        instances = output["instances"]
        order = instances.scores.argsort(descending=True, stable=True)
        order = order[instances.pred_masks[order].flatten(1).any(1)]
        assert len(order) == len(prediction.segments) > 0
        # Rounding depends on how many images are in the model.
        assert prediction.scores == pytest.approx(instances.scores[order].numpy(), rel=1e-5)
        assert np.array_equal(prediction.masks, instances.pred_masks[order].numpy())
        assert np.array_equal(prediction.boxes, instances.pred_boxes.tensor[order].long().numpy())
        assert prediction.id_map is None


@pytest.mark.parametrize("model", ["mask_cfg", "segformer_cfg"])
def test_semantic_equals_evaluation(model, random_weights, files, request):
    cfg = request.getfixturevalue(model)
    weights = random_weights(cfg)
    predictions = proscale.Predictor(cfg, weights, task="semantic")(files)
    for prediction, output in zip(predictions, evaluated(cfg, weights, files), strict=True):
        assert np.array_equal(prediction.id_map, output["sem_seg"].argmax(0).numpy())
        assert prediction.scores is None
        assert sum(segment.area for segment in prediction.segments) == prediction.id_map.size


def test_sliding_windows_and_views_are_those_of_evaluation(segformer_cfg, random_weights, files):
    weights = random_weights(segformer_cfg)
    plain = proscale.Predictor(segformer_cfg, weights)(files[0])
    node = segformer_cfg.TEST.SLIDING_WINDOW
    node.ENABLED, node.CROP_SIZE, node.STRIDE = True, [48, 48], [32, 32]
    (expected,) = evaluated(segformer_cfg, weights, files[:1])
    found = proscale.Predictor(segformer_cfg, weights)(files[0])
    assert np.array_equal(found.id_map, expected["sem_seg"].argmax(0).numpy())
    assert not np.array_equal(found.id_map, plain.id_map)

    node.ENABLED = False
    segformer_cfg.TEST.AUG.ENABLED = True
    segformer_cfg.TEST.AUG.MIN_SIZES = (40, 64)
    found = proscale.Predictor(segformer_cfg, weights)(files[0])
    segformer_cfg.INPUT.MIN_SIZE_TEST = 0
    (expected,) = evaluated(segformer_cfg, weights, files[:1], with_test_time_augmentation)
    assert np.array_equal(found.id_map, expected["sem_seg"].argmax(0).numpy())


@pytest.mark.parametrize("model", ["mask_cfg", "segformer_cfg"])
def test_batch_equals_single_and_every_kind_of_input(model, make_predictor, files, pixels, request):
    predictor = make_predictor(request.getfixturevalue(model))
    turned = next(file for file in files if "turned" in file)
    images = [pixels(), Image.open(turned), turned, pixels(40, 64, seed=1), pixels(seed=2)]
    singles = [predictor(image) for image in images]
    for single, batched in zip(singles, predictor(images), strict=True):
        assert_alike(single, batched)
    assert_alike(singles[1], singles[2])
    assert singles[1].id_map.shape == (64, 48)  # turned as it is to be seen
    assert not np.array_equal(singles[0].id_map, singles[4].id_map)
    assert predictor([]) == []


def test_arrays_are_rgb_for_every_input_format(mask_cfg, make_predictor, pixels):
    of_rgb = make_predictor(mask_cfg)(pixels())
    mask_cfg.INPUT.FORMAT = "BGR"
    assert_alike(make_predictor(mask_cfg)(pixels()[..., ::-1]), of_rgb)


def test_threshold_leaves_out_lower_scores(mask_cfg, make_predictor, pixels):
    for task in ("panoptic", "instance"):
        everything = make_predictor(mask_cfg, task=task)(pixels())
        threshold = float(np.median(everything.scores))
        some = make_predictor(mask_cfg, task=task, score_threshold=threshold)(pixels())
        kept = everything.scores >= threshold
        assert 0 < len(some.segments) < len(everything.segments)
        assert np.array_equal(some.masks, everything.masks[kept])
        if task == "panoptic":
            assert np.array_equal(some.id_map > 0, some.masks.any(0))


def test_configuration_is_left_as_it_is(mask_cfg, make_predictor):
    before = mask_cfg.dump()
    make_predictor(mask_cfg, task="semantic")
    assert mask_cfg.dump() == before


def test_config_file(tmp_path, mask_cfg, random_weights, pixels):
    weights = random_weights(mask_cfg)
    (tmp_path / "model.yaml").write_text(mask_cfg.dump())
    from_file = proscale.Predictor(tmp_path / "model.yaml", weights)(pixels())
    assert_alike(from_file, proscale.Predictor(mask_cfg, weights)(pixels()))


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\).*\(H, W, 3\) uint8"),
        (np.zeros((4, 4, 3)), "type float64.*uint8"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
    ],
)
def test_other_arrays_are_refused(mask_cfg, make_predictor, image, message):
    with pytest.raises(ValueError, match=message):
        make_predictor(mask_cfg)(image)


def test_other_types_are_refused(mask_cfg, make_predictor):
    with pytest.raises(TypeError, match="Tensor: expected a path"):
        make_predictor(mask_cfg)(torch.zeros(3, 4, 4))


def test_wrong_settings_are_named(mask_cfg, random_weights):
    weights = random_weights(mask_cfg)
    mask_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    for options, message in (
        ({"task": "semantic"}, r"expected panoptic, instance .*SEMANTIC_ON is False"),
        ({"task": "boxes"}, "the task is boxes: expected panoptic, instance"),
        ({"score_threshold": 2}, "threshold is 2: expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            proscale.Predictor(mask_cfg, weights, **options)
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS is empty"):
        proscale.Predictor(mask_cfg)


def test_semantic_models_give_no_other_task(segformer_cfg, random_weights):
    with pytest.raises(ValueError, match="the task is panoptic: expected semantic with"):
        proscale.Predictor(segformer_cfg, random_weights(segformer_cfg), task="panoptic")


def test_classes_may_come_from_the_training_data(mask_cfg, random_weights):
    weights = random_weights(mask_cfg)
    mask_cfg.DATASETS.TEST = ()
    assert len(proscale.Predictor(mask_cfg, weights).classes) == 133
    mask_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS.TEST and DATASETS.TRAIN are empty"):
        proscale.Predictor(mask_cfg, weights)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATASETS.TEST", ("coco_2017_vla",), "'coco_2017_vla'.*nearest are .*coco_2017_val"),
        ("DATASETS.TEST", ("ade20k_sem_seg_val",), "NUM_CLASSES is 133: expected 150"),
        ("DATASETS.TEST", ("coco_2017_val",), "expected .* stuff_classes"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "expected MaskFormer, SemanticSegmentor"),
    ],
)
def test_models_without_fitting_classes_are_refused(mask_cfg, random_weights, key, value, message):
    weights = random_weights(mask_cfg)
    mask_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        proscale.Predictor(mask_cfg, weights)


def test_load_takes_keys_and_its_predictions_draw_themselves(pixels, restored_catalogs):
    keys = {"MODEL": {"DEVICE": "cpu"}, "INPUT": {"MIN_SIZE_TEST": 64}}
    predictor = proscale.load("nuclei", score_threshold=0.1, **keys)
    assert predictor.cfg.INPUT.MIN_SIZE_TEST == 64 and predictor.score_threshold == 0.1
    prediction = predictor(image := pixels())
    assert prediction.image is image and prediction.classes is predictor.classes
    assert prediction.plot().shape == image.shape
    with pytest.raises(ConfigError, match=r"INPUT\.MIN_SIZE_TESTS.*INPUT\.MIN_SIZE_TEST"):
        proscale.load("nuclei", INPUT={"MIN_SIZE_TESTS": 64})
