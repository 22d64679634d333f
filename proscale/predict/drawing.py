"""Segmentations drawn over their images: colours, outlines, captions.

A drawing has an index map: an integer image in which the pixels of the n-th segment, counted from
1, are n, and 0 where there is none.
"""

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pycocotools.mask
from detectron2.data import Metadata
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from proscale.predict.result import ClassMetadata, Color, Prediction, from_annotation

# Of a segment's colour over the image.
OPACITY = 0.5

_FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@dataclass(frozen=True)
class Drawing:
    """Colours and captions of segments, and their index map, see the module.

    Of overlapping instances ``index_map`` has the one with the best score. Captions have the scores
    of objects.
    """

    index_map: np.ndarray
    colors: list[Color]
    captions: list[str]

    @classmethod
    def of(cls, prediction: Prediction, classes: ClassMetadata) -> "Drawing":
        """The drawing of a prediction with the data set's colours."""
        segments = prediction.segments
        if prediction.id_map is not None:
            index_map = indices_of(prediction.id_map, [segment.id for segment in segments])
        else:
            index_map = np.zeros((prediction.height, prediction.width), np.int64)
            # Instances have falling scores: the best one is painted last.
            for number in range(len(segments), 0, -1):
                index_map[pycocotools.mask.decode(prediction.codes[number - 1]) > 0] = number
        captions = [
            f"{s.name} {s.score:.0%}" if s.isthing and s.score is not None else s.name
            for s in segments
        ]
        return cls(index_map, segment_colors(classes, [s.class_id for s in segments]), captions)

    def over(self, image: np.ndarray) -> np.ndarray:
        """Segments, outlines and captions over the image, both ``(H, W, 3)`` uint8 RGB."""
        # Colours first, then captions, so that no segment covers the name of another.
        canvas = Image.fromarray(tinted(image, self.painted(), self.index_map))
        draw = ImageDraw.Draw(canvas)
        # Letters grow with the image, so that they are legible at any size.
        size = max(10, round(0.022 * (canvas.width * canvas.height) ** 0.5))
        font = ImageFont.truetype(str(_FONT), size)
        taken: list[tuple[float, float, float, float]] = []
        for index, (x, y) in label_places(self.index_map).items():
            # The label is centred on its place, and moved inside where it would leave the image.
            caption, color = self.captions[index - 1], self.colors[index - 1]
            width, height = draw.textlength(caption, font) + size / 2, 1.3 * size
            x0 = min(max(x - width / 2, 0), max(canvas.width - width, 0))
            x1 = x0 + width
            # It keeps clear of others by some lines. A label that finds no free line is left out:
            # larger segments have theirs already.
            for shift in (0, -1, 1, -2, 2):
                y0 = min(max(y + (shift - 0.5) * height, 0), max(canvas.height - height, 0))
                y1 = y0 + height
                # Boxes overlap if along both axes each begins before the other ends.
                if not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
                    taken.append((x0, y0, x1, y1))
                    draw.rounded_rectangle(taken[-1], radius=size / 4, fill=color)
                    place = (x0 + width / 2, y0 + height / 2)
                    draw.text(place, caption, text_color(color), font, anchor="mm")
                    break
        return np.asarray(canvas)

    def painted(self) -> np.ndarray:
        """``(H, W, 3)`` uint8 RGB: the segments in their colours on black."""
        return np.array([(0, 0, 0), *self.colors], np.uint8)[self.index_map]


def draw_panoptic(
    image: np.ndarray, panoptic: Tensor, segments: list[dict], metadata: Metadata, *, scale: int = 1
) -> np.ndarray:
    """Draw panoptic segments, of a model or an annotation, with their names over an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; the result is ``scale`` times as large.
        panoptic: ``(H, W)`` integer segment ids, 0 where there is none.
        segments: of each, ``id`` and ``category_id`` (contiguous).
        metadata: of the data set; gives names and colours.
    """
    classes = ClassMetadata.of_metadata(metadata, "panoptic")
    class_of = {segment["id"]: segment["category_id"] for segment in segments}
    ids = enlarge(panoptic.cpu().numpy(), scale)
    prediction = from_annotation("panoptic", ids, class_of, classes)
    return Drawing.of(prediction, classes).over(enlarge(image, scale))


def enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    """``(H, W, …)`` with every pixel as a square of ``scale`` pixels."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def side_by_side(pictures: list[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Put pictures of equal height next to each other, ``gap`` white pixels apart."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)


def tinted(image: np.ndarray, paint: np.ndarray, index_map: np.ndarray) -> np.ndarray:
    """``image`` with ``paint`` on it: transparent inside segments, opaque along their outlines."""
    # The blend covers the whole image; where no segment is, the image remains.
    mixed = cv2.addWeighted(image, 1 - OPACITY, paint, OPACITY, 0)
    picture = np.where((index_map > 0)[..., None], mixed, image)
    on_outline = outlines(index_map)
    picture[on_outline] = paint[on_outline]
    return picture


def indices_of(id_map: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The index map of segments that have these ids in a map of any integers; others become 0."""
    # A table over the ids that occur replaces all pixels in one pass.
    known, places = np.unique(id_map, return_inverse=True)
    index = {id_: number for number, id_ in enumerate(ids, 1)}
    lookup = np.array([index.get(id_, 0) for id_ in known.tolist()], np.int64)
    return lookup[places].reshape(id_map.shape)


def segment_colors(classes: ClassMetadata, labels: Sequence[int]) -> list[Color]:
    """A colour for each segment, from its class id: objects of one class get different shades."""
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        color = classes.colors[label]
        # The n-th object of a class has its n-th shade; stuff has the class's own colour.
        if classes.isthing[label]:
            hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
            # The colour itself, then darker, lighter and slightly different ones; five shades can
            # be distinguished, and further objects begin anew.
            number = seen[label]
            lightness *= (1, 0.7, 1.3, 0.85, 1.15)[number % 5]
            hue += 0.025 * ((number + 2) % 5 - 2)
            red, green, blue = colorsys.hls_to_rgb(hue % 1, min(lightness, 0.9), saturation)
            color = (round(255 * red), round(255 * green), round(255 * blue))
            seen[label] += 1
        colors.append(color)
    return colors


def outlines(index_map: np.ndarray) -> np.ndarray:
    """``(H, W)`` bool: pixels of segments along their borders, a line of some 1/300 of the size."""
    # Pixels whose four neighbours do not all have their index: where the gradient is not 0.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    gradient = cv2.morphologyEx(index_map.astype(np.uint16), cv2.MORPH_GRADIENT, cross)
    width = max(2, round(min(index_map.shape) / 300))
    thick = cv2.dilate((gradient > 0).astype(np.uint8), np.ones((width, width), np.uint8))
    return (thick > 0) & (index_map > 0)


def label_places(index_map: np.ndarray) -> dict[int, tuple[int, int]]:
    """Where a label belongs: (x, y) of the pixel deepest inside each segment, by its index.

    The largest segments come first; those below a thousandth of the image have no place.
    """
    # Distances are measured on a map of at most 400 pixels: some do not matter to a label.
    step = max(1, math.ceil(max(index_map.shape) / 400))
    reduced = index_map[::step, ::step]
    areas = np.bincount(reduced.ravel())
    # Index 0 is no segment.
    areas[0] = 0
    places = {}
    for index in np.argsort(-areas, kind="stable").tolist():
        if areas[index] < max(0.001 * reduced.size, 1):
            break
        # The padding makes the image's border a border of the segment.
        mask = np.pad((reduced == index).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        places[index] = (int(x) * step, int(y) * step)
    return places


def text_color(background: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = background
    # The luma of ITU-R BT.601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
