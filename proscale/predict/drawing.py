"""Predictions drawn over their images: layers of colour, and captions.

A drawing has two layers, transparent where nothing is drawn: the fill, and the lines on it.
"""

import colorsys
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from proscale.predict.result import ClassMetadata, Color, DetectedObject
from proscale.utils.types import Size

_FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@dataclass(frozen=True)
class Drawing(ABC):
    """Colours and captions of the objects of a prediction; what they look like is in subclasses."""

    colors: list[Color]
    captions: list[str]

    @property
    @abstractmethod
    def size(self) -> Size:
        """(height, width) of the image, pixels."""

    @abstractmethod
    def resized(self, size: Size) -> "Drawing":
        """The same drawing for the image at another size."""

    @abstractmethod
    def layers(self) -> tuple[np.ndarray, np.ndarray]:
        """Fill and lines, each ``(H, W, 4)`` uint8 RGBA."""

    @abstractmethod
    def label_places(self) -> dict[int, tuple[int, int]]:
        """Where the centre of a label belongs, (x, y), by the object's number, counted from 1.

        Of labels that overlap the first one is drawn. Objects may have no place.
        """

    def areas(self) -> dict[int, int]:
        """Pixels of the objects that a label would hide, by number; those drawn around have none.

        Objects smaller than their label are not labelled.
        """
        return {}

    def tinted(self, image: np.ndarray) -> np.ndarray:
        """The layers over the image, both ``(H, W, 3)`` uint8 RGB."""
        canvas = Image.fromarray(image)
        for layer in self.layers():
            canvas.paste(Image.fromarray(layer[..., :3]), mask=Image.fromarray(layer[..., 3]))
        return np.asarray(canvas)

    def over(self, image: np.ndarray) -> np.ndarray:
        """Layers and captions over the image, both ``(H, W, 3)`` uint8 RGB."""
        # Colours first, then captions, so that no object covers the name of another.
        canvas = Image.fromarray(self.tinted(image))
        draw = ImageDraw.Draw(canvas)
        # Letters grow with the image, so that they are legible at any size.
        size = max(10, round(0.022 * (canvas.width * canvas.height) ** 0.5))
        font = ImageFont.truetype(str(_FONT), size)
        taken: list[tuple[float, float, float, float]] = []
        areas = self.areas()
        for index, (x, y) in self.label_places().items():
            # The label is centred on its place, and moved inside where it would leave the image.
            caption, color = self.captions[index - 1], self.colors[index - 1]
            width, height = draw.textlength(caption, font) + size / 2, 1.3 * size
            if areas.get(index, math.inf) < width * height:
                continue
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


def enlarge(picture: np.ndarray, scale: int) -> np.ndarray:
    """``(H, W, …)`` with every pixel as a square of ``scale`` pixels."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def side_by_side(pictures: list[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Put pictures of equal height next to each other, ``gap`` white pixels apart."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)


def caption(one: DetectedObject) -> str:
    """The name, with the score where there is one."""
    return one.name if one.score is None else f"{one.name} {one.score:.0%}"


def object_colors(classes: ClassMetadata, labels: Sequence[int]) -> list[Color]:
    """A colour for each object, from its class id: things of one class get different shades."""
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


def text_color(background: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = background
    # The luma of ITU-R BT.601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
