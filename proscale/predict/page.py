"""Pages that show images with their predictions: one HTML file each, without server and network.

Pictures are JPEG data of a bounded size, and drawings over them transparent PNG data, so that the
viewer can show either or both. The data of an image are in a script that the page reads when the
image is opened: hundreds of images are no burden before. Reports share the viewer and the style.
"""

import base64
import html
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from typing import Any

import cv2
import numpy as np
from PIL import Image

from proscale.errors import OutputError
from proscale.predict.drawing import Drawing, text_color
from proscale.predict.result import Prediction, Segmentation
from proscale.utils.types import Size
from proscale.utils.untrusted import os_error
from proscale.utils.whole_files import whole_file

# Images on a page; those after them have their files only, and the page says so.
MAX_IMAGES = 500
# The longer side of images on the page and in its overview, in pixels, at most.
IMAGE_SIDE, _THUMBNAIL_SIDE = 1024, 360

_WEB = files("proscale.predict") / "web"
_SHARED = ("head.html", "page.css", "viewer.css", "viewer.html", "viewer.js")
_ITEM = Template(
    '<article class="card" data-search="$search"><button type="button">'
    '<img alt="" src="$thumbnail"><span class="file">$file</span>'
    '<span class="names">$names</span></button>'
    '<script type="application/json">$content</script></article>\n'
)


class Gallery:
    """Writes the page ``path`` while predictions come; it appears when it is complete.

    Its folder is there; ``title`` and ``subtitle`` are plain text.
    """

    def __init__(self, path: Path, *, title: str, subtitle: str) -> None:
        self._path = path
        self._words = {"title": title, "subtitle": subtitle}
        self._number = 0
        # Items wait on the disk: they may be hundreds of megabytes. Closed by finish().
        self._items = TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115

    def add(self, item: str) -> None:
        """Add an image, as ``gallery_item`` makes it."""
        self._number += 1
        if self._number <= MAX_IMAGES:
            with self._written():
                self._items.write(item)

    @contextmanager
    def _written(self) -> Iterator[None]:
        # The file of the items has no name that an error could tell.
        try:
            yield
        except OSError as error:
            raise OutputError(os_error(error, self._path, "written")) from error

    def finish(self, skipped: Sequence[str]) -> None:
        """Write the page, with a line of plain text for each file that was skipped."""
        count = f"{self._number} image" + "s" * (self._number != 1)
        if self._number > MAX_IMAGES:
            count = f"the first {MAX_IMAGES} of {count}; all have their files beside this page"
        words = {**self._words, "count": count, "date": now()}
        words = {key: html.escape(word) for key, word in words.items()}
        faults = ""
        if skipped:
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in skipped)
            summary = f"<summary>{len(skipped)} skipped</summary>"
            faults = f'<details class="faults">{summary}<ul>{lines}</ul></details>'
        words |= shared_parts() | {"faults": faults}
        # The items lie between the two halves of the template.
        template = (_WEB / "gallery.html").read_text("utf-8")
        head, tail = (Template(part).substitute(words) for part in template.split("<!-- items -->"))
        with (
            self._written(),
            self._items as items,
            whole_file(self._path) as part,
            # Bytes of file names that are no text are escaped.
            part.open("w", encoding="utf-8", errors="backslashreplace") as page,
        ):
            page.write(head)
            items.seek(0)
            shutil.copyfileobj(items, page)
            page.write(tail)


def gallery_item(name: str, pixels: np.ndarray, prediction: Prediction, drawing: Drawing) -> str:
    """An image on the page, as HTML: a button with the thumbnail, and the data to enlarge it.

    ``pixels`` are ``(H, W, 3)`` uint8 RGB. The page's filter finds ``name``.
    """
    height, width = pixels.shape[:2]
    # Everything is drawn anew at the page's size, so that outlines are as wide as on any image.
    size = _bounded((height, width), IMAGE_SIDE)
    image = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    drawing = drawing.resized(size)
    fill, lines = drawing.layers()
    content = {
        "file": name,
        "width": prediction.width,
        "height": prediction.height,
        "image": _data_url(image, "JPEG", quality=82),
        "fill": _png(fill),
        "edges": _png(lines),
        "noun": "segment" if isinstance(prediction, Segmentation) else "object",
        "segments": _legend(prediction, drawing),
    }
    small = _bounded(size, _THUMBNAIL_SIDE)[::-1]
    thumbnail = cv2.resize(drawing.tinted(image), small, interpolation=cv2.INTER_AREA)
    # The card names every class once.
    names = list(dict.fromkeys(one.name for one in prediction.objects))
    return _ITEM.substitute(
        file=html.escape(name),
        thumbnail=_data_url(thumbnail, "JPEG", quality=75),
        names=html.escape(", ".join(names) or "nothing found"),
        search=html.escape(" ".join((name, *names)).lower()),
        content=script_data(content),
    )


def shared_parts() -> dict[str, str]:
    """The parts of all pages, by their names in templates, such as ``viewer_css``."""
    return {name.replace(".", "_"): (_WEB / name).read_text("utf-8") for name in _SHARED}


def now() -> str:
    """Date and time of this machine, for people."""
    return datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def script_data(content: Any) -> str:
    """JSON for a ``<script type="application/json">``, with any texts in it."""
    # Within a script only "<" could end it.
    return json.dumps(content).replace("<", "\\u003c")


def _legend(prediction: Prediction, drawing: Drawing) -> list[dict[str, Any]]:
    """The legend's entry of each object; lengths and areas in percent of the image's."""
    height, width = prediction.height, prediction.width
    rows, columns = drawing.size
    places = drawing.label_places()
    entries = []
    pairs = zip(prediction.objects, drawing.colors, strict=True)
    for number, (one, color) in enumerate(pairs, 1):
        # Percentages: the viewer shows the image at any size.
        x0, y0, x1, y1 = (100 * side for side in one.box)
        entry = {
            "name": one.name,
            "color": "rgb({}, {}, {})".format(*color),
            "text": "rgb({}, {}, {})".format(*text_color(color)),
            "score": one.score,
            "area": 100 * one.area / (height * width),
            "pixels": round(one.area),
            "box": [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
        }
        if number in places:
            x, y = places[number]
            entry["label"] = [100 * x / columns, 100 * y / rows]
        entries.append(entry)
    return entries


def _bounded(size: Size, side: int) -> Size:
    """(height, width), made smaller in proportion so that no side is longer than ``side``."""
    # Small images are not enlarged: browsers do that.
    factor = min(1, side / max(size))
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def _png(rgba: np.ndarray) -> str:
    # Transparent pixels are black: long runs of one value compress best.
    return _data_url(np.where(rgba[..., 3:] > 0, rgba, 0), "PNG")


def _data_url(pixels: np.ndarray, format: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, optimize=True, **options)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{format.lower()};base64,{data}"
