"""The figure of README and docs/architecture.md can be drawn again."""


def test_figure_is_drawn_from_the_formula(load_tool, tmp_path):
    module = load_tool("draw_overview")
    file = tmp_path / "overview.svg"
    module.draw(file)
    first = file.read_text()
    # Text is drawn as outlines; matplotlib leaves it in comments.
    for text in ("Mask2Former", "50% of the cost", "22% of the cost"):
        assert f"<!-- {text} -->" in first, text
    module.draw(file)
    assert file.read_text() == first
