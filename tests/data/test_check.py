"""Every kind of fault is found where it was put, and nothing else is."""

import json
import shutil

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from proscale.config.own_data import TASKS
from proscale.data.check import check_datasets, histogram
from proscale.data.datasets.own import register_own_data
from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.data.formats.problems import ERRORS, WARNINGS

# Few images of few shapes: not all classes occur, and the generator numbers images by split.
USUAL = {"class-absent", "name-in-both", "id-in-both"}


class Editor:
    """Spoils the files of ``own_data``, all in the training split."""

    def __init__(self, root):
        self.root = root
        self.image = root / "train" / "000001.jpg"
        self.panoptic = root / "panoptic_train" / "000001.png"
        self.labels = root / "labels_train" / "000001.png"
        self.panoptic_json = root / "annotations" / "panoptic_train.json"
        self.instances_json = root / "annotations" / "instances_train.json"
        self.keypoints_json = root / "annotations" / "keypoints_train.json"

    def json(self, path, change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def picture(self, mode="RGB", size=(64, 64), **options):
        image = Image.open(self.image).convert(mode).resize(size)
        image.save(self.image, format="TIFF" if mode.startswith("I") else None, **options)

    def png(self, **options):
        """An image under its old name whose format is PNG, which has transparency."""
        Image.open(self.image).convert("RGBA").save(self.image, format="PNG", **options)

    def deep(self):
        Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(self.image, format="PNG")

    def exif(self, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        Image.open(self.image).save(self.image, exif=exif)

    def truncate(self, path):
        path.write_bytes(path.read_bytes()[:-400])

    def pixels(self, path, value):
        if path == self.panoptic:
            ids = read_panoptic_png(path)
            ids[:3, :3] = value
            write_panoptic_png(path, ids)
        else:
            labels = np.array(Image.open(path))
            labels[:3, :3] = value
            Image.fromarray(labels).save(path)

    def label(self, value, *, rest=None):
        for mask in sorted((self.root / "labels_train").glob("*.png")):
            labels = np.full((64, 64), value, np.uint8)
            if rest is not None:
                labels[:16] = rest
            Image.fromarray(labels).save(mask)

    def segment(self, **values):
        self.json(
            self.panoptic_json, lambda c: c["annotations"][0]["segments_info"][0].update(values)
        )

    def listed_twice(self, content):
        segments = content["annotations"][0]["segments_info"]
        segments.append(dict(segments[0]))

    def another_segment(self, content):
        segments = content["annotations"][0]["segments_info"]
        segments.append({**segments[0], "id": 77})

    def annotation(self, **values):
        self.json(self.instances_json, lambda c: c["annotations"][0].update(values))

    def person(self, **values):
        self.json(self.keypoints_json, lambda c: c["annotations"][0].update(values))

    def without_area(self, content):
        for annotation in content["annotations"][:2]:
            del annotation["area"]


def crowds(content):
    for segment in content["annotations"][0]["segments_info"]:
        segment["iscrowd"] = 1


# Task, what is done, the kinds found, and what the detail of the first says.
FAULTS = {
    "not json": ("panoptic", lambda e: e.panoptic_json.write_text("{"), "annotation-file", ""),
    "no images": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c.pop("images")),
        "annotation-file",
        "no list 'images'",
    ),
    "image listed twice": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c["images"].append(c["images"][0])),
        "image-repeated",
        "images[3]: id 1 is there twice",
    ),
    "annotated twice": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c["annotations"].append(c["annotations"][0])),
        "image-repeated",
        "annotations[3]: image_id 1 is there twice",
    ),
    "annotation of no image": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c["images"].pop(0)),
        "annotation-without-image image-not-annotated mask-unused",
        "annotations[0] is for image 1, which is not among its images",
    ),
    "image missing": ("panoptic", lambda e: e.image.unlink(), "image-missing", ""),
    "image truncated": ("panoptic", lambda e: e.truncate(e.image), "image-unreadable", "truncated"),
    "image of other size": (
        "panoptic",
        lambda e: e.picture(size=(60, 50)),
        "image-size mask-size",
        "it has (height, width) (50, 60), turned as its EXIF orientation says: expected (64, 64)",
    ),
    "16 bits": ("panoptic", lambda e: e.deep(), "image-depth", "I;16"),
    "grey": ("panoptic", lambda e: e.picture("L"), "image-greyscale", "mode L"),
    "cmyk": ("panoptic", lambda e: e.picture("CMYK"), "image-cmyk", "CMYK"),
    "alpha": ("panoptic", lambda e: e.png(), "image-alpha", "RGBA"),
    "upside down": ("panoptic", lambda e: e.exif(3), "exif-rotation", "EXIF orientation 3"),
    "mask missing": ("panoptic", lambda e: e.panoptic.unlink(), "mask-missing", ""),
    "mask truncated": (
        "panoptic",
        lambda e: e.panoptic.write_bytes(e.panoptic.read_bytes()[:100]),
        "mask-unreadable",
        "not a readable image",
    ),
    "grey mask": (
        "panoptic",
        lambda e: Image.new("L", (64, 64)).save(e.panoptic),
        "mask-unreadable",
        "has mode RGB, this image L",
    ),
    "mask of other size": (
        "panoptic",
        lambda e: (
            Image.open(e.panoptic).resize((32, 32), Image.Resampling.NEAREST).save(e.panoptic)
        ),
        "mask-size area-differs",
        "it has (height, width) (32, 32): expected (64, 64), that of its image",
    ),
    "segment listed twice": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, e.listed_twice),
        "segment-repeated",
        "annotations[0].segments_info",
    ),
    "segment without pixels": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, e.another_segment),
        "segment-without-pixels",
        "segment 77",
    ),
    "pixels without segment": (
        "panoptic",
        lambda e: e.pixels(e.panoptic, 77),
        "pixels-without-segment area-differs",
        "id 77, 9 pixels",
    ),
    "unknown category": (
        "panoptic",
        lambda e: e.segment(category_id=99),
        "unknown-category",
        "of image 1 has category_id 99: expected 1, 2, 3, 4, 5",
    ),
    "no area": ("panoptic", lambda e: e.segment(area=0), "area-not-positive", "area 0"),
    "box outside": (
        "panoptic",
        lambda e: e.segment(bbox=[60, 60, 9, 9]),
        "box-outside",
        "bbox [60, 60, 9, 9], image (height, width) (64, 64)",
    ),
    "path outside": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c["images"][0].update(file_name="../a.jpg")),
        "path-outside image-not-annotated mask-unused",
        "which leaves",
    ),
    "other area": ("panoptic", lambda e: e.segment(area=7), "area-differs", "area 7, "),
    "only crowds": ("panoptic", lambda e: e.json(e.panoptic_json, crowds), "image-empty", "crowds"),
    "not annotated": (
        "panoptic",
        lambda e: e.json(e.panoptic_json, lambda c: c["annotations"].pop(0)),
        "image-not-annotated mask-unused",
        "1 of 3 images have no annotation, ids 1",
    ),
    "not listed": (
        "panoptic",
        lambda e: Image.new("RGB", (8, 8)).save(e.root / "train" / "new.jpg"),
        "image-not-annotated",
        "1 files that are in no pair of image and annotation: new.jpg",
    ),
    "the same picture again": (
        "panoptic",
        lambda e: shutil.copy(e.image, e.image.with_name("000002.jpg")),
        "image-duplicate",
        "000002.jpg",
    ),
    "a picture in both": (
        "panoptic",
        lambda e: shutil.copy(e.image, e.root / "val" / "000002.jpg"),
        "leaked-image",
        "val/000002.jpg of own_panoptic_val",
    ),
    "annotation listed twice": (
        "instance",
        lambda e: e.annotation(id=2),
        "segment-repeated",
        "annotations[1]: id 2 is there twice",
    ),
    "instance of unknown category": (
        "instance",
        lambda e: e.annotation(category_id=99),
        "unknown-category",
        "annotation 1 of image 1 has category_id 99",
    ),
    "instance without area": (
        "instance",
        lambda e: e.annotation(area=-1),
        "area-not-positive",
        "annotation 1 of ",
    ),
    "two points": (
        "instance",
        lambda e: e.annotation(segmentation=[[1, 1, 2, 2]]),
        "segment-unreadable",
        "annotation 1: its polygons",
    ),
    "no segmentation": (
        "instance",
        lambda e: e.annotation(segmentation=None),
        "segment-unreadable",
        "neither polygons nor run lengths",
    ),
    "run lengths of other size": (
        "instance",
        lambda e: e.annotation(segmentation={"size": [4, 4], "counts": [16]}),
        "segment-unreadable",
        "(64, 64)",
    ),
    "empty instance": (
        "instance",
        lambda e: e.annotation(segmentation={"size": [64, 64], "counts": [64 * 64]}),
        "segment-without-pixels",
        "annotation 1 of ",
    ),
    "nothing annotated": (
        "instance",
        lambda e: e.json(e.instances_json, lambda c: c["annotations"].clear()),
        "image-empty",
        "0 instances",
    ),
    "label out of range": (
        "semantic",
        lambda e: e.pixels(e.labels, 200),
        "label-out-of-range",
        "label 200, 9 pixels: expected 0 to 8, since NUM_CLASSES is 9, or 255 for no class",
    ),
    "nothing labelled": (
        "semantic",
        lambda e: Image.new("L", (64, 64), 255).save(e.labels),
        "image-empty",
        "no pixel has a label",
    ),
    "labels missing": ("semantic", lambda e: e.labels.unlink(), "mask-missing", ""),
    "labels truncated": (
        "semantic",
        lambda e: e.labels.write_bytes(e.labels.read_bytes()[:80]),
        "mask-unreadable",
        "not a readable image",
    ),
    "object without box": (
        "detection",
        lambda e: e.annotation(bbox=None),
        "box-unreadable",
        "annotation 1 has no box: expected [x, y, width, height]",
    ),
    "box of three numbers": (
        "detection",
        lambda e: e.annotation(bbox=[1, 2, 3]),
        "box-unreadable",
        "annotation 1 has the box [1, 2, 3]",
    ),
    "box without width": (
        "detection",
        lambda e: e.annotation(bbox=[1, 2, 0, 3]),
        "box-empty",
        "bbox [1, 2, 0, 3]",
    ),
    "detected box outside": (
        "detection",
        lambda e: e.annotation(bbox=[1, 2, 300, 3]),
        "box-outside",
        "bbox [1, 2, 300, 3], image (height, width) (64, 64)",
    ),
    "no objects": (
        "detection",
        lambda e: e.json(e.instances_json, lambda c: c["annotations"].clear()),
        "image-empty",
        "0 objects",
    ),
    "keypoints of another skeleton": (
        "keypoints",
        lambda e: e.person(keypoints=[1, 2, 2]),
        "keypoints-unreadable keypoint-count-differs",
        "annotation 1 has 3 numbers as keypoints: expected (x, y, visibility 0, 1 or 2) of 3",
    ),
    "keypoints outside": (
        "keypoints",
        lambda e: e.person(keypoints=[-9, 2, 2, 0, 0, 1, 100, 3, 1]),
        "keypoint-outside",
        "2 keypoints, image (height, width) (64, 64)",
    ),
    "keypoints outside that are not labelled": (
        "keypoints",
        lambda e: e.person(keypoints=[-9, 2, 0, 63, 63, 1, 5, 3, 1], num_keypoints=2),
        "",
        "",
    ),
    "another number of keypoints": (
        "keypoints",
        lambda e: e.person(num_keypoints=2),
        "keypoint-count-differs",
        "num_keypoints 2, 3 labelled",
    ),
    "persons without area": (
        "keypoints",
        lambda e: e.json(e.keypoints_json, e.without_area),
        "area-missing",
        "2 annotations, ids 1, 2",
    ),
    "person without size": (
        "keypoints",
        lambda e: e.person(bbox=[1, 2, 3, -1]),
        "box-empty",
        "bbox [1, 2, 3, -1]",
    ),
    "one label": (
        "semantic",
        lambda e: e.label(3),
        "pixels-of-one-class",
        "d has 100.0 % of labelled pixels",
    ),
    "black and white": (
        "semantic",
        lambda e: e.label(0, rest=255),
        "pixels-of-one-class",
        "`LABELS: {background: 0, object: 255}` in DATASETS.OWN makes them two",
    ),
    "no label": (
        "semantic",
        lambda e: e.label(255),
        "pixels-ignored image-empty",
        "100.0 % of all pixels",
    ),
    "labels without image": ("semantic", lambda e: e.image.unlink(), "mask-unused", "000001.png"),
}


def check(block, *, workers=1):
    if block["TASK"] == "semantic":
        block = {**block, "CLASSES": list("abcdefghi")}
    register_own_data([block])
    return check_datasets([f"{block['NAME']}_train", f"{block['NAME']}_val"], workers=workers)


@pytest.mark.parametrize("task", TASKS)
def test_sound_data_have_no_faults(own_block, task):
    report = check(own_block(task))
    assert {fault.kind for fault in report.problems} <= USUAL
    assert not report.has_errors


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_found(own_data, own_block, case):
    task, spoil, kinds, detail = FAULTS[case]
    block = own_block(task)
    # Registered before: registration refuses some faults itself.
    register_own_data([{**block, "CLASSES": list("abcdefghi")} if task == "semantic" else block])
    spoil(Editor(own_data))
    names = [f"{block['NAME']}_train", f"{block['NAME']}_val"]
    report = check_datasets(names, workers=1)
    found = [fault for fault in report.problems if fault.kind not in USUAL]
    assert {fault.kind for fault in found} == set(kinds.split())
    assert not kinds or any(detail in f.detail for f in found if f.kind == kinds.split()[0])
    assert report.has_errors == any(kind in ERRORS for kind in kinds.split())


def test_every_kind_has_a_case():
    covered = {kind for _, _, kinds, _ in FAULTS.values() for kind in kinds.split()}
    assert covered | USUAL == set(ERRORS | WARNINGS)


def test_turned_image_is_compared_as_training_reads_it(own_data, own_block):
    editor = Editor(own_data)
    editor.picture(size=(60, 50))
    editor.exif(6)
    report = check(own_block("panoptic"))
    details = {fault.kind: fault.detail for fault in report.problems}
    assert details["exif-rotation"] == "EXIF orientation 6, read as 60x50 (height x width)"
    assert details["image-size"].startswith(
        "it has (height, width) (60, 50), turned as its EXIF orientation says: expected (64, 64)"
    )


def test_faults_name_their_segment(own_data, own_block):
    Editor(own_data).segment(category_id=99)
    report = check(own_block("panoptic"))
    (problem,) = [problem for problem in report.problems if problem.is_error]
    assert problem.file == str(own_data / "annotations" / "panoptic_train.json")
    assert problem.segment in read_panoptic_png(own_data / "panoptic_train" / "000001.png")


def test_several_processes_find_the_same(own_data, own_block):
    Editor(own_data).segment(category_id=99)
    assert check(own_block("panoptic"), workers=2) == check(own_block("panoptic"), workers=1)


def test_classes_are_counted(own_data, own_block):
    report = check(own_block("panoptic")).datasets[0]
    content = json.loads((own_data / "annotations" / "panoptic_train.json").read_text())
    segments = [s for a in content["annotations"] for s in a["segments_info"]]
    for index, category in enumerate(content["categories"]):
        mine = [s for s in segments if s["category_id"] == category["id"]]
        assert report.segments[index] == len(mine)
        assert report.pixels[index] == sum(s["area"] for s in mine)
    assert report.class_names == [category["name"] for category in content["categories"]]


def test_polygons_are_measured(own_data, own_block):
    editor = Editor(own_data)
    polygon = [10, 10, 30, 10, 30, 30, 10, 30]
    editor.json(editor.instances_json, lambda c: c.update(annotations=c["annotations"][:1]))
    editor.annotation(segmentation=[polygon])
    (code,) = pycocotools.mask.frPyObjects([polygon], 64, 64)
    report = check(own_block("instance")).datasets[0]
    assert sum(report.pixels.values()) == pycocotools.mask.area(code)


def test_ignored_pixels_are_counted(own_data, own_block):
    Editor(own_data).label(0, rest=255)
    report = check(own_block("semantic")).datasets[0]
    assert report.ignored == 3 * 16 * 64
    assert histogram(report).endswith("ignored: 3072 pixels, 25.00 % of all")


def test_boxes_and_keypoints_are_counted(own_block):
    detection = check(own_block("detection")).datasets[0]
    keypoints = check(own_block("keypoints")).datasets[0]
    assert detection.task == "detection"
    assert keypoints.task == "keypoints"
    # Every object has one box and three labelled keypoints.
    number = sum(detection.segments.values())
    assert keypoints.segments == {place: number for place in range(3)}
    assert sum(detection.pixels.values()) > number
    assert histogram(detection).split()[:4] == ["class", "images", "boxes", "area"]
    assert "left_side" in histogram(keypoints)


def test_coco_sample_is_sound(sample_coco):
    report = check_datasets(["coco_2017_train_panoptic_8"], workers=1)
    assert not report.has_errors
    assert report.datasets[0].num_images == 8
