"""Lines within their axes, marks for values that are not finite, extremes of long curves."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from proscale.report.charts import (
    MAX_POINTS,
    Line,
    chart,
    curve_charts,
    evaluated,
    thinned,
    ticks,
)


def places(text):
    return [
        [tuple(map(float, point.split(","))) for point in line.split()]
        for line in re.findall(r'<polyline points="([^"]*)"', text)
    ]


def test_a_chart_is_well_formed_and_escaped():
    text = chart("<b>", [Line("a & </script>", [(0, 1.0), (10, 3.0)])])
    markup, data = re.fullmatch("(.*)<script[^>]*>(.*)</script></figure>", text).groups()
    root = ElementTree.fromstring(markup.replace(" hidden>", ">") + "</figure>")
    assert root.find("figcaption").text == "<b>"
    assert "a & </script>" in root.find("ul").find("li").find("i").tail
    (line,) = json.loads(data)["lines"]
    assert line == {"name": "a & </script>", "points": [[0, "1"], [10, "3"]]}


def test_lines_go_from_edge_to_edge():
    ((first, last),) = places(chart("loss", [Line("a", [(100, 8.0), (300, 2.0)])]))
    assert (first[0], last[0]) == (48, 412)
    assert 12 <= first[1] < last[1] <= 204


def test_values_that_are_not_finite_break_the_line_and_are_marked():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, 1.0), (5, math.inf)]
    text = chart("loss", [Line("a", points)])
    assert [len(line) for line in places(text)] == [2, 2]
    assert text.count('<path class="wrong"') == 2
    assert "2 not finite" in text


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([3.0], 1),
        ([0.0, 0.0], 2),
        ([math.nan], 0),
        ([1e308, -1e308, 1.0], 1),
        ([0.0, 1e-322], 2),
        ([5e-324], 1),
        ([5e-324, 5e-324, 1e-99], 3),
        ([1.0, 1.0 + 2e-16], 2),
        ([-1e99, 1e99], 2),
    ],
)
def test_points_constants_and_extreme_numbers(values, drawn):
    text = chart("loss", [Line("a", list(enumerate(values)))])
    assert text.count("<circle") == drawn
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"/>', text)


def test_long_curves_keep_their_extremes():
    points = [(i, math.sin(i)) for i in range(50_000)]
    points[31_234], points[31_300] = (31_234, 99.0), (31_300, math.nan)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(kept) and (31_234, 99.0) in kept and kept[-1] == points[-1]
    assert any(math.isnan(value) for _, value in kept)
    assert thinned(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_ticks_are_round():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.3, 1.01, 4) == [-0.25, 0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(4, 4, 5) == [4]


def test_metrics_that_are_drawn_together():
    names = ["total_loss", "loss_ce", "loss_ce_0", "loss_mask", "lr", "grad_norm", "time"]
    names += ["data_time", "eta_seconds", "skipped_steps", "panoptic_seg/PQ", "panoptic_seg/SQ"]
    curves = {name: [(0, 0.0), (1, 1.0)] for name in names} | {"overflowed_steps": [(0, 0.0)]}
    text = curve_charts(curves)
    assert re.findall("<figcaption>([^<]*)<", text) == [
        "Panoptic segmentation, percent",
        "Total loss",
        "loss_ce",
        "loss_mask",
        "Learning rate",
        "Gradient norm, before clipping",
        "Seconds an iteration",
        "Steps left out, not finite",
    ]
    assert text.count("at intermediate layers") == 1
    assert list(evaluated(curves)) == ["panoptic_seg/PQ"]
    assert curve_charts({}) == ""


def test_curves_of_several_data_sets():
    text = curve_charts({"val/segm/AP": [(0, 1.0)], "test/segm/AP": [(0, 1.0)]})
    assert "Instance masks, percent · val" in text and "Instance masks, percent · test" in text
