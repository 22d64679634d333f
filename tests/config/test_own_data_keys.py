"""What follows from DATASETS.OWN in a configuration, and what the user's own values do to it."""

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from proscale.config import setup_cfg
from proscale.config.setup import keys_set_by_user
from proscale.errors import ConfigError

CPU = ["MODEL.DEVICE", "cpu"]
BASE = {
    "MODEL": {
        "SEM_SEG_HEAD": {"NUM_CLASSES": 133},
        "MASK_FORMER": {"TEST": {"SEMANTIC_ON": True, "INSTANCE_ON": True, "PANOPTIC_ON": True}},
    },
    "INPUT": {"DATASET_MAPPER_NAME": "coco_panoptic_lsj"},
    "DATASETS": {"TRAIN": ["coco_2017_train_panoptic"], "TEST": ["coco_2017_val_panoptic"]},
}


@pytest.fixture
def write(tmp_path):
    """Returns a function: name, content → the path of a YAML file."""

    def write(name: str, content: dict) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def own_file(own_block, write):
    """Returns a function: task, further content → a file with own data, based on COCO's."""
    write("base.yaml", BASE)

    def make(task: str, **content) -> str:
        own = {"_BASE_": "base.yaml", "DATASETS": {"OWN": [own_block(task)]}}
        return write("own.yaml", own | content)

    return make


@pytest.mark.parametrize(
    ("task", "mapper", "results"),
    [
        ("panoptic", "coco_panoptic_lsj", (True, False, True)),
        ("instance", "coco_instance_lsj", (False, True, False)),
        ("semantic", "mask_former_semantic", (False, False, True)),
    ],
)
def test_everything_follows_from_the_block(own_file, task, mapper, results):
    cfg = setup_cfg(own_file(task), CPU)
    data, test = cfg.DATASETS, cfg.MODEL.MASK_FORMER.TEST
    assert (*data.TRAIN, *data.TEST) == (f"own_{task}_train", f"own_{task}_val")
    assert mapper == cfg.INPUT.DATASET_MAPPER_NAME
    assert list(results) == [test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON]
    num_classes = {"panoptic": 9, "instance": 5, "semantic": 9}[task]
    assert num_classes == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_boxes_for_a_detector(own_file, task):
    """Those of instances serve unchanged."""
    cfg = setup_cfg(own_file(task, MODEL={"META_ARCHITECTURE": "Detector"}), CPU)
    assert cfg.INPUT.DATASET_MAPPER_NAME == "detr_detection"
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5


def test_keypoints_for_a_pose_estimator(own_file):
    pose = {"META_ARCHITECTURE": "PoseEstimator"}
    cfg = setup_cfg(own_file("keypoints", MODEL=pose), CPU)
    assert (cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS, cfg.DATASETS.TEST) == (3, ("own_keypoints_val",))
    with pytest.raises(ConfigError, match=r"NUM_KEYPOINTS is 4, but .* have 3 keypoints"):
        setup_cfg(own_file("keypoints", MODEL=pose | {"POSE_HEAD": {"NUM_KEYPOINTS": 4}}), CPU)


@pytest.mark.parametrize(
    ("task", "architecture", "expected"),
    [
        ("detection", "MaskFormer", "panoptic or instance or semantic"),
        ("keypoints", "MaskFormer", "panoptic or instance or semantic"),
        ("semantic", "Detector", "detection or instance"),
        ("instance", "PoseEstimator", "keypoints"),
    ],
)
def test_a_task_for_another_model_is_refused(own_file, task, architecture, expected):
    own = own_file(task, MODEL={"META_ARCHITECTURE": architecture})
    message = rf"OWN\[0\]\.TASK is {task}: expected {expected} with .* {architecture}"
    with pytest.raises(ConfigError, match=message):
        setup_cfg(own, CPU)


def test_instance_annotations_of_panoptic_data_switch_mask_ap_on(own_block, write):
    block = own_block("panoptic")
    for split in ("TRAIN", "VAL"):
        block[split]["INSTANCES"] = f"annotations/instances_{split.lower()}.json"
    cfg = setup_cfg(write("own.yaml", {"DATASETS": {"OWN": [block]}}), CPU)
    assert cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON


def test_what_the_user_sets_is_kept(own_file, write):
    own = own_file("panoptic", INPUT={"DATASET_MAPPER_NAME": "mask_former_panoptic"})
    derived = {"MODEL": {"MASK_FORMER": {"TEST": {"SEMANTIC_ON": False}}}}
    file = write("derived.yaml", {"_BASE_": own, **derived})
    cfg = setup_cfg(file, [*CPU, "DATASETS.TEST", "('own_panoptic_train',)"])
    assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_panoptic"
    assert not cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON
    assert cfg.DATASETS.TEST == ("own_panoptic_train",)
    assert cfg.DATASETS.TRAIN == ("own_panoptic_train",)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 9


def test_keys_below_the_own_data_are_not_the_users(own_file, write):
    own = own_file("panoptic", SEED=3)
    file = write("derived.yaml", {"_BASE_": [own], "SOLVER": {"MAX_ITER": 1}})
    assert keys_set_by_user(file, ["MODEL.WEIGHTS", "x"]) == {
        "SEED",
        "DATASETS.OWN",
        "SOLVER.MAX_ITER",
        "MODEL.WEIGHTS",
    }
    assert keys_set_by_user(file, ["DATASETS.OWN", "[]"]) == {"DATASETS.OWN"}


def test_contradicting_number_of_classes_is_refused(own_file):
    key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    message = r"NUM_CLASSES is 8, but own_panoptic_train, own_panoptic_val have 9 classes"
    with pytest.raises(ConfigError, match=message):
        setup_cfg(own_file("panoptic"), [*CPU, key, "8"])
    assert setup_cfg(own_file("panoptic"), [*CPU, key, "9"]).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 9


def test_written_configuration_gives_the_same(own_file, write, tmp_path):
    cfg = setup_cfg(own_file("semantic"), CPU)
    assert cfg.DATASETS.OWN[0]["CLASSES"][:2] == ["class_0", "class_1"]
    again = setup_cfg(write("written.yaml", yaml.safe_load(cfg.dump())))
    assert again.DATASETS == cfg.DATASETS
    assert again.MODEL.SEM_SEG_HEAD == cfg.MODEL.SEM_SEG_HEAD


def test_data_sets_in_use_must_agree(own_block, write):
    blocks = [own_block("panoptic"), own_block("semantic")]
    file = write("own.yaml", {"DATASETS": {"OWN": blocks}})
    with pytest.raises(
        ConfigError, match=r"own_panoptic_train \(panoptic, 9 classes\) and own_sem"
    ):
        setup_cfg(file, CPU)
    chosen = ["DATASETS.TRAIN", "('own_semantic_train',)", "DATASETS.TEST", "('own_semantic_val',)"]
    assert setup_cfg(file, [*CPU, *chosen]).INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"


def test_wrong_block_is_a_config_error(own_block, write):
    block = {**own_block("semantic"), "CLASSSES": ["a"]}
    with pytest.raises(ConfigError, match=r"no key DATASETS\.OWN\[0\]\.CLASSSES .*CLASSES\?"):
        setup_cfg(write("own.yaml", {"DATASETS": {"OWN": [block]}}), CPU)


def test_head_is_sized_to_the_data(own_file, small_cfg):
    own = setup_cfg(own_file("instance"), CPU)
    small_cfg.DATASETS = own.DATASETS
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = own.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    small_cfg.MODEL.MASK_FORMER.TEST = own.MODEL.MASK_FORMER.TEST
    small_cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(small_cfg)
    assert model.sem_seg_head.predictor.class_embed.out_features == 5 + 1
