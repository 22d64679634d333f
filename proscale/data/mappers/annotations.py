"""Annotations of an image for each task: read, checked, and made into targets after augmentation.

Segments that do not overlap are a map of ids, instances that may are a list. Both become the
``instances`` that the model is trained with. Readers are strict or lenient, see
:mod:`proscale.data.formats.problems`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pycocotools.mask
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask

from proscale.data.formats.image_file import (
    VOID,
    id_to_rgb,
    read_label_image,
    read_panoptic_png,
    relabel,
    rgb_to_id,
)
from proscale.data.formats.json_file import BOX
from proscale.data.formats.problems import Problem, Reporter, first_few, raise_first
from proscale.data.formats.run_lengths import run_lengths
from proscale.errors import ConfigError, DataError, MissingFileError, shown
from proscale.utils.types import Size

# An entry of a data set, in Detectron2's format.
Entry = Mapping[str, Any]
# Parts of a training sample.
Targets = dict[str, Any]


@dataclass(frozen=True)
class SegmentMap:
    """Segments without overlap.

    Attributes:
        ids: (H, W) integers, the segment of every pixel.
        classes: contiguous class id of every segment that is a target, in the order of the targets.
            Other ids (void, crowds) belong to no target.
        ignore_label: for segments that are classes, class c with the id c + 1: their label map is a
            target, too, with this label where there is void.
    """

    ids: np.ndarray
    classes: Mapping[int, int]
    ignore_label: int | None = None

    def category_colors(self) -> np.ndarray:
        """(H, W, 3) uint8: the label map that ``CategoryLimitedCrop`` describes."""
        # Crowds are unlabelled here, like void.
        coded = {id_: self.classes.get(id_, -1) + 1 for id_ in count_values(self.ids)}
        return id_to_rgb(relabel(self.ids, coded, np.int32))

    def targets(self, transforms: T.TransformList, size: Size, padded_size: Size) -> Targets:
        """The parts of a training sample besides its image.

        Args:
            transforms: those of the image.
            size: the image's after them.
            padded_size: the sample's; the padding, at the right and the bottom, is in no mask.

        Returns:
            ``instances`` of ``padded_size`` with N targets, those that have pixels: ``gt_classes``
            (N,) int64 and ``gt_masks``, BitMasks of (N, H, W). N may be 0. Classes have
            ``sem_seg`` (H, W) int64 besides.
        """
        # As colours, because Detectron2 resizes 8-bit arrays with PIL, whose nearest neighbour is
        # that of the pixel's centre; other types go through PyTorch's, off by half a pixel.
        augmented = rgb_to_id(transforms.apply_segmentation(id_to_rgb(self.ids)))
        padded = pad(augmented.astype(np.int32), padded_size, VOID)
        # A segment that the crop has cut off is no target.
        visible = count_values(padded)
        classes = {id_: class_ for id_, class_ in self.classes.items() if id_ in visible}
        # One comparison per target: (1, H, W) with (N, 1, 1) gives the masks (N, H, W).
        ids, wanted = torch.from_numpy(padded), torch.tensor(list(classes), dtype=torch.int32)
        targets = {"instances": _instances(ids == wanted[:, None, None], list(classes.values()))}
        if self.ignore_label is not None:
            labels = ids.long()
            targets["sem_seg"] = torch.where(labels == VOID, self.ignore_label, labels - 1)
        return targets


@dataclass(frozen=True)
class InstanceList:
    """Instances that may overlap.

    Attributes:
        instances: COCO's ``segmentation`` of every target, its run lengths, and its contiguous
            class id.
    """

    instances: Sequence[tuple[Any, Mapping[str, Any], int]]

    def targets(self, transforms: T.TransformList, size: Size, padded_size: Size) -> Targets:
        """See ``SegmentMap.targets``."""
        masks, classes = [], []
        for segmentation, code, class_ in self.instances:
            if isinstance(segmentation, Mapping):
                mask = transforms.apply_segmentation(pycocotools.mask.decode(code)).astype(bool)
            else:
                # Polygons are moved before they are drawn, so that they stay sharp when they are
                # enlarged. Not by apply_polygons, which clips them with a library that is not
                # required: drawing does.
                corners = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
                moved = [transforms.apply_coords(points).ravel() for points in corners]
                mask = polygons_to_bitmask(moved, *size)
            # An instance that the crop has cut off is no target.
            if mask.any():
                masks.append(mask)
                classes.append(class_)
        padded = torch.zeros(len(masks), *padded_size, dtype=torch.bool)
        if masks:
            padded[:, : size[0], : size[1]] = torch.from_numpy(np.stack(masks))
        return {"instances": _instances(padded, classes)}


@dataclass(frozen=True)
class BoxList:
    """Objects as boxes.

    Attributes:
        boxes: (N, 4), XYXY in the image before augmentation.
        classes: (N,) contiguous class ids.
    """

    boxes: np.ndarray
    classes: Sequence[int]

    def targets(self, transforms: T.TransformList, size: Size, padded_size: Size) -> Targets:
        """See ``SegmentMap.targets``; ``gt_boxes``, Boxes (N, 4) within the image of ``size``, are
        in place of masks."""
        moved = torch.from_numpy(transforms.apply_box(self.boxes))
        # Clipped in double precision: float32 has no room for absurd numbers.
        moved = moved.clamp(min=0).minimum(torch.tensor([*size[::-1], *size[::-1]]).double())
        boxes = Boxes(moved.float())
        # A box that the crop has cut off is no target.
        keep = boxes.nonempty()
        labels = torch.tensor(self.classes, dtype=torch.int64)
        return {"instances": Instances(padded_size, gt_boxes=boxes[keep], gt_classes=labels[keep])}


class AnnotationReader:
    """Reads the annotations of one task, of entries that have its ``key``."""

    key: ClassVar[str]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Self:
        """The reader that a configuration describes; a ConfigError if it does not fit the task."""
        return cls()

    def read(self, entry: Entry, size: Size) -> SegmentMap | InstanceList | BoxList:
        """The annotation of an entry's image, which is of this size before augmentation.

        Raises:
            DataError: a file is missing or wrong; names the file, and the segment if it is one.
        """
        raise NotImplementedError


class PanopticReader(AnnotationReader):
    """Every segment that is no crowd, thing or stuff, is a target.

    Entries have ``pan_seg_file_name`` and ``segments_info``, as from ``load_coco_panoptic``.
    """

    key = "pan_seg_file_name"

    def read(self, entry: Entry, size: Size) -> SegmentMap:
        ids = self.read_ids(entry, size, raise_first)
        assert ids is not None  # else raise_first has raised
        # Crowds are neither targets nor background: no mask has their pixels.
        targets = [s for s in entry["segments_info"] if not s.get("iscrowd", 0)]
        return SegmentMap(ids, {s["id"]: s["category_id"] for s in targets})

    def read_ids(self, entry: Entry, size: Size | None, report: Reporter) -> np.ndarray | None:
        """The segment id of every pixel (H, W), those of ``segments_info`` and ``VOID``.

        None if the PNG file cannot be read. ``size`` is the image's, None if that is unreadable.
        """
        path = entry["pan_seg_file_name"]
        ids = _read_map(read_panoptic_png, path, size, report)
        if ids is None:
            return None
        areas = count_values(ids)
        listed = [segment["id"] for segment in entry["segments_info"]]
        # Both ways: every listed segment has pixels, every pixel a listed segment or void.
        for id_ in dict.fromkeys(listed):
            if id_ not in areas:
                detail = f"segment {id_} has no pixels"
                report(Problem("segment-without-pixels", path, detail, id_))
        for id_ in sorted(areas.keys() - {VOID, *listed}):
            expected = f"the ids of segments_info, {first_few(listed)}, or {VOID} for void"
            detail = f"id {id_}, {areas[id_]} pixels: expected {expected}"
            report(Problem("pixels-without-segment", path, detail, id_))
        return ids


@dataclass(kw_only=True)
class SemanticReader(AnnotationReader):
    """Every class in the image is a target.

    Entries have ``sem_seg_file_name``, an image of class ids below ``num_classes``, and of
    ``ignore_label`` for pixels without a class, or of labels that the entry's ``label_table`` gives
    these meanings.
    """

    num_classes: int
    ignore_label: int
    key = "sem_seg_file_name"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Self:
        head = cfg.MODEL.SEM_SEG_HEAD
        for name in cfg.DATASETS.TRAIN:
            ignored = MetadataCatalog.get(name).get("ignore_label", head.IGNORE_VALUE)
            if ignored != head.IGNORE_VALUE:
                raise ConfigError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}: expected "
                    f"{ignored}, the ignore_label of data set {name}"
                )
        return cls(num_classes=head.NUM_CLASSES, ignore_label=head.IGNORE_VALUE)

    def read(self, entry: Entry, size: Size) -> SegmentMap:
        labels = self.read_labels(entry, size, raise_first)
        assert labels is not None  # else raise_first has raised
        labels = labels.astype(np.int64)
        # The label to ignore becomes void; classes move up by one.
        ids = np.where(labels == self.ignore_label, VOID, labels + 1)
        classes = {id_: id_ - 1 for id_ in count_values(ids) if id_ != VOID}
        return SegmentMap(ids, classes, self.ignore_label)

    def read_labels(self, entry: Entry, size: Size | None, report: Reporter) -> np.ndarray | None:
        """The class id of every pixel (H, W), -1 for a label that the entry's table lacks; see
        ``PanopticReader.read_ids``."""
        path, table = entry["sem_seg_file_name"], entry.get("label_table")
        labels = _read_map(read_label_image if table is None else table.read, path, size, report)
        if labels is None:
            return None
        if table is not None:
            for label, area in count_values(labels).items():
                if label not in table.classes:
                    detail = f"{table.shown(label)}, {area} pixels: expected {table.accepted}"
                    report(Problem("label-out-of-range", path, detail, label))
            return table.class_ids(labels)
        for label, area in count_values(labels).items():
            if label != self.ignore_label and not 0 <= label < self.num_classes:
                detail = (
                    f"label {label}, {area} pixels: expected 0 to {self.num_classes - 1}, since "
                    f"NUM_CLASSES is {self.num_classes}, or {self.ignore_label} for no class"
                )
                report(Problem("label-out-of-range", path, detail, label))
        return labels


class InstanceReader(AnnotationReader):
    """Every one of the entry's ``annotations`` that is no crowd is a target."""

    key = "annotations"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Self:
        crop = cfg.INPUT.CROP
        # The crop counts pixels of categories, but instances do not label every pixel.
        if crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ConfigError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {crop.SINGLE_CATEGORY_MAX_AREA}: expected "
                "1.0 for instances, which do not label every pixel"
            )
        return cls()

    def read(self, entry: Entry, size: Size) -> InstanceList:
        # Crowds are no targets, and not read.
        codes = self.read_codes(entry, size, raise_first, crowds=False)
        return InstanceList([(a["segmentation"], code, a["category_id"]) for _, a, code in codes])

    def read_codes(
        self, entry: Entry, size: Size, report: Reporter, *, crowds: bool
    ) -> Iterator[tuple[int | str, Entry, dict[str, Any]]]:
        """Id or place, annotation and run lengths of those that can be drawn; others are reported.

        ``crowds`` takes crowds, too.
        """
        for index, annotation in enumerate(entry["annotations"]):
            if annotation.get("iscrowd", 0) and not crowds:
                continue
            id_ = annotation.get("id", index)
            try:
                # Polygons, too: run lengths show that they can be drawn.
                yield id_, annotation, run_lengths(annotation.get("segmentation"), *size)
            except ValueError as error:
                detail = f"annotation {id_}: {error}"
                report(Problem("segment-unreadable", entry["file_name"], detail, id_))


class BoxReader(AnnotationReader):
    """The box of every one of the entry's ``annotations`` that is no crowd is a target."""

    key = "annotations"

    def read(self, entry: Entry, size: Size) -> BoxList:
        boxes, classes = [], []
        for _, annotation, box in self.read_boxes(entry, raise_first):
            # A box without size is no target, and one of negative size would be turned round.
            if not annotation.get("iscrowd", 0) and box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
                classes.append(annotation["category_id"])
        return BoxList(np.reshape(boxes, (-1, 4)).astype(np.float64), classes)

    def read_boxes(
        self, entry: Entry, report: Reporter
    ) -> Iterator[tuple[int | str, Entry, list[float]]]:
        """Id or place, annotation and box (XYXY) of those that have one; others are reported."""
        for index, annotation in enumerate(entry["annotations"]):
            id_, box = annotation.get("id", index), annotation.get("bbox")
            numbers = box.tolist() if isinstance(box, np.ndarray) else box
            if not isinstance(numbers, (list, tuple)) or not BOX.accepts(list(numbers)):
                found = "no box" if box is None else f"the box {shown(numbers)}"
                detail = f"annotation {id_} has {found}: expected {BOX.text}"
                report(Problem("box-unreadable", entry["file_name"], detail, id_))
                continue
            # Of a list Detectron2 would make float32.
            double = np.array([numbers], np.float64)
            (corners,) = BoxMode.convert(double, annotation["bbox_mode"], BoxMode.XYXY_ABS)
            yield id_, annotation, corners.tolist()


def pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """Extend (H, W, …) at the right and the bottom to ``size``."""
    height, width = array.shape[:2]
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each integer of a map (H, W) occurs, in ascending order."""
    flat = values.ravel()
    if not flat.size:
        return {}
    # Runs along the rows are far fewer than pixels to sort.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size)
    unique, place = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(place, weights=lengths).astype(np.int64)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def _instances(masks: torch.Tensor, classes: Sequence[int]) -> Instances:
    labels = torch.tensor(classes, dtype=torch.int64)
    return Instances(tuple(masks.shape[1:]), gt_classes=labels, gt_masks=BitMasks(masks))


def _read_map(
    read: Callable[[str], np.ndarray], path: str, size: Size | None, report: Reporter
) -> np.ndarray | None:
    """A map (H, W); None if it cannot be read. Another size than the image's is reported."""
    try:
        values = read(path)
    except DataError as error:
        kind = "mask-missing" if isinstance(error, MissingFileError) else "mask-unreadable"
        report(Problem(kind, path, str(error).removeprefix(f"{path}: ")))
        return None
    if size is not None and values.shape != size:
        detail = f"it has (height, width) {values.shape}: expected {size}, that of its image"
        report(Problem("mask-size", path, detail))
    return values
