"""Names, numbers and colours of the classes of built-in data sets and of the user's own."""

import pytest
from detectron2.data import MetadataCatalog

from proscale.data.datasets.own import register_own_data
from proscale.data.datasets.shapes import coco_categories
from proscale.predict.classes import Classes


def test_panoptic_data_set():
    classes = Classes.of_dataset("coco_2017_val_panoptic", "panoptic")
    assert len(classes) == 133
    assert (classes.names[0], classes.category_ids[0], classes.isthing[0]) == ("person", 1, True)
    assert (classes.category_ids[132], classes.isthing[132]) == (200, False)
    assert classes.colors[0] == (220, 20, 60)
    assert Classes.of_dataset("coco_2017_val_panoptic", "semantic") == classes


def test_instances_are_things():
    classes = Classes.of_dataset("ade20k_instance_val", "instance")
    assert len(classes) == 100 and all(classes.isthing)
    assert (classes.names[0], classes.category_ids[0]) == ("bed", 7)
    assert len(classes.colors) == 100  # chosen: the data set has none


def test_semantic_data_set_without_numbers():
    classes = Classes.of_dataset("cityscapes_fine_sem_seg_val", "semantic")
    assert classes.category_ids == tuple(range(19))
    assert classes.colors[0] == (128, 64, 128)  # road's, as everywhere


def test_stuff_numbered_without_things():
    classes = Classes.of_dataset("coco_2017_val_panoptic_stuffonly", "semantic")
    assert len(classes) == 54
    assert (classes.names[1], classes.category_ids[1]) == ("banner", 92)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_own_data(own_block, task):
    block = own_block(task)
    names = [category["name"] for category in coco_categories()]
    if task == "semantic":
        block["CLASSES"] = names
    register_own_data([block])
    classes = Classes.of_dataset(f"own_{task}_val", task)
    things = [category for category in coco_categories() if category["isthing"]]
    assert list(classes.names) == names[: len(classes)]
    assert list(classes.category_ids)[: len(things)] == (
        list(range(len(things))) if task == "semantic" else [c["id"] for c in things]
    )
    if task == "panoptic":
        assert list(classes.colors) == [tuple(c["color"]) for c in coco_categories()]


def test_data_set_without_such_classes(restored_catalogs):
    MetadataCatalog.get("things_only").set(thing_classes=["cat"])
    with pytest.raises(ValueError, match="things_only has no stuff_classes"):
        Classes.of_dataset("things_only", "semantic")
