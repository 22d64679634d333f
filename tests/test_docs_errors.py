"""The messages that docs/errors.md explains are those of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errors.md").read_text()
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Every text of the sources; parts of an f-string apart from each other."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "proscale").rglob("*.py")]
    return [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_there_are_enough():
    assert 12 <= len(MESSAGES) == len(set(MESSAGES))


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_in_the_sources(message, texts):
    fragments = [part.strip(" ,;:()") for part in message.split("…")]
    fragments = [part for part in fragments if len(part) > 3]
    assert fragments
    for fragment in fragments:
        assert any(fragment in text for text in texts), fragment
