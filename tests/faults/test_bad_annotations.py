"""Annotation files: what does not fit together is named, and nothing outside of them is opened."""

import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic

from proscale.data.datasets.coco import guard
from proscale.data.datasets.registration import detectron2_metadata
from proscale.data.datasets.shapes import CATEGORIES
from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.data.formats.json_file import MAX_BYTES
from proscale.data.prepare import prepare

EVERYWHERE = ("train", "evaluate", "check")


def first_segment(**values):
    return lambda f: f.edit_panoptic(
        lambda c: c["annotations"][0]["segments_info"][0].update(values)
    )


def first_annotation(**values):
    return lambda f: f.edit_instances(lambda c: c["annotations"][0].update(values))


def first_image(**values):
    return lambda f: f.edit_panoptic(lambda c: c["images"][0].update(values))


def png_name(name):
    return lambda f: f.edit_panoptic(lambda c: c["annotations"][0].update(file_name=name))


def without(key):
    return lambda f: f.edit_panoptic(lambda c: c.pop(key))


def category(place=0, **values):
    """In the files of both splits, which have to agree."""

    def change(f):
        f.edit_panoptic(lambda c: c["categories"][place].update(values))
        f.edit_instances(lambda c: c["categories"][place].update(values))

    return change


def no_images(c):
    c["images"].clear()
    c["annotations"].clear()


VIA = {f"image{i}.jpg{i}": {"filename": f"image{i}.jpg", "regions": []} for i in range(1000)}


def paint(f, value):
    ids = read_panoptic_png(f.panoptic)
    ids[:4, :4] = value
    write_panoptic_png(f.panoptic, ids)


def larger_than_memory(f):
    with f.panoptic_json.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)


JSON = "panoptic_train.json"

PANOPTIC = {
    "no JSON": (lambda f: f.panoptic_json.write_text("{"), EVERYWHERE, (JSON, "not a JSON file")),
    "empty": (lambda f: f.panoptic_json.write_text(""), EVERYWHERE, (JSON, "not a JSON file")),
    "binary": (
        lambda f: f.panoptic_json.write_bytes(bytes([0xFF, 0xFE, 0x80])),
        EVERYWHERE,
        (JSON, "not a JSON file"),
    ),
    "a list": (
        lambda f: f.panoptic_json.write_text("[]"),
        EVERYWHERE,
        (JSON, "expected an object"),
    ),
    "nested absurdly": (
        lambda f: f.panoptic_json.write_text("[" * 100_000),
        EVERYWHERE,
        (JSON, "nested too deeply"),
    ),
    "of absurd size": (larger_than_memory, EVERYWHERE, (JSON, f"expected {MAX_BYTES}")),
    "a number of 5000 digits": (
        lambda f: f.panoptic_json.write_text("[" + "9" * 5000 + "]"),
        EVERYWHERE,
        (JSON, "not a JSON file", "digits"),
    ),
    "NaN": (first_segment(area=math.nan), EVERYWHERE, (JSON, "NaN is no JSON number")),
    "without images": (without("images"), EVERYWHERE, (JSON, "no list 'images'")),
    "without categories": (without("categories"), EVERYWHERE, (JSON, "no list 'categories'")),
    "image without height": (
        lambda f: f.edit_panoptic(lambda c: c["images"][0].pop("height")),
        EVERYWHERE,
        (JSON, "images[0] has no key 'height'"),
    ),
    "image of height 0": (
        first_image(height=0),
        EVERYWHERE,
        (JSON, "images[0] has (height, width) (0, 64)"),
    ),
    "image of absurd size": (
        first_image(height=10**9, width=10**9),
        EVERYWHERE,
        (JSON, "images[0]", "bytes when it is decoded: expected 1 to 1073741824"),
    ),
    "height as text": (
        first_image(height="64"),
        EVERYWHERE,
        (JSON, 'images[0].height is "64": expected an integer'),
    ),
    "category of true": (
        first_segment(category_id=True),
        EVERYWHERE,
        (JSON, "segments_info", "category_id is true: expected an integer"),
    ),
    "an annotation that is a number": (
        lambda f: f.edit_panoptic(lambda c: c["annotations"].append(5)),
        EVERYWHERE,
        (JSON, "annotations[3] is 5: expected an object"),
    ),
    "unknown category": (
        first_segment(category_id=99),
        ("train", "evaluate", "check"),
        ("category_id 99: expected",),
    ),
    "VIA's format": (
        lambda f: f.panoptic_json.write_text(json.dumps(VIA)),
        EVERYWHERE,
        (JSON, "no list 'categories'", "COCO", "'image0.jpg0'", "and 995 more"),
    ),
    "labelme's format": (
        lambda f: f.panoptic_json.write_text('{"shapes": [], "imageData": "A"}'),
        EVERYWHERE,
        (JSON, "no list 'categories'", "there is 'shapes', 'imageData'"),
    ),
    "no images": (
        lambda f: f.edit_panoptic(no_images),
        ("train", "check"),
        (JSON, "images is empty: expected one or more"),
    ),
    "no image has an annotation": (
        lambda f: f.edit_panoptic(lambda c: c["annotations"].clear()),
        ("train", "check"),
        (JSON, "3 of 3 images have no annotation"),
    ),
    "a segment listed twice": (
        lambda f: f.edit_panoptic(
            lambda c: c["annotations"][0]["segments_info"].append(
                c["annotations"][0]["segments_info"][0]
            )
        ),
        EVERYWHERE,
        (JSON, "annotations[0].segments_info", "is there twice"),
    ),
    "a segment that is void": (
        first_segment(id=0),
        EVERYWHERE,
        ("segments_info[0].id is 0: expected an integer of 1 to 16777215",),
    ),
    "a segment id of 25 bits": (
        first_segment(id=2**24),
        EVERYWHERE,
        ("segments_info[0].id is 16777216: expected",),
    ),
    "a class named twice": (
        category(1, name=CATEGORIES[0]["name"]),
        EVERYWHERE,
        (JSON, "categories[1]: name", "is there twice"),
    ),
    "a class of half a character": (
        category(name="\ud800"),
        EVERYWHERE,
        (JSON, r'categories[0].name is "\ud800": expected a text'),
    ),
    "a class of two lines": (
        category(name="a\nb"),
        EVERYWHERE,
        (JSON, "categories[0].name", "expected a text without control characters"),
    ),
    "isthing of 7": (
        category(isthing=7),
        EVERYWHERE,
        (JSON, "categories[0].isthing is 7: expected 0 or 1"),
    ),
    "iscrowd of text": (
        first_segment(iscrowd="x"),
        EVERYWHERE,
        (JSON, 'segments_info[0].iscrowd is "x": expected 0 or 1'),
    ),
    "an id of 70 bits": (
        first_segment(category_id=2**70),
        EVERYWHERE,
        (JSON, "category_id is 1180591620717411303424: expected an integer of 64 bits"),
    ),
    "annotated twice": (
        lambda f: f.edit_panoptic(lambda c: c["annotations"].append(c["annotations"][0])),
        ("train", "evaluate"),
        (JSON, "annotations[3]: image_id 1 is there twice"),
    ),
    "image listed twice": (
        lambda f: f.edit_panoptic(lambda c: c["images"].append(c["images"][0])),
        ("train", "evaluate"),
        (JSON, "images[3]: id 1 is there twice"),
    ),
    "annotation without image": (
        lambda f: f.edit_panoptic(lambda c: c["images"].pop(0)),
        ("train", "evaluate"),
        (JSON, "annotations[0] is for image 1, which is not among its images"),
    ),
    "image without annotation": (
        lambda f: f.edit_panoptic(lambda c: c["annotations"].pop(0)),
        ("train", "check"),
        (JSON, "1"),
    ),
    "PNG id absent from the JSON": (
        lambda f: paint(f, 77),
        EVERYWHERE,
        ("000001.png", "77"),
    ),
    "JSON id absent from the PNG": (
        lambda f: f.edit_panoptic(
            lambda c: c["annotations"][0]["segments_info"].append({"id": 88, "category_id": 1})
        ),
        ("train", "check"),
        ("000001.png", "88"),
    ),
    "zero area": (first_segment(area=0), ("check",), ("area-not-positive", "area 0")),
    "box outside": (
        first_segment(bbox=[0, 0, 70, 10]),
        ("check",),
        ("box-outside", "bbox [0, 0, 70, 10], image (height, width) (64, 64)"),
    ),
    "box of three": (first_segment(bbox=[0, 0, 7]), ("check",), ("box-outside", "bbox [0, 0, 7]")),
    "only crowds": (
        lambda f: f.edit_panoptic(
            lambda c: [s.update(iscrowd=1) for s in c["annotations"][0]["segments_info"]]
        ),
        ("check",),
        ("image-empty", "all of them crowds"),
    ),
    "image above its folder": (
        first_image(file_name="../outside.jpg"),
        EVERYWHERE,
        ("file_name of image 1", '"../outside.jpg", which leaves'),
    ),
    "image at an absolute path": (
        first_image(file_name="/etc/passwd"),
        EVERYWHERE,
        ("file_name of image 1", '"/etc/passwd", which leaves'),
    ),
    "PNG above its folder": (
        png_name("x/../../../secret.png"),
        EVERYWHERE,
        ("file_name of", "annotation", "which leaves"),
    ),
    "PNG with a zero byte in its name": (
        png_name("a\0b"),
        EVERYWHERE,
        ("expected the name of a file",),
    ),
}

INSTANCES = "instances_train.json"

INSTANCE = {
    "unknown category": (
        first_annotation(category_id=99),
        EVERYWHERE,
        (INSTANCES, "category_id 99: expected"),
    ),
    "no id": (
        lambda f: f.edit_instances(lambda c: c["annotations"][0].pop("id")),
        EVERYWHERE,
        (INSTANCES, "annotations[0] has no key 'id'"),
    ),
    "annotation without image": (
        first_annotation(image_id=77),
        EVERYWHERE,
        (INSTANCES, "annotation", "image 77"),
    ),
    "run lengths of another size": (
        first_annotation(segmentation={"size": [4, 4], "counts": [16]}),
        EVERYWHERE,
        ("[4, 4]", "(64, 64)"),
    ),
    "run lengths that are too short": (
        first_annotation(segmentation={"size": [64, 64], "counts": "PPP"}),
        EVERYWHERE,
        ("its run lengths do not add up to 4096 pixels",),
    ),
    "run lengths below zero": (
        first_annotation(segmentation={"size": [64, 64], "counts": [-5, 4101]}),
        EVERYWHERE,
        ("its run lengths do not add up to 4096 pixels",),
    ),
    "a polygon that fills the memory": (
        first_annotation(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
        EVERYWHERE,
        ("its polygons reach from", "64 pixels beyond its image"),
    ),
    "a polygon of texts": (
        first_annotation(segmentation=[["0", "0", "9", "0", "9", "9"]]),
        EVERYWHERE,
        ("its polygons must be lists of numbers",),
    ),
    "a polygon of two points": (
        first_annotation(segmentation=[[0, 0, 9, 9]]),
        EVERYWHERE,
        ("at least six, numbers",),
    ),
    "a polygon without pixels": (
        first_annotation(segmentation=[[9.1, 9.1, 9.2, 9.1, 9.2, 9.2]]),
        ("check",),
        ("segment-without-pixels", "annotation 1 of"),
    ),
    "no segmentation": (
        lambda f: f.edit_instances(lambda c: c["annotations"][0].pop("segmentation")),
        EVERYWHERE,
        ("segmentation",),
    ),
    "box of texts": (
        first_annotation(bbox=["a", 0, 1, 1]),
        ("evaluate", "check"),
        (INSTANCES, "bbox"),
    ),
    "box outside": (first_annotation(bbox=[60, 60, 9, 9]), ("check",), ("box-outside", "9, 9]")),
    "area as text": (first_annotation(area="9"), ("evaluate", "check"), (INSTANCES, "area", "9")),
    "area of 400 digits": (
        first_annotation(area=10**400),
        ("evaluate",),
        (INSTANCES, "annotations[0].area is 1000", "expected a number up to 1e300"),
    ),
    "an annotation id twice": (
        lambda f: f.edit_instances(lambda c: c["annotations"].append(c["annotations"][0])),
        EVERYWHERE,
        (INSTANCES, "id 1 is there twice: expected once"),
    ),
    "iscrowd of text": (
        first_annotation(iscrowd="x"),
        EVERYWHERE,
        (INSTANCES, 'annotations[0].iscrowd is "x": expected 0 or 1'),
    ),
    "a class named twice": (
        category(1, name=CATEGORIES[0]["name"]),
        EVERYWHERE,
        (INSTANCES, "categories[1]: name", "is there twice"),
    ),
    "no images": (
        lambda f: f.edit_instances(no_images),
        EVERYWHERE,
        (INSTANCES, "images is empty: expected one or more"),
    ),
}

CASES = [
    pytest.param(task, spoil, place, words, id=f"{task}, {name}, {place}")
    for task, faults in (("panoptic", PANOPTIC), ("instance", INSTANCE))
    for name, (spoil, met, words) in faults.items()
    for place in met
]


@pytest.mark.parametrize(("task", "spoil", "place", "words"), CASES)
def test_fault_is_named(files, places, tell, task, spoil, place, words):
    spoil(files)
    told = tell(lambda: places[place](task))
    assert all(word in told for word in words), told


@pytest.mark.parametrize("color", ["#b92d2d", [0, 0, 256], [0, 0], [0, 0, "1"], None, 7])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_other_colours_are_left_out(files, places, task, color):
    category(color=color)(files)
    places["train"](task)
    assert MetadataCatalog.get(f"own_{task}_train").get("thing_colors") is None


def test_ids_may_be_numbers_and_texts(files, places):
    def rename(c):
        for record, key in ((c["images"][0], "id"), (c["annotations"][0], "image_id")):
            record[key] = "first"

    files.edit_panoptic(rename)
    assert [sample["image_id"] for sample in places["train"]("panoptic")] == [2, 3, "first"]


@pytest.mark.parametrize("place", ["train", "evaluate"])
def test_images_without_targets_are_images(files, places, place):
    def crowds(content):
        for segment in content["annotations"][0]["segments_info"]:
            segment["iscrowd"] = 1
        content["annotations"][1]["segments_info"].clear()

    files.edit_panoptic(crowds)
    write_panoptic_png(files.root / "panoptic_train" / "000002.png", np.zeros((64, 64), np.int32))
    samples = places[place]("panoptic")
    assert len(samples) == 3
    if place == "train":
        assert [len(s["instances"]) > 0 for s in samples] == [False, False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][0].update(file_name="../../x.png"), ("leaves", "x.png")),
        (lambda c: c["annotations"][0].pop("segments_info"), ("no key 'segments_info'",)),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12), ("[12]",)),
    ],
    ids=["path outside", "no segments", "unknown category"],
)
def test_preparation_names_faults(tmp_path, tell, change, words):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 2, "width": 2}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [{"id": 1, "category_id": 1}],
            }
        ],
    }
    change(content)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    path.write_text(json.dumps(content))
    told = tell(lambda: prepare("coco-semantic", tmp_path, workers=1))
    assert all(word in told for word in ("panoptic_val2017.json", *words)), told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][0].pop("file_name"), ("not a file of COCO's format",)),
        (lambda c: c["annotations"][0].update(file_name="../1.png"), ("which leaves",)),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12), ("12",)),
    ],
    ids=["no file name", "path outside", "unknown category"],
)
def test_data_sets_that_detectron2_loads_are_guarded(
    tmp_path, tell, change, words, restored_catalogs
):
    segment = {"id": 1, "category_id": 1}
    content = {"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [segment]}]}
    change(content)
    folder = tmp_path / "coco"
    for name in ("annotations", "train2017", "panoptic_train2017"):
        (folder / name).mkdir(parents=True)
    for name in ("1.jpg", "train2017/1.jpg", "1.png", "panoptic_train2017/1.png"):
        (folder / name).touch()
    (folder / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    name = "coco_2017_train_panoptic"
    metadata = detectron2_metadata(name)
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(name)
    register_coco_panoptic(
        name,
        {key: metadata[key] for key in metadata if key.endswith("_to_contiguous_id")},
        str(folder / "train2017"),
        str(folder / "panoptic_train2017"),
        str(folder / "annotations" / "panoptic_train2017.json"),
    )
    guard(name)
    told = tell(lambda: DatasetCatalog.get(name))
    assert all(word in told for word in ("panoptic_train2017.json", *words)), told
