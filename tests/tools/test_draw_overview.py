"""The figure of README and docs/architecture.md can be drawn again."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "draw_overview.py"


def test_figure_is_drawn_from_the_formula(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_overview", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "overview.svg"
    module.draw(file)
    first = file.read_text()
    # Text is drawn as outlines; matplotlib leaves it in comments.
    for text in ("Mask2Former", "50% of the cost", "22% of the cost"):
        assert f"<!-- {text} -->" in first, text
    module.draw(file)
    assert file.read_text() == first
