"""ADE20K: 150 classes, 100 of them things, in the order that published weights have."""

from detectron2.data import MetadataCatalog

from proscale.data.datasets.ade20k import THINGS, categories, register_ade20k


def test_there_are_150_classes_and_100_things():
    assert len(categories()) == 150
    assert len(set(THINGS)) == 100 and list(THINGS) == sorted(THINGS)
    named = {category["name"].split(",")[0]: category["isthing"] for category in categories()}
    for thing in ("bed", "person", "car", "chair", "lamp", "clock", "flag", "bicycle", "book"):
        assert named[thing], thing
    for stuff in ("wall", "sky", "road", "ceiling", "grass", "mountain", "water", "sea", "path"):
        assert not named[stuff], stuff


def test_contiguous_ids_keep_the_benchmarks_order(tmp_path, restored_catalogs):
    register_ade20k(tmp_path)
    panoptic = MetadataCatalog.get("ade20k_panoptic_val")
    things = panoptic.thing_dataset_id_to_contiguous_id
    stuff = panoptic.stuff_dataset_id_to_contiguous_id
    assert things == {id_: id_ for id_ in THINGS}
    assert {**things, **stuff} == {id_: id_ for id_ in range(150)}
    assert panoptic.evaluator_type == "ade20k_panoptic_seg"
    assert panoptic.json_file == str(tmp_path / "ADEChallengeData2016/ade20k_instance_val.json")

    instance = MetadataCatalog.get("ade20k_instance_val")
    assert list(instance.thing_dataset_id_to_contiguous_id.values()) == list(range(100))
    assert instance.thing_classes[0].startswith("bed")

    semantic = MetadataCatalog.get("ade20k_sem_seg_val")
    assert semantic.stuff_classes == panoptic.stuff_classes
    assert semantic.ignore_label == 255
