"""docs/configuration.md says what proscale/config/keys.py says."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from proscale import add_proscale_config

SOURCE = """
class _Model(Keys, node="MODEL"):
    DEPTH: int
    SIZE: int = 4
    '''Side of a patch.'''

class _Part(Keys, node="MODEL.PART"):
    WIDTH: int = 1
    HEIGHT: int = 2
    '''Width and height
    of a part.'''

class _Test(Keys, node="TEST"):
    KIND: str = "a"
    '''``a`` | b.'''
"""


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("configuration_reference")


def test_page_is_up_to_date(tool):
    assert tool.PAGE.read_text() == tool.make_page(), (
        "run `python tools/configuration_reference.py`"
    )


def test_page_has_every_key(tool):
    """Also those that are added in another way than by a declaration."""
    before, after = get_cfg(), get_cfg()
    add_deeplab_config(before)
    add_proscale_config(after)
    explained = {key for group in tool.read_groups(tool.SOURCE.read_text()) for key in group.keys}
    assert keys(after) - keys(before) <= explained <= keys(after)


def keys(node: CfgNode, prefix: str = "") -> set[str]:
    found = set()
    for name, value in node.items():
        path = f"{prefix}{name}"
        found |= keys(value, f"{path}.") if isinstance(value, CfgNode) else {path}
    return found


def test_a_text_explains_the_keys_above_it(tool):
    groups = tool.read_groups(SOURCE)
    assert [(group.keys, group.meaning) for group in groups] == [
        (("MODEL.SIZE",), "Side of a patch."),
        (("MODEL.PART.WIDTH", "MODEL.PART.HEIGHT"), "Width and height of a part."),
        (("TEST.KIND",), "``a`` | b."),
    ]
    cfg = CfgNode({"MODEL": {"SIZE": 4, "PART": {"WIDTH": 1, "HEIGHT": 2}}, "TEST": {"KIND": "a"}})
    page = tool.write_page(groups, cfg)
    assert "| `WIDTH`<br>`HEIGHT` | `1`<br>`2` | Width and height of a part. |" in page
    assert "| `KIND` | `'a'` | `a` \\| b. |" in page


def test_a_key_without_text_is_refused(tool):
    with pytest.raises(ValueError, match=r"no text explains MODEL\.SIZE"):
        tool.read_groups("class _Model(Keys, node='MODEL'):\n    SIZE: int = 4\n")
