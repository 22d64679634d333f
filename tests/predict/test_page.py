"""The page's structure: complete in itself, and nothing in it that the data could inject."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from proscale.predict import page as page_module
from proscale.predict.page import Gallery, gallery_item
from proscale.predict.pictures import drawing_of

EVIL = "<img src=x onerror=alert(1)>\"'&.jpg"


class Page(HTMLParser):
    """Collects the tags, texts and data that a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.data = [], [], [], []
        self.in_data = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.in_data = tag == "script" and ("type", "application/json") in attributes

    def handle_endtag(self, tag):
        self.in_data = False

    def handle_data(self, data):
        if self.in_data:
            self.data.append(json.loads(data))
        else:
            self.texts.append(data)


def decoded(url):
    kind, data = url.split(";base64,")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture
def build(tmp_path, panoptic, classes, pixels):
    """Returns a function: names of images, and skipped files → the page's text."""

    def make(names, skipped=(), size=(48, 64)):
        page = Gallery(tmp_path / "index.html", title=EVIL, subtitle="panoptic · <i>")
        drawing = drawing_of(panoptic, classes)
        for name in names:
            page.add(gallery_item(name, pixels(*size), panoptic, drawing))
        page.finish(skipped)
        assert list(tmp_path.iterdir()) == [tmp_path / "index.html"]
        return (tmp_path / "index.html").read_text("utf-8")

    return make


def test_everything_that_is_shown_is_in_the_page(build):
    text = build(["one", "two"])
    page = Page(text)
    assert [data["file"] for data in page.data] == ["one", "two"]
    assert "2 images" in text
    loaded = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert loaded and all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(", text)


def test_pictures_and_layers(build, panoptic):
    (data,) = Page(build(["one"])).data
    kind, image = decoded(data["image"])
    assert (kind, image.shape) == ("data:image/jpeg", (48, 64, 3))
    kind, fill = decoded(data["fill"])
    assert (kind, fill.shape) == ("data:image/png", (48, 64, 4))
    assert np.array_equal(fill[..., 3] > 0, panoptic.id_map > 0)
    kind, edges = decoded(data["edges"])
    assert np.array_equal(
        edges[4, 5], [*map(int, re.findall(r"\d+", data["segments"][1]["color"])), 255]
    )
    assert edges[10, 8, 3] == 0


def test_legend(build):
    (data,) = Page(build(["one"])).data
    assert [s["name"] for s in data["segments"]] == [
        "grass & </script>",
        "cat",
        "cat",
        "<b>dog</b>",
    ]
    cat = data["segments"][1]
    assert cat["area"] == pytest.approx(100 * 256 / (48 * 64))
    assert cat["score"] == 0.8
    assert cat["box"] == pytest.approx([6.25, 100 / 12, 25, 100 / 3])
    assert cat["color"] != data["segments"][2]["color"]


def test_names_of_files_and_classes_are_text(build):
    text = build([EVIL], [f"{EVIL}: not readable <u>"])
    page = Page(text)
    assert page.data[0]["file"] == EVIL
    assert page.texts.count(EVIL) == 3  # title, heading, card
    assert any("<b>dog</b>" in piece for piece in page.texts)
    assert not {"b", "i", "u"} & (set(page.tags) - {"i"})
    assert "onerror" not in dict(page.attributes)
    assert text.count("</script>") == 2  # the image's data and the page's script


def test_skipped_files_are_told(build):
    assert "1 skipped" in build(["one"], ["two.jpg: not readable"])
    assert "skipped" not in build(["one"])


def test_sizes_are_bounded(build, monkeypatch):
    monkeypatch.setattr(page_module, "IMAGE_SIDE", 32)
    (data,) = Page(build(["one"])).data
    assert decoded(data["image"])[1].shape == (24, 32, 3)
    assert decoded(data["fill"])[1].shape == (24, 32, 4)
    assert (data["width"], data["height"]) == (64, 48)


def test_number_is_bounded_and_the_page_says_so(build, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_IMAGES", 2)
    text = build(["one", "two", "three"])
    assert len(Page(text).data) == 2
    assert "the first 2 of 3 images" in text
