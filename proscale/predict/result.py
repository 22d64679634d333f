"""Predictions for an image, in the terms of a data set: classes, segments, boxes, poses.

Each kind of model output has a function that makes a :class:`Prediction` of it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from PIL import Image
from torch import Tensor

from proscale.config.setup import nearest_names
from proscale.data.formats.run_lengths import encode_segments
from proscale.errors import ConfigError
from proscale.predict.skeleton import Skeleton
from proscale.utils.whole_files import whole_file

OBJECT_TASKS = ("instance", "detection", "keypoints")
"""Tasks whose results are objects alone, of the thing classes of a data set."""

Color = tuple[int, int, int]
"""Red, green, blue, each 0 to 255."""


@dataclass(frozen=True)
class ClassMetadata:
    """The classes of a model, from a data set's metadata; each field has one entry per class.

    Attributes:
        names: for people.
        category_ids: of the data set's annotation files; the positions in ``names`` if it has none.
        isthing: true for things, countable objects; false for stuff.
        colors: of the data set; chosen if it has none.
        skeleton: of the keypoints; None but for the task ``keypoints``.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    isthing: tuple[bool, ...]
    colors: tuple[Color, ...]
    skeleton: Skeleton | None = None

    @classmethod
    def of_dataset(cls, name: str, task: str) -> "ClassMetadata":
        """The classes of the registered data set ``name`` for a task.

        Raises:
            ConfigError: the data set is unknown, has no classes for the task, or keeps them in a
                file that is not there.
        """
        if name not in MetadataCatalog.list():
            nearest = nearest_names(name, DatasetCatalog.list())
            raise ConfigError(
                f"DATASETS.TEST is {name!r}: expected registered data sets; nearest are {nearest}"
            )
        metadata = MetadataCatalog.get(name)
        # Detectron2 learns the names of COCO's instances when it loads their annotations.
        if task in OBJECT_TASKS and metadata.get("thing_classes") is None:
            try:
                DatasetCatalog.get(name)
            except OSError as error:
                message = f"DATASETS.TEST is {name}: expected its files: {error}"
                raise ConfigError(message) from error
        return cls.of_metadata(metadata, task)

    @classmethod
    def of_metadata(cls, metadata: Metadata, task: str) -> "ClassMetadata":
        """The classes that ``metadata`` describes; see :meth:`of_dataset`."""
        has_objects = task in OBJECT_TASKS
        kind = "thing" if has_objects else "stuff"
        names = metadata.get(f"{kind}_classes")
        if not names:
            raise ConfigError(
                f"DATASETS.TEST is {metadata.name}: expected a data set with {kind}_classes, the "
                f"names of the classes of {task} results"
            )
        things, stuff = (
            {index: id_ for id_, index in (metadata.get(key) or {}).items()}
            for key in ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
        )
        # Detectron2 maps ids of files to positions; here positions are mapped to ids.
        # Its data sets of stuff number it without the things, which they list as well.
        ids = stuff | things if has_objects else things | stuff
        # Without colours of its own a data set takes those of Detectron2's palette in turn.
        palette = colormap(rgb=True).astype(int).tolist()
        indices = range(len(names))
        colors = metadata.get(f"{kind}_colors") or [palette[i % len(palette)] for i in indices]
        return cls(
            names=tuple(names),
            category_ids=tuple(ids.get(i, i) for i in indices),
            isthing=tuple(has_objects or (i in things and i not in stuff) for i in indices),
            colors=tuple((red, green, blue) for red, green, blue in colors),
            skeleton=Skeleton.of_metadata(metadata) if task == "keypoints" else None,
        )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class DetectedObject:
    """An object with its box, or what the classes below make of it.

    Attributes:
        id: unique in the image; objects count from 1, with falling score.
        name, category_id: of the class, see :class:`ClassMetadata`.
        class_id: position of the class in the model's output, from 0.
        score: in [0, 1] for boxes; see the classes below.
        area: pixels, of the box.
        box: (x0, y0, x1, y1) in pixels: the left edge of the image is 0, the right one its width.
    """

    id: int
    name: str
    class_id: int
    category_id: int
    score: float | None
    area: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Segment(DetectedObject):
    """A region of the image: an object, or all stuff of a class.

    Attributes:
        id: the value of its pixels in ``Segmentation.id_map``: panoptic segments count from 1,
            instances from 1 with falling score, and a semantic segment, all pixels of a class, has
            the class id.
        score: in [0, 1]: class probability of a panoptic segment, of an instance that times the
            mean mask probability; None for semantic segments.
        area: pixels.
        box: tight, of whole numbers; the far corner lies behind the last pixel.
        isthing: true for an object, false for stuff.
    """

    isthing: bool


@dataclass(frozen=True)
class Pose(DetectedObject):
    """A person, or another object with keypoints.

    Attributes:
        score: that of the box times the mean of the keypoints' scores above
            ``MODEL.POSE.KEYPOINT_SCORE_THRESH``.
        box: the one in which the keypoints were looked for.
        box_score: of the model that found it; 1 for boxes without a score.
        keypoints: K times x, y and score. Coordinates are COCO's: a whole number is the centre of a
            pixel, and 0 that of the first one. Scores are the heatmap's values: about 1 at best.
    """

    box_score: float
    keypoints: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result for an image of ``height`` × ``width`` pixels: objects and their boxes.

    Attributes:
        task: one of :data:`~proscale.predict.TASKS`.
        height, width: of the image, after it was turned as its EXIF data say.
        objects: N of them, by falling score unless they are segments.
        image: ``(height, width, 3)`` uint8 RGB, added by a ``Predictor`` for the drawing; an array
            that was predicted is not copied.
        classes: those of the model; likewise.
    """

    task: str
    height: int
    width: int
    objects: tuple[DetectedObject, ...]
    image: np.ndarray | None = field(default=None, kw_only=True, repr=False)
    classes: ClassMetadata | None = field(default=None, kw_only=True, repr=False)

    @property
    def boxes(self) -> np.ndarray:
        """``(N, 4)`` float64, as ``DetectedObject.box``."""
        return np.array([one.box for one in self.objects], np.float64).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray | None:
        """``(N,)`` float64; None for semantic predictions."""
        if self.task == "semantic":
            return None
        return np.array([one.score for one in self.objects], np.float64)

    @property
    def class_ids(self) -> np.ndarray:
        """``(N,)`` int64, as ``DetectedObject.class_id``."""
        return np.array([one.class_id for one in self.objects], np.int64)

    def plot(self) -> np.ndarray:
        """The image with the prediction drawn over it, ``(height, width, 3)`` uint8 RGB.

        Raises:
            ValueError: the prediction has no image, because no ``Predictor`` made it.
        """
        # Drawings are made of predictions: their module imports this one.
        from proscale.predict.pictures import drawing_of

        if self.image is None or self.classes is None:
            raise ValueError("the prediction has no image: expected one of a Predictor")
        return drawing_of(self, self.classes).over(self.image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`plot` as an image file, in the format that the suffix names.

        Raises:
            ValueError: Pillow does not know the suffix; or see :meth:`plot`.
            OutputError: the file cannot be written.
        """
        picture = Image.fromarray(self.plot())
        with whole_file(Path(path)) as partial:
            picture.save(partial)

    def show(self) -> None:
        """Open :meth:`plot` in the system's image viewer, where there is one."""
        Image.fromarray(self.plot()).show()

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows of a cell's last value."""
        return None if self.image is None else Image.fromarray(self.plot())._repr_png_()

    def to_coco(self, image_id: int = 1, file_name: str = "") -> list[dict[str, Any]]:
        """COCO's dictionaries of this image, as they are written to JSON files.

        Of instances, boxes and poses one for each object, in the results format. Of a panoptic
        prediction one, the annotation, whose PNG is called ``file_name``
        (``proscale.data.formats.image_file.write_panoptic_png`` writes ``id_map``). Of a semantic
        prediction none: COCO has no format for it.
        """
        results = zip(self.objects, self._coco_boxes(), strict=True)
        return [
            {"image_id": image_id, "category_id": one.category_id, "bbox": box, "score": one.score}
            for one, box in results
        ]

    def _coco_boxes(self) -> list[list[float]]:
        # COCO's boxes are (x, y, width, height).
        return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (o.box for o in self.objects)]

    def to_supervision(self) -> Any:
        """``supervision.Detections`` of the objects: boxes, masks if there are any, scores, class
        ids, and ``data["class_name"]``. Poses are given by their boxes.

        Raises:
            ConfigError: the package supervision is not installed.
        """
        try:
            supervision: Any = import_module("supervision")
        except ImportError as error:
            raise ConfigError(
                "supervision is not installed, whose Detections were asked for: pip install "
                "supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks if isinstance(self, Segmentation) else None,
            confidence=None if self.scores is None else self.scores.astype(np.float32),
            class_id=self.class_ids,
            data={"class_name": np.array([one.name for one in self.objects], dtype=str)},
        )


@dataclass(frozen=True, eq=False)
class Segmentation(Prediction):
    """Segments: panoptic, instances or semantic ones.

    Attributes:
        objects: each a :class:`Segment`. Instances have falling scores.
        codes: COCO's run lengths of every segment's mask, as pycocotools has them.
        id_map: ``(height, width)`` int32, the ``Segment.id`` of every pixel. Panoptic maps have 0
            where there is no segment; semantic maps have class ids, and no such pixels. None for
            instances, whose masks may overlap.
    """

    objects: tuple[Segment, ...]
    codes: tuple[dict[str, Any], ...]
    id_map: np.ndarray | None

    @property
    def boxes(self) -> np.ndarray:
        """``(N, 4)`` int64, as ``Segment.box``."""
        return super().boxes.astype(np.int64)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The objects."""
        return self.objects

    @property
    def masks(self) -> np.ndarray:
        """``(N, height, width)`` bool, decoded from ``codes`` at every call."""
        if not self.codes:
            return np.zeros((0, self.height, self.width), dtype=bool)
        return pycocotools.mask.decode(list(self.codes)).transpose(2, 0, 1).astype(bool)

    def to_coco(self, image_id: int = 1, file_name: str = "") -> list[dict[str, Any]]:
        """See :meth:`Prediction.to_coco`."""
        if self.task == "semantic":
            return []
        if self.task == "panoptic":
            segments = [
                {"id": s.id, "category_id": s.category_id, "area": s.area, "bbox": box}
                | {"iscrowd": 0, "score": s.score}
                for s, box in zip(self.objects, self._coco_boxes(), strict=True)
            ]
            return [{"image_id": image_id, "file_name": file_name, "segments_info": segments}]
        return [
            result | {"segmentation": {**code, "counts": code["counts"].decode()}}
            for result, code in zip(super().to_coco(image_id), self.codes, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Poses(Prediction):
    """Persons, or other objects with K keypoints."""

    objects: tuple[Pose, ...]
    num_keypoints: int  # K

    @property
    def keypoints(self) -> np.ndarray:
        """``(N, K, 3)`` float64, as ``Pose.keypoints``."""
        return np.array([pose.keypoints for pose in self.objects], np.float64).reshape(
            -1, self.num_keypoints, 3
        )

    def to_coco(self, image_id: int = 1, file_name: str = "") -> list[dict[str, Any]]:
        """See :meth:`Prediction.to_coco`."""
        return [
            result | {"keypoints": [value for point in pose.keypoints for value in point]}
            for result, pose in zip(super().to_coco(image_id), self.objects, strict=True)
        ]


def from_panoptic(
    panoptic: tuple[Tensor, list[dict]], classes: ClassMetadata, score_threshold: float
) -> Segmentation:
    """From the model's ``panoptic_seg`` with scores; segments below the threshold are left out."""
    id_map = panoptic[0].cpu().numpy().astype(np.int32)
    kept = [segment for segment in panoptic[1] if segment["score"] >= score_threshold]
    # Pixels of a segment that is left out belong to none.
    if len(kept) < len(panoptic[1]):
        id_map[~np.isin(id_map, [segment["id"] for segment in kept])] = 0
    codes = encode_segments(id_map)
    found = [(s["id"], s["category_id"], s["score"], codes[s["id"]]) for s in kept]
    return _segmentation("panoptic", classes, found, id_map.shape, id_map)


def from_semantic(semantic: Tensor, classes: ClassMetadata) -> Segmentation:
    """From the model's ``sem_seg``, scores ``(K, H, W)`` or class ids ``(H, W)``."""
    # The class of a pixel is that with the best score.
    labels = semantic.argmax(0) if semantic.ndim == 3 else semantic
    id_map = labels.cpu().numpy().astype(np.int32)
    found = [(label, label, None, code) for label, code in encode_segments(id_map).items()]
    return _segmentation("semantic", classes, found, id_map.shape, id_map)


def from_instances(
    instances: Instances, classes: ClassMetadata, score_threshold: float
) -> Segmentation:
    """From the model's ``instances``; those without a pixel or below the threshold are left out."""
    scores = instances.scores.double().cpu().numpy()
    labels = instances.pred_classes.cpu().numpy()
    filled = instances.pred_masks.flatten(1).any(1)
    found = []
    for number, index in enumerate(_ranked(instances, filled, score_threshold), 1):
        # pycocotools wants columns that are contiguous.
        mask = instances.pred_masks[index].cpu().numpy()
        code = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        found.append((number, int(labels[index]), float(scores[index]), code))
    return _segmentation("instance", classes, found, instances.image_size, None)


def from_boxes(instances: Instances, classes: ClassMetadata, score_threshold: float) -> Prediction:
    """From a detector's ``instances``; those without area or below the threshold are left out."""
    found = []
    for number, index in enumerate(
        _ranked(instances, instances.pred_boxes.nonempty(), score_threshold), 1
    ):
        found.append(DetectedObject(**_box(instances, classes, number, index)))
    height, width = instances.image_size
    return Prediction("detection", height, width, tuple(found))


def from_poses(instances: Instances, classes: ClassMetadata, score_threshold: float) -> Poses:
    """From the ``instances`` of a pose estimator, those of all persons of an image in one."""
    # Detectron2's keypoints are half a pixel from COCO's.
    keypoints = instances.pred_keypoints.double().cpu().numpy() - (0.5, 0.5, 0)
    found = []
    for number, index in enumerate(
        _ranked(instances, instances.pred_boxes.nonempty(), score_threshold), 1
    ):
        box = _box(instances, classes, number, index)
        box_score = float(instances.box_scores[index])
        points = tuple(map(tuple, keypoints[index].tolist()))
        found.append(Pose(**box, box_score=box_score, keypoints=points))
    height, width = instances.image_size
    return Poses("keypoints", height, width, tuple(found), keypoints.shape[1])


def _ranked(instances: Instances, kept: Tensor, score_threshold: float) -> list[int]:
    """Positions of the ``kept`` ones that reach the threshold, by falling scores."""
    scores = instances.scores.double().cpu().numpy()
    # Stable: of equal scores the model's order remains.
    order = np.argsort(-scores, kind="stable")
    return order[(kept.cpu().numpy() & (scores >= score_threshold))[order]].tolist()


def _box(instances: Instances, classes: ClassMetadata, number: int, index: int) -> dict[str, Any]:
    """The fields of :class:`DetectedObject` of the instance at ``index``."""
    label = int(instances.pred_classes[index])
    x0, y0, x1, y1 = instances.pred_boxes.tensor[index].double().tolist()
    return {
        "id": number,
        "name": classes.names[label],
        "class_id": label,
        "category_id": classes.category_ids[label],
        "score": float(instances.scores[index]),
        "area": (x1 - x0) * (y1 - y0),
        "box": (x0, y0, x1, y1),
    }


def from_annotation(
    task: str, ids: np.ndarray, class_of: Mapping[int, int], classes: ClassMetadata
) -> Segmentation:
    """A panoptic or semantic annotation as a prediction without scores, to be shown beside one.

    Args:
        ids: ``(H, W)`` integers, the segment of every pixel.
        class_of: the segments' classes by id; pixels of others have no segment.
    """
    codes = encode_segments(ids)
    found = [(id_, label, None, codes[id_]) for id_, label in class_of.items() if id_ in codes]
    return _segmentation(task, classes, found, ids.shape, ids.astype(np.int32))


def _segmentation(
    task: str,
    classes: ClassMetadata,
    found: Sequence[tuple[int, int, float | None, dict]],
    size: tuple[int, ...],
    id_map: np.ndarray | None,
) -> Segmentation:
    """From each segment's id, class, score and run lengths, which give its area and box."""
    segments = []
    for id_, label, score, code in found:
        # COCO's box is (x, y, width, height).
        left, top, width, height = (int(side) for side in pycocotools.mask.toBbox(code))
        segments.append(
            Segment(
                id=id_,
                name=classes.names[label],
                class_id=label,
                category_id=classes.category_ids[label],
                isthing=classes.isthing[label],
                score=score,
                area=int(pycocotools.mask.area(code)),
                box=(left, top, left + width, top + height),
            )
        )
    height, width = size
    codes = tuple(code for *_, code in found)
    return Segmentation(task, height, width, tuple(segments), codes, id_map)
