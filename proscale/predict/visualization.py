"""Pictures of segmentations, for people to look at.

What is drawn is an index map: an integer image in which the pixels of the n-th segment, counted
from 1, are n, and 0 where there is none.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from detectron2.data import Metadata
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from proscale.predict.classes import Classes, Color

OPACITY = 0.5
"""Of a segment's colour over the image."""

_FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
# Segments smaller than this share of the image get no label.
_LABELLED_AREA = 0.001
# Side in pixels to which maps are reduced to find places for labels.
_PLACING_SIDE = 400
# Lines that a label may be moved by to keep clear of others.
_SHIFTS = (0, -1, 1, -2, 2)


def draw_segments(
    image: np.ndarray, index_map: np.ndarray, colors: Sequence[Color], captions: Sequence[str]
) -> np.ndarray:
    """Draw segments with outlines and captions over an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        index_map: ``(H, W)`` integers, see the module.
        colors, captions: of the N segments.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    picture = tinted(image, painted(index_map, colors), index_map)
    return _with_labels(picture, index_map, colors, captions)


def painted(index_map: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB: the segments in their colours on black."""
    return np.array([(0, 0, 0), *colors], np.uint8)[index_map]


def tinted(image: np.ndarray, paint: np.ndarray, index_map: np.ndarray) -> np.ndarray:
    """``image`` with ``paint`` on it: transparent inside segments, opaque along their outlines."""
    mixed = cv2.addWeighted(image, 1 - OPACITY, paint, OPACITY, 0)
    picture = np.where((index_map > 0)[..., None], mixed, image)
    on_outline = outlines(index_map)
    picture[on_outline] = paint[on_outline]
    return picture


def draw_panoptic(
    image: np.ndarray,
    panoptic: Tensor,
    segments: list[dict],
    metadata: Metadata,
    *,
    scale: int = 1,
) -> np.ndarray:
    """Draw segments with their names over an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        panoptic: ``(H, W)`` integer segment ids, 0 where there is none.
        segments: of each, ``id`` and ``category_id`` (contiguous).
        metadata: of the data set; gives names and colours.
        scale: size of the picture over that of the image.

    Returns:
        ``(H·scale, W·scale, 3)`` uint8 RGB.
    """
    classes = Classes.of_metadata(metadata, "panoptic")
    labels = [segment["category_id"] for segment in segments]
    index_map = indices_of(panoptic.cpu().numpy(), [segment["id"] for segment in segments])
    return draw_segments(
        enlarge(image, scale),
        enlarge(index_map, scale),
        segment_colors(classes, labels),
        [classes.names[label] for label in labels],
    )


def enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    """``(H, W, …)`` with every pixel as a square of ``scale`` pixels."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def side_by_side(pictures: list[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Put pictures of equal height next to each other, ``gap`` white pixels apart."""
    height = pictures[0].shape[0]
    space = np.full((height, gap, 3), 255, dtype=np.uint8)
    row = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)


def indices_of(id_map: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The index map of segments that have these ids in a map of any integers; others become 0."""
    known, places = np.unique(id_map, return_inverse=True)
    index = {id_: number for number, id_ in enumerate(ids, 1)}
    lookup = np.array([index.get(id_, 0) for id_ in known.tolist()], np.int64)
    return lookup[places].reshape(id_map.shape)


def segment_colors(classes: Classes, labels: Sequence[int]) -> list[Color]:
    """A colour for each segment, from its class id: objects of one class get different shades."""
    seen: dict[int, int] = {}
    colors = []
    for label in labels:
        number = seen.get(label, 0)
        seen[label] = number + 1
        color = classes.colors[label]
        colors.append(_shade(color, number) if classes.isthing[label] else color)
    return colors


def outlines(index_map: np.ndarray) -> np.ndarray:
    """``(H, W)`` bool: pixels of segments along their borders, a line of some 1/300 of the size."""
    border = np.zeros(index_map.shape, np.uint8)
    across = index_map[:, 1:] != index_map[:, :-1]
    down = index_map[1:] != index_map[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    width = max(2, round(min(index_map.shape) / 300))
    border = cv2.dilate(border, np.ones((width, width), np.uint8))
    return (border > 0) & (index_map > 0)


def label_places(index_map: np.ndarray) -> dict[int, tuple[int, int]]:
    """Where a label belongs: (x, y) of the pixel deepest inside each segment, by its index.

    The largest segments come first; small ones have no place.
    """
    step = max(1, -(-max(index_map.shape) // _PLACING_SIDE))
    reduced = index_map[::step, ::step]
    areas = np.bincount(reduced.ravel())
    areas[0] = 0
    places = {}
    for index in np.argsort(-areas, kind="stable").tolist():
        if areas[index] < max(_LABELLED_AREA * reduced.size, 1):
            break
        mask = np.pad((reduced == index).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        places[index] = (int(x) * step, int(y) * step)
    return places


def text_color(background: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _with_labels(
    picture: np.ndarray, index_map: np.ndarray, colors: Sequence[Color], captions: Sequence[str]
) -> np.ndarray:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    size = max(10, round(0.022 * (canvas.width * canvas.height) ** 0.5))
    font = ImageFont.truetype(str(_FONT), size)
    taken: list[tuple[float, float, float, float]] = []
    for index, (x, y) in label_places(index_map).items():
        caption, color = captions[index - 1], colors[index - 1]
        width, height = draw.textlength(caption, font) + size / 2, 1.3 * size
        left = min(max(x - width / 2, 0), max(canvas.width - width, 0))
        for shift in _SHIFTS:
            top = min(max(y + (shift - 0.5) * height, 0), max(canvas.height - height, 0))
            box = (left, top, left + width, top + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                draw.rounded_rectangle(box, radius=size / 4, fill=color)
                place = (left + width / 2, top + height / 2)
                draw.text(place, caption, text_color(color), font, anchor="mm")
                break
    return np.asarray(canvas)


def _overlap(
    box: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _shade(color: Color, number: int) -> Color:
    """The colour itself for the first object, then darker, lighter and slightly different ones."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    lightness *= (1, 0.7, 1.3, 0.85, 1.15)[number % 5]
    hue += 0.025 * ((number + 2) % 5 - 2)
    red, green, blue = colorsys.hls_to_rgb(hue % 1, min(lightness, 0.9), saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
