"""The figure of docs/encoders.md can be drawn again."""

import pytest

from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments


@pytest.fixture(scope="module")
def module(load_tool):
    return load_tool("draw_encoders")


def test_figure_is_drawn_from_the_formulas(module, tmp_path):
    file = tmp_path / "encoders.svg"
    module.draw(file)
    first = file.read_text()
    # Text is drawn as outlines; matplotlib leaves it in comments.
    for text in ("Mask2Former", "100% of the cost", "50% of the cost", "22% of the cost"):
        assert f"<!-- {text} -->" in first, text
    module.draw(file)
    assert file.read_text() == first


def test_layers_are_those_of_the_encoders(module):
    found = module.encoders()
    # The layers of all tokens are those that Lite-M2F's own order says.
    steps, _ = found["Lite-M2F (2+1)×3"]
    order = InterleavingArguments(6, 3, 2, key_aware=True, small_ffn=True)
    assert [len(step.updated) == 3 for step in steps] == order.updates_all
    steps, _ = found["PRO-SCALE (3,3,3)"]
    assert [len(step.read) for step in steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
