"""Write docs/configuration.md from the comments in proscale/config/keys.py.

Run it after a change there: ``python tools/configuration_reference.py``. The comments are the one
place where keys are explained; a test holds the page against them. A comment belongs to the keys
below it, up to the next comment or empty line.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from proscale.config.keys import add_proscale_config
from proscale.config.schema import value_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "proscale" / "config" / "keys.py"
PAGE = ROOT / "docs" / "configuration.md"

_HEAD = """# Configuration keys

Made by `tools/configuration_reference.py` from the comments in
[proscale/config/keys.py](../proscale/config/keys.py). These keys come on top of
[Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references);
keys that Mask2Former and PRO-SCALE published have their names and defaults, those marked “New” are
this project's. Give them in a YAML file or as `KEY VALUE` pairs behind a command.
"""


@dataclass
class Group:
    """Keys that one comment explains."""

    comment: str
    keys: list[str] = field(default_factory=list)


def read_groups(source: str) -> list[Group]:
    """The groups of a module whose functions assign keys to ``cfg`` or to a ``node`` of it.

    Args:
        source: of the module.

    Raises:
        ValueError: naming a key that no comment explains.
    """
    lines = source.splitlines()
    groups: list[Group] = []
    for function in (f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)):
        nodes = {"cfg": ""}
        group = None
        previous = function.lineno
        for statement in function.body:
            comment = _comment(lines, statement)
            if comment or "" in map(str.strip, lines[previous : statement.lineno - 1]):
                group = None
            previous = statement.end_lineno
            group = group or Group(comment)
            for key in _keys(statement, nodes):
                if not group.comment:
                    raise ValueError(f"no comment explains {key} in line {statement.lineno}")
                group.keys.append(key)
            if group.keys and (not groups or groups[-1] is not group):
                groups.append(group)
    return groups


def _comment(lines: list[str], statement: ast.stmt) -> str:
    above = []
    for line in reversed(lines[: statement.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(above)


def _keys(statement: ast.stmt, nodes: dict[str, str]) -> list[str]:
    """The keys that a statement sets to a value; variables bound to a node join ``nodes``."""
    if not isinstance(statement, ast.Assign):
        return []
    dotted = [ast.unparse(target).split(".", 1) for target in statement.targets]
    if ast.unparse(statement.value) == "CfgNode()":
        path = next(_path(parts, nodes) for parts in dotted if len(parts) == 2)
        nodes.update({parts[0]: path for parts in dotted if len(parts) == 1})
        return []
    if len(dotted[0]) == 1:  # node = cfg.MODEL.X
        nodes[dotted[0][0]] = _path(ast.unparse(statement.value).split(".", 1), nodes)
        return []
    return [_path(parts, nodes) for parts in dotted]


def _path(parts: list[str], nodes: dict[str, str]) -> str:
    return f"{nodes[parts[0]]}.{parts[1]}".lstrip(".")


def write_page(groups: list[Group], cfg: CfgNode) -> str:
    """The page, with the defaults that ``cfg`` has: a table for each node."""
    sections: dict[str, list[str]] = {}
    for group in groups:
        node = group.keys[0].rpartition(".")[0]
        names = "<br>".join(f"`{key.removeprefix(node + '.')}`" for key in group.keys)
        defaults = "<br>".join(f"`{_default(cfg, key)}`" for key in group.keys)
        meaning = group.comment.replace("``", "`").replace("|", "\\|")
        rows = sections.setdefault(node, ["| key | default | meaning |", "|:--|:--|:--|"])
        rows.append(f"| {names} | {defaults} | {meaning} |")
    tables = (f"## {node}\n\n" + "\n".join(rows) for node, rows in sorted(sections.items()))
    return "\n".join((_HEAD, "\n\n".join(tables), ""))


def _default(cfg: CfgNode, key: str) -> str:
    return repr(value_of(cfg, key))


def make_page() -> str:
    """The page as it should be."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    return write_page(read_groups(SOURCE.read_text()), cfg)


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(PAGE)
