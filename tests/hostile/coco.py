"""COCO's annotation files: what does not fit together, is no JSON, or leads to other files.

Every fault is met where training, evaluation and ``check-dataset`` meet it.
"""

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.structures import Boxes, Instances

from proscale import add_proscale_config
from proscale.data import build_mapper
from proscale.data.check import check_datasets
from proscale.data.datasets.coco import guard
from proscale.data.datasets.own import register_own_data
from proscale.data.datasets.registration import detectron2_metadata
from proscale.data.datasets.shapes import CATEGORIES
from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.data.formats.json_file import MAX_BYTES
from proscale.data.prepare import prepare
from proscale.errors import DataError
from proscale.evaluation.box_evaluator import BoxEvaluator
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator
from tests.hostile.cases import Case, Place
from tests.hostile.material import own_block

EVERYWHERE = ("train", "evaluate", "check")
_MAPPERS = {
    "panoptic": "coco_panoptic_lsj",
    "instance": "coco_instance_lsj",
    "semantic": "mask_former_semantic",
    "detection": "detr_detection",
}
_EVALUATORS = {
    "panoptic": CocoPanopticEvaluator,
    "instance": InstanceEvaluator,
    "semantic": SemanticEvaluator,
    "detection": BoxEvaluator,
}
_NUM_THINGS = sum(category["isthing"] for category in CATEGORIES)


def meet(place: Place, task: str, where: str) -> list[dict[str, Any]]:
    """Read all of the case's own data as training, evaluation or the check does."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.IMAGE_SIZE = (64,), 64
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DATASET_MAPPER_NAME = _MAPPERS[task]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    # Without names the labels that are found would be the classes.
    names = {"CLASSES": [f"class {i}" for i in range(9)]} if task == "semantic" else {}
    register_own_data([own_block(place.own.root, task) | names])
    name = f"own_{task}_train"
    if where == "check":
        return check(name)
    mapper = build_mapper(cfg, is_train=where == "train")
    samples = [mapper(entry) for entry in DatasetCatalog.get(name)]
    if where == "evaluate":
        _evaluate(_EVALUATORS[task](name), samples)
    return samples


def check(name: str) -> list[Any]:
    """Check a data set as the command does; a DataError tells what is found."""
    report = check_datasets([name], workers=1)
    if report.problems:
        # Told as the command would, which ends with exit status 1 if there are errors.
        lines = [f"{p.kind} {p.file}: {p.detail}" for p in report.problems]
        raise DataError("; ".join(lines[:5]))
    return []


def _evaluate(evaluator: Any, samples: list[dict[str, Any]]) -> None:
    evaluator.reset()
    for sample in samples:
        height, width = sample["height"], sample["width"]
        instances = Instances((height, width))
        # Of every class: annotations of a class that is not predicted need no comparison.
        instances.pred_masks = torch.ones(_NUM_THINGS, height, width, dtype=torch.bool)
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, width, height]] * _NUM_THINGS))
        instances.scores = torch.ones(_NUM_THINGS)
        instances.pred_classes = torch.arange(_NUM_THINGS)
        segment = {"id": 1, "isthing": False, "category_id": 8}
        prediction = {
            "panoptic_seg": (torch.ones(height, width, dtype=torch.int32), [segment]),
            "instances": instances,
            "sem_seg": torch.zeros(height, width, dtype=torch.int64),
        }
        evaluator.process([sample], [prediction])
    evaluator.evaluate()


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


def _categories(change):
    return lambda f: f.edit_panoptic(lambda c: change(c["categories"]))


def _codes(**values):
    return first_annotation(segmentation={"size": [64, 64], "counts": [4096]} | values)


def _twice_in_first_image(content):
    segments = content["annotations"][0]["segments_info"]
    segments.append(segments[0])


def _mix_ids(content):
    for record, key in ((content["images"][0], "id"), (content["annotations"][0], "image_id")):
        record[key] = "one"


def _instead(path, make):
    path.unlink()
    make(path)


# Files of other annotation tools, whose keys are names of images.
_VIA = {f"image{i}.jpg{i}": {"filename": f"image{i}.jpg", "regions": []} for i in range(5000)}
_LABELME = {"version": "5", "shapes": [], "imageData": "A" * 10**6, "imagePath": "a.jpg"}

JSON = "panoptic_train.json"

_PANOPTIC = {
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
    "PNG above its folder, for Windows": (
        png_name("..\\..\\a.png"),
        EVERYWHERE,
        ("which leaves",),
    ),
    "PNG on the web": (png_name("http://127.0.0.1:9/a.png"), EVERYWHERE, ("http:",)),
    "PNG with a name of 5000 letters": (png_name("a" * 5000), EVERYWHERE, ("aaa",)),
    "PNG with a name that is no UTF-8": (png_name("\ud800.png"), EVERYWHERE, (".png",)),
    "PNG without a name": (png_name(""), EVERYWHERE, ("expected the name of a file",)),
    "PNG with a number as name": (png_name(3), EVERYWHERE, (JSON, "file_name is 3")),
    "PNG that is a folder": (png_name("."), EVERYWHERE, ("panoptic_train",)),
    "segment of id -1": (first_segment(id=-1), EVERYWHERE, ("segment",)),
    "segment of id 2**70": (first_segment(id=2**70), EVERYWHERE, ("segment",)),
    "segment of id 10**4000": (first_segment(id=10**4000), EVERYWHERE, (JSON,)),
    "category of 1.0": (first_segment(category_id=1.0), EVERYWHERE, ("category_id is 1.0",)),
    "crowd of 7": (first_segment(iscrowd=7), EVERYWHERE, ("iscrowd",)),
    "crowd of a list": (first_segment(iscrowd=[]), EVERYWHERE, ("iscrowd",)),
    "class ids twice": (_categories(lambda c: c[1].update(id=c[0]["id"])), EVERYWHERE, ("twice",)),
    "class name that is a number": (
        _categories(lambda c: c[0].update(name=3)),
        EVERYWHERE,
        ("name",),
    ),
    "no classes": (_categories(lambda c: c.clear()), EVERYWHERE, ("categories is empty",)),
    "a class that is a text": (
        _categories(lambda c: c.append("x")),
        EVERYWHERE,
        ("categories[9]",),
    ),
    "isthing of x": (_categories(lambda c: c[0].update(isthing="x")), EVERYWHERE, ("isthing",)),
    "class id of 2**70": (
        _categories(lambda c: c[0].update(id=2**70)),
        EVERYWHERE,
        (JSON,),
    ),
    "ids of images of two kinds": (first_image(id="one"), EVERYWHERE, (JSON,)),
    "id of an image that is a list": (first_image(id=[1]), EVERYWHERE, (JSON, "images[0].id")),
    "segments that are no list": (
        lambda f: f.edit_panoptic(lambda c: c["annotations"][0].update(segments_info={})),
        EVERYWHERE,
        (JSON, "segments_info"),
    ),
    "box with infinity": (
        lambda f: f.panoptic_json.write_text(
            f.panoptic_json.read_text().replace('"bbox": [', '"bbox": [1e400, ', 1)
        ),
        ("check",),
        ("box-outside",),
    ),
    "a file of instances": (
        lambda f: f.panoptic_json.write_bytes(f.instances_json.read_bytes()),
        EVERYWHERE,
        (JSON,),
    ),
    "a pipe": (lambda f: _instead(f.panoptic_json, os.mkfifo), EVERYWHERE, (JSON,)),
    "a folder": (lambda f: _instead(f.panoptic_json, Path.mkdir), EVERYWHERE, ()),
    "a device": (
        lambda f: _instead(f.panoptic_json, lambda path: path.symlink_to("/dev/zero")),
        EVERYWHERE,
        (),
    ),
    "a web page": (
        lambda f: f.panoptic_json.write_text("<!DOCTYPE html><html>404</html>"),
        EVERYWHERE,
        (JSON, "not a JSON file"),
    ),
    "a gzip file": (
        lambda f: f.panoptic_json.write_bytes(gzip.compress(f.panoptic_json.read_bytes())),
        EVERYWHERE,
        (JSON, "not a JSON file"),
    ),
    "truncated": (
        lambda f: f.panoptic_json.write_bytes(f.panoptic_json.read_bytes()[:-9]),
        EVERYWHERE,
        (JSON, "not a JSON file"),
    ),
}

INSTANCES = "instances_train.json"

_INSTANCE = {
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
    "crowd of 7": (first_annotation(iscrowd=7), EVERYWHERE, ("iscrowd",)),
    "category that is a list": (first_annotation(category_id=[1]), EVERYWHERE, ("category_id",)),
    "image that is a list": (first_annotation(image_id=[1]), EVERYWHERE, ("image_id",)),
    "run lengths of 10**12": (_codes(counts=[10**12]), EVERYWHERE, ("run lengths",)),
    "run lengths of 2**70": (_codes(counts=[2**70]), EVERYWHERE, ("run lengths",)),
    "run lengths that overflow to the size": (
        _codes(counts=[2**32 + 4096]),
        EVERYWHERE,
        ("run lengths",),
    ),
    "run lengths of fractions": (_codes(counts=[4095.5, 0.5]), EVERYWHERE, ("run lengths",)),
    "run lengths of texts": (_codes(counts=["4096"]), EVERYWHERE, ("run lengths",)),
    "run lengths that are no ASCII": (_codes(counts="é€ü"), EVERYWHERE, ("run lengths",)),
    "run lengths that are a number": (_codes(counts=4096), EVERYWHERE, ("annotation 1",)),
    "run lengths of endless codes": (_codes(counts="o" * 10**6), EVERYWHERE, ("run lengths",)),
    "a size of texts": (_codes(size=["64", "64"]), EVERYWHERE, ("annotation 1",)),
    "a size below zero": (_codes(size=[-64, -64]), EVERYWHERE, ("[-64, -64]",)),
    "a size of 10**9": (_codes(size=[10**9, 10**9]), EVERYWHERE, ("(64, 64)",)),
    "a size of three": (_codes(size=[64, 64, 64]), EVERYWHERE, ("annotation 1",)),
    "a segmentation that is a number": (
        first_annotation(segmentation=7),
        EVERYWHERE,
        ("annotation",),
    ),
    "a segmentation that is a text": (
        first_annotation(segmentation="oooo"),
        EVERYWHERE,
        ("annotation",),
    ),
    "a polygon of 1e308": (
        first_annotation(segmentation=[[0, 0, 1e308, 0, 1e308, 1e308]]),
        EVERYWHERE,
        ("its polygons reach",),
    ),
    "a polygon with infinity": (
        lambda f: f.edit_text(
            f.instances_json, '"segmentation": ', '"segmentation": [[1e400, 0, 1, 1, 2, 2]], "x": '
        ),
        EVERYWHERE,
        ("polygon",),
    ),
    "a polygon of truths": (
        first_annotation(segmentation=[[True, True, False, True, 9, 9]]),
        EVERYWHERE,
        ("polygon",),
    ),
    "no polygons": (first_annotation(segmentation=[]), EVERYWHERE, ("annotation",)),
    "a polygon of seven numbers": (
        first_annotation(segmentation=[[0, 0, 9, 0, 9, 9, 1]]),
        EVERYWHERE,
        ("polygon",),
    ),
    "area with infinity": (
        lambda f: f.edit_text(f.instances_json, '"area": ', '"area": 1e400, "x": '),
        ("check", "evaluate"),
        ("area",),
    ),
    "a box with infinity": (
        lambda f: f.edit_text(f.instances_json, '"bbox": [', '"bbox": [1e400, '),
        ("check", "evaluate"),
        ("bbox",),
    ),
}


_PREPARED = {
    "path outside": (lambda c: c["annotations"][0].update(file_name="../../x.png"), "leaves"),
    "no segments": (lambda c: c["annotations"][0].pop("segments_info"), "no key 'segments_info'"),
    "unknown category": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12),
        "[12]",
    ),
}

_GUARDED = {
    "no file name": (lambda c: c["annotations"][0].pop("file_name"), "not a file of COCO's format"),
    "path outside": (lambda c: c["annotations"][0].update(file_name="../1.png"), "which leaves"),
    "unknown category": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12),
        "12",
    ),
}


def _guarded(name, change, word):
    """A file that Detectron2 loads, for the name of its built-in data set."""

    def run(place: Place) -> object:
        segment = {"id": 1, "category_id": 1}
        content = {
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [segment]}]
        }
        change(content)
        place.write("coco/annotations/panoptic_train2017.json", content)
        for file in ("1.jpg", "train2017/1.jpg", "1.png", "panoptic_train2017/1.png"):
            place.write(f"coco/{file}", "")
        name = "coco_2017_train_panoptic"
        metadata = detectron2_metadata(name)
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove(name)
        register_coco_panoptic(
            name,
            {key: metadata[key] for key in metadata if key.endswith("_to_contiguous_id")},
            *("coco/train2017", "coco/panoptic_train2017"),
            "coco/annotations/panoptic_train2017.json",
        )
        guard(name)
        return DatasetCatalog.get(name)

    return Case(f"loaded by Detectron2, {name}", run, ("panoptic_train2017.json", word))


def _without_targets(f):
    """Crowds alone in one image, and nothing in another."""

    def change(content):
        for segment in content["annotations"][0]["segments_info"]:
            segment["iscrowd"] = 1
        content["annotations"][1]["segments_info"].clear()

    f.edit_panoptic(change)
    write_panoptic_png(f.root / "panoptic_train" / "000002.png", np.zeros((64, 64), np.int32))


# Told by a warning; the rest of the data are used.
_WARNED = {("panoptic", "image without annotation", "train")}


def _case(task, name, spoil, where, words):
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, task, where)

    refused = (task, name, where) not in _WARNED
    return Case(f"{task}, {name}, {where}", run, words, is_refused=refused)


def _prepared(name, change, word):
    def run(place: Place) -> None:
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
        place.write("coco/annotations/panoptic_val2017.json", content)
        prepare("coco-semantic", place.folder, workers=1)

    return Case(f"prepared, {name}", run, ("panoptic_val2017.json", word))


def _sound(task, where, spoil, name):
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, task, where)

    return Case(
        f"{task}, {name}, {where}",
        run,
        (),
        is_refused=False,
        is_right=lambda _, read: len(read) == 3,
    )


def _link_images(f):
    f.image.rename(f.root / "elsewhere.jpg")
    f.image.symlink_to(f.root / "elsewhere.jpg")


_SOUND = {
    "as generated": lambda f: None,
    "with a link to an image": _link_images,
    "with a byte order mark": lambda f: f.panoptic_json.write_bytes(
        b"\xef\xbb\xbf" + f.panoptic_json.read_bytes()
    ),
    "with a colour that is none": _categories(lambda c: c[0].update(color="red")),
    "with ids of two kinds": lambda f: f.edit_panoptic(_mix_ids),
    "without targets": _without_targets,
    "with keys of others": lambda f: f.edit_panoptic(lambda c: c.update({"info": [{}] * 9})),
}

CASES = [
    *(
        _case(task, name, spoil, where, words)
        for task, faults in (("panoptic", _PANOPTIC), ("instance", _INSTANCE))
        for name, (spoil, met, words) in faults.items()
        for where in met
    ),
    *(_prepared(name, *spec) for name, spec in _PREPARED.items()),
    *(_guarded(name, *spec) for name, spec in _GUARDED.items()),
    *(
        _sound(task, where, spoil, name)
        for task in ("panoptic", "instance")
        for name, spoil in _SOUND.items()
        for where in ("train", "evaluate")
    ),
]
