"""The page that shows predictions: one HTML file that needs no server and no network.

Pictures are in it as JPEG data of a bounded size; what is drawn over them as transparent PNG data,
so that the page can show either or both. Those of an image are in a script of data that the page
reads when the image is opened, so that hundreds of images are no burden before.
"""

import base64
import html
import io
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from typing import Any

import cv2
import numpy as np
from PIL import Image

from proscale.predict.drawing import Drawing
from proscale.predict.result import Prediction
from proscale.predict.visualization import (
    OPACITY,
    label_places,
    outlines,
    painted,
    text_color,
    tinted,
)
from proscale.utils.web import now, script_data, shared_pieces
from proscale.utils.whole_files import whole_file

MAX_IMAGES = 500
"""Images on a page; those after them have their files only, and the page says so."""

IMAGE_SIDE = 1024
"""The longer side of images on the page, in pixels, at most."""

_THUMBNAIL_SIDE = 360
_IMAGE_QUALITY, _THUMBNAIL_QUALITY = 82, 75
# Where the template is divided.
_ITEMS = "<!-- items -->"


class Gallery:
    """Writes the page while predictions come; it appears when it is complete.

    Args:
        path: of the HTML file; its folder is there.
        title, subtitle: plain text.
    """

    def __init__(self, path: Path, *, title: str, subtitle: str) -> None:
        self._path = path
        self._words = {"title": title, "subtitle": subtitle}
        self._number = 0
        # Closed by finish().
        self._items = TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115

    def add(self, item: str) -> None:
        """Add an image, as ``gallery_item`` makes it."""
        self._number += 1
        if self._number <= MAX_IMAGES:
            self._items.write(item)

    def finish(self, faults: Sequence[str]) -> None:
        """Write the page.

        Args:
            faults: a line for each file that was skipped, plain text.
        """
        count = f"{self._number} image" + "s" * (self._number != 1)
        if self._number > MAX_IMAGES:
            count = f"the first {MAX_IMAGES} of {count}; all have their files beside this page"
        words = {
            **self._words,
            "count": count,
            "date": now(),
        }
        words = {key: html.escape(word) for key, word in words.items()} | {
            "faults": _faults(faults),
            **shared_pieces(),
        }
        template = files("proscale.predict").joinpath("gallery.html").read_text("utf-8")
        head, tail = (Template(part).substitute(words) for part in template.split(_ITEMS))
        with (
            self._items as items,
            whole_file(self._path) as part,
            part.open("w", encoding="utf-8") as page,
        ):
            page.write(head)
            items.seek(0)
            shutil.copyfileobj(items, page)
            page.write(tail)


def gallery_item(name: str, pixels: np.ndarray, prediction: Prediction, drawing: Drawing) -> str:
    """An image on the page, as HTML: a button with the thumbnail, and the data to enlarge it.

    Args:
        name: shown, and found by the page's filter.
        pixels: ``(H, W, 3)`` uint8 RGB.
        prediction: for the image.
        drawing: of it.
    """
    size = _bounded(pixels.shape[:2], IMAGE_SIDE)
    image = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, pixels.shape[:2], strict=True)
    )
    index_map = drawing.index_map[rows[:, None], columns]
    paint = painted(index_map, drawing.colors)
    content = {
        "file": name,
        "width": prediction.width,
        "height": prediction.height,
        "image": _jpeg(image, _IMAGE_QUALITY),
        "fill": _png(paint, (index_map > 0) * round(255 * OPACITY)),
        "edges": _png(paint, outlines(index_map) * 255),
        "segments": _segments(prediction, drawing, index_map),
    }
    small = _bounded(size, _THUMBNAIL_SIDE)
    thumbnail = cv2.resize(
        tinted(image, paint, index_map), small[::-1], interpolation=cv2.INTER_AREA
    )
    names = list(dict.fromkeys(segment.name for segment in prediction.segments))
    return _ITEM.substitute(
        file=html.escape(name),
        thumbnail=_jpeg(thumbnail, _THUMBNAIL_QUALITY),
        names=html.escape(", ".join(names) or "nothing found"),
        search=html.escape(" ".join((name, *names)).lower()),
        content=script_data(content),
    )


_ITEM = Template(
    '<article class="card" data-search="$search"><button type="button">'
    '<img alt="" src="$thumbnail"><span class="file">$file</span>'
    '<span class="names">$names</span></button>'
    '<script type="application/json">$content</script></article>\n'
)


def _segments(
    prediction: Prediction, drawing: Drawing, index_map: np.ndarray
) -> list[dict[str, Any]]:
    """Of each segment what the legend shows; lengths and areas in percent of the image's."""
    height, width = index_map.shape
    places = label_places(index_map)
    entries = []
    for number, (segment, color) in enumerate(
        zip(prediction.segments, drawing.colors, strict=True), 1
    ):
        left, top, right, bottom = segment.box
        entry = {
            "name": segment.name,
            "color": "rgb({}, {}, {})".format(*color),
            "text": "rgb({}, {}, {})".format(*text_color(color)),
            "score": segment.score,
            "area": 100 * segment.area / (prediction.height * prediction.width),
            "pixels": segment.area,
            "box": [
                100 * left / prediction.width,
                100 * top / prediction.height,
                100 * (right - left) / prediction.width,
                100 * (bottom - top) / prediction.height,
            ],
        }
        if number in places:
            x, y = places[number]
            entry["label"] = [100 * x / width, 100 * y / height]
        entries.append(entry)
    return entries


def _bounded(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width), made smaller in proportion so that no side is longer than ``side``."""
    factor = min(1, side / max(size))
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def _jpeg(rgb: np.ndarray, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _png(rgb: np.ndarray, alpha: np.ndarray) -> str:
    file = io.BytesIO()
    rgba = np.dstack([np.where(alpha[..., None] > 0, rgb, 0), alpha]).astype(np.uint8)
    Image.fromarray(rgba).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _faults(faults: Sequence[str]) -> str:
    if not faults:
        return ""
    lines = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
    summary = f"<summary>{len(faults)} skipped</summary>"
    return f'<details class="faults">{summary}<ul>{lines}</ul></details>'
