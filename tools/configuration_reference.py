"""Write docs/configuration.md from the declarations in proscale/config/keys.py.

Run it after a change there: ``python tools/configuration_reference.py``. A test holds the page
against the declarations. A text there explains the keys between it and the text before.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from proscale.config.schema import add_proscale_config, value_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "proscale" / "config" / "keys.py"
PAGE = ROOT / "docs" / "configuration.md"

_HEAD = """# Configuration keys

Made by `tools/configuration_reference.py` from the declarations in
[proscale/config/keys.py](../proscale/config/keys.py). These keys come on top of
[Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references);
keys that Mask2Former and PRO-SCALE published have their names and defaults, those marked “New” are
this project's. Give them in a YAML file or as `KEY VALUE` pairs behind a command.
"""


@dataclass(frozen=True)
class Group:
    """Keys that one text explains."""

    keys: tuple[str, ...]
    meaning: str


def read_groups(source: str) -> list[Group]:
    """The groups of a module whose classes are blocks of keys.

    Args:
        source: of the module.

    Raises:
        ValueError: naming a key with a default that no text explains.
    """
    groups: list[Group] = []
    for block in ast.parse(source).body:
        # Blocks of keys state their node: class _Input(Keys, node="INPUT").
        if not isinstance(block, ast.ClassDef) or not block.keywords:
            continue
        node = ast.literal_eval(block.keywords[0].value)
        keys: list[str] = []
        for statement in block.body:
            # Detectron2's keys have no default; its own documentation explains them.
            if isinstance(statement, ast.AnnAssign) and statement.value:
                keys.append(f"{node}.{ast.unparse(statement.target)}")
            elif isinstance(statement, ast.Expr) and keys:
                meaning = " ".join(ast.literal_eval(statement.value).split())
                groups.append(Group(tuple(keys), meaning))
                keys = []
        if keys:
            raise ValueError(f"no text explains {', '.join(keys)}")
    return groups


def write_page(groups: list[Group], cfg: CfgNode) -> str:
    """The page, with the defaults that ``cfg`` has: a table for each node."""
    sections: dict[str, list[str]] = {}
    for group in groups:
        node = group.keys[0].rpartition(".")[0]
        names = "<br>".join(f"`{key.removeprefix(node + '.')}`" for key in group.keys)
        defaults = "<br>".join(f"`{value_of(cfg, key)!r}`" for key in group.keys)
        meaning = group.meaning.replace("``", "`").replace("|", "\\|")
        rows = sections.setdefault(node, ["| key | default | meaning |", "|:--|:--|:--|"])
        rows.append(f"| {names} | {defaults} | {meaning} |")
    tables = (f"## {node}\n\n" + "\n".join(rows) for node, rows in sorted(sections.items()))
    return "\n".join((_HEAD, "\n\n".join(tables), ""))


def make_page() -> str:
    """The page as it should be."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    return write_page(read_groups(SOURCE.read_text()), cfg)


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(PAGE)
