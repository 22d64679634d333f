"""Pictures: formats, labels that do not hide each other, and files of results."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from proscale.cost.plots import bars, check_format, draw, points, read_results
from proscale.errors import ConfigError

COSTS = {"first": {"backbone": 3.0, "head": 1.0}, "second": {"backbone": 3.0, "results": 2.5}}


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_format_goes_by_the_suffix(tmp_path, suffix, start, capsys):
    file = tmp_path / "new" / f"cost.{suffix}"
    check_format(file)
    draw([bars(COSTS, "GFLOPs"), points({"first": (1, 2)}, ("GFLOPs", "PQ"))], file)
    assert file.read_bytes().startswith(start)
    assert f"Picture: {file}" in capsys.readouterr().out


def test_bars_are_stacked_to_the_total():
    axes = Figure().subplots()
    bars(COSTS, "GFLOPs")[1](axes)
    assert [text.get_text() for text in axes.texts] == ["4", "5.5"]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]
    assert max(ends) == 5.5


def test_labels_of_close_points_keep_apart():
    figure = Figure((6, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = {f"model {index}": (index, 1 + index * 1e-4) for index in range(6)} | {"far": (1, 9)}
    points(places, ("GFLOPs", "PQ"))[1](axes)
    figure.draw_without_rendering()
    # Of the texts alone, without the lines to their points.
    extents = (Text.get_window_extent(text) for text in axes.texts)
    boxes = sorted(extents, key=lambda box: box.y0)
    assert len(boxes) == 7
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '{"a": {"PQ": 1, "mIoU": 2}}', '{"a": 3}', '{"a": {"PQ": "x"}}']
)
def test_other_results_are_refused(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected one metric, the same for all models"):
        read_results(file)


def test_results_by_model(tmp_path):
    file = tmp_path / "results.json"
    file.write_text('{"a": {"PQ": 40}, "b": {"PQ": 41.5}}')
    assert read_results(file) == ("PQ", {"a": 40.0, "b": 41.5})
    with pytest.raises(ConfigError, match="No such file"):
        read_results(tmp_path / "none.json")
