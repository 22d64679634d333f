"""The evaluators that a configuration builds."""

import logging

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from proscale import add_proscale_config
from proscale.errors import ConfigError
from proscale.evaluation import (
    BoxEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemanticEvaluator,
    CocoPanopticEvaluator,
    InstanceEvaluator,
    SemanticEvaluator,
    build_evaluator,
)


def config(*switches):
    cfg = get_cfg()
    add_proscale_config(cfg)
    for name in ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"):
        setattr(cfg.MODEL.MASK_FORMER.TEST, name, name in switches)
    return cfg


def kinds(evaluators):
    return [type(evaluator) for evaluator in evaluators._evaluators]


@pytest.fixture
def with_instances(toy_dataset, tmp_path):
    path = tmp_path / "instances.json"
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    MetadataCatalog.get(toy_dataset.name).json_file = str(path)
    return toy_dataset


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        (["PANOPTIC_ON"], [CocoPanopticEvaluator]),
        (["INSTANCE_ON"], [InstanceEvaluator]),
        (["SEMANTIC_ON"], [SemanticEvaluator]),
        (
            ["SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"],
            [CocoPanopticEvaluator, InstanceEvaluator, SemanticEvaluator],
        ),
    ],
)
def test_each_switch_builds_its_evaluator(with_instances, switches, expected):
    assert kinds(build_evaluator(config(*switches), with_instances.name)) == expected


def test_a_detector_is_evaluated_by_boxes(with_instances):
    cfg = config("PANOPTIC_ON")
    cfg.MODEL.META_ARCHITECTURE = "Detector"
    assert kinds(build_evaluator(cfg, with_instances.name)) == [BoxEvaluator]
    del MetadataCatalog.get(with_instances.name).json_file
    with pytest.raises(ConfigError, match=r"no JSON of instances .*META_ARCHITECTURE Detector"):
        build_evaluator(cfg, with_instances.name)


@pytest.mark.parametrize("json_file", [None, "absent.json"])
def test_instance_on_without_annotations_is_one_warning(toy_dataset, caplog, json_file):
    MetadataCatalog.get(toy_dataset.name).json_file = json_file
    with caplog.at_level(logging.INFO, logger="proscale"):
        built = build_evaluator(config("PANOPTIC_ON", "INSTANCE_ON"), toy_dataset.name)
    assert kinds(built) == [CocoPanopticEvaluator]
    (record,) = caplog.records
    message = record.getMessage()
    assert "AP is not computed" in message and toy_dataset.name in message
    assert "\n" not in message
    assert (json_file or "no instances' JSON") in message


def test_nothing_to_evaluate(toy_dataset):
    for switches in ([], ["INSTANCE_ON"]):
        with pytest.raises(ValueError, match=f"{toy_dataset.name}.*PANOPTIC_ON"):
            build_evaluator(config(*switches), toy_dataset.name)


@pytest.mark.parametrize("evaluator_type", ["lvis", None])
def test_unknown_evaluator_type(toy_dataset, evaluator_type):
    MetadataCatalog.get(toy_dataset.name).__dict__["evaluator_type"] = evaluator_type
    with pytest.raises(
        ValueError, match=f"{toy_dataset.name}.*{evaluator_type}.*expected coco.*sem_seg"
    ):
        build_evaluator(config("PANOPTIC_ON"), toy_dataset.name)


def test_files_go_to_the_output_dir(toy_dataset, tmp_path):
    built = build_evaluator(config("PANOPTIC_ON"), toy_dataset.name, str(tmp_path / "out"))
    for image_id in (3, 5, 7):
        built.process([toy_dataset.inputs(image_id)], [toy_dataset.panoptic(image_id)])
    assert built.evaluate()["panoptic_seg"]["PQ"] == 100.0
    assert (tmp_path / "out" / "panoptic_seg.json").is_file()


def of_type(dataset, evaluator_type):
    metadata = MetadataCatalog.get(dataset.name).__dict__
    metadata["evaluator_type"] = evaluator_type
    if evaluator_type.startswith("cityscapes"):
        names = [c["name"] for c in CITYSCAPES_CATEGORIES]
        folder = dataset.root / "gtFine" / "bonn"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bonn_0_0_gtFine_instanceIds.png").touch()
        metadata |= {
            "gt_dir": str(folder.parent),
            "thing_classes": names,
            "stuff_classes": names,
        }
    return dataset.name


@pytest.mark.parametrize(
    ("evaluator_type", "expected"),
    [
        ("coco", [InstanceEvaluator]),
        ("coco_panoptic_seg", [CocoPanopticEvaluator, InstanceEvaluator, SemanticEvaluator]),
        ("ade20k_panoptic_seg", [CocoPanopticEvaluator, InstanceEvaluator, SemanticEvaluator]),
        ("mapillary_vistas_panoptic_seg", [CocoPanopticEvaluator, SemanticEvaluator]),
        (
            "cityscapes_panoptic_seg",
            [CocoPanopticEvaluator, CityscapesInstanceEvaluator, CityscapesSemanticEvaluator],
        ),
        ("cityscapes_instance", [CityscapesInstanceEvaluator]),
        ("cityscapes_sem_seg", [CityscapesSemanticEvaluator]),
        ("sem_seg", [SemanticEvaluator]),
    ],
)
def test_each_type_has_its_evaluators(with_instances, caplog, evaluator_type, expected):
    name = of_type(with_instances, evaluator_type)
    switches = ["PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"]
    with caplog.at_level(logging.WARNING, logger="proscale"):
        assert kinds(build_evaluator(config(*switches), name)) == expected
    assert len(caplog.records) == 3 - len(expected), "one line for each that is left out"
    assert all(evaluator_type in record.getMessage() for record in caplog.records)


def test_tasks_without_annotations_are_refused(toy_dataset):
    name = of_type(toy_dataset, "sem_seg")
    with pytest.raises(ValueError, match=rf"{name}'.*evaluator_type 'sem_seg'"):
        build_evaluator(config("PANOPTIC_ON", "INSTANCE_ON"), name)


def test_keys_reach_the_evaluators(with_instances, tmp_path):
    cfg = config("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
    cfg.TEST.BOUNDARY_IOU = cfg.TEST.SAVE_PREDICTIONS = True
    panoptic, instance, semantic = build_evaluator(
        cfg, with_instances.name, str(tmp_path / "out")
    )._evaluators
    assert panoptic._prediction_dir and instance._prediction_dir
    assert "boundary" in instance.evaluate() and "mBoundaryIoU" in semantic.evaluate()["sem_seg"]
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()
