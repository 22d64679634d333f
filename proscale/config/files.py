"""Reads configuration files: YAML on ``_BASE_`` files, and nothing that is written there is run.

Detectron2 makes whatever Python object a tag such as ``!!python/object/apply:os.system`` names.
Published files need that for one form of list only, which is computed here.
"""

import difflib
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from proscale.errors import ConfigError

MAX_NODES = 100_000
"""Values that a file may have once its aliases are replaced by what they stand for."""

# The installed package carries the configurations; in a checkout they are beside it.
_CONFIGS = Path(__file__).parents[1] / "configs"
if not _CONFIGS.is_dir():
    _CONFIGS = Path(__file__).parents[2] / "configs"

logger = logging.getLogger(__name__)


def find_config(name: str) -> str:
    """The path of a configuration file.

    Args:
        name: a path, a URL, or the name of a file of this project, such as
            ``coco/panoptic/proscale_r50_333``, with or without ``configs/`` and ``.yaml``.

    Raises:
        ConfigError: there is no such file; names the nearest of this project.
    """
    path = os.path.expanduser(name)
    if "://" in name or os.path.exists(path):
        return path
    known, wanted = _configs(), _short(name)
    if wanted in known:
        return str(known[wanted])
    nearest = ", ".join(difflib.get_close_matches(wanted, known))
    hint = f"; nearest are {nearest}" if nearest else ""
    raise ConfigError(f"there is no configuration file {name}{hint}")


def _configs() -> dict[str, Path]:
    """The files of this project, by their names."""
    return {str(f.relative_to(_CONFIGS).with_suffix("")): f for f in _CONFIGS.rglob("*.yaml")}


def _short(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".yaml")


def load_config_file(path: str, derived: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a YAML file on top of that of its ``_BASE_`` files, which are relative to its
    folder, or names as :func:`find_config` takes them; ``derived`` are the files based on it.

    Raises:
        ConfigError: see :func:`read_config_file`; or files are based on each other in a circle.
    """
    content, bases = read_config_file(path)
    merged: dict[str, Any] = {}
    chain = [*derived, path]
    for base in bases:
        # Links and different spellings of a path are the same file.
        if os.path.realpath(base) in map(os.path.realpath, chain):
            circle = " -> ".join([*chain, base])
            raise ConfigError(f"{path}: {BASE_KEY} leads in a circle: {circle}")
        if "://" not in base and not os.path.isfile(base):
            raise ConfigError(f"{path}: {BASE_KEY} is {base}, but there is no such file")
        # Later bases take precedence over earlier ones, and the file itself over all.
        _merge(load_config_file(base, chain), merged)
    _merge(content, merged)
    return merged


def read_config_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """The content of a YAML file without its ``_BASE_``, and the paths of these files.

    A key that is there twice is reported by a warning; the last counts.

    Raises:
        ConfigError: there is no such file, or it is no YAML of blocks and plain values; the
            message has the line where there is one.
    """
    try:
        with PathManager.open(os.path.expanduser(path), "r") as file:
            loader = _Loader(file.read())
        loader.path = path
        # Nodes first: small files may describe huge values by aliases of aliases.
        root = loader.get_single_node()
        if root is not None and _count_nodes(root, {}) > MAX_NODES:
            raise ConfigError(f"{path}: its aliases stand for more than {MAX_NODES} values")
        content = {} if root is None else loader.construct_document(root)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable YAML file ({reason})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: it holds {content!r}: expected keys with values")
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} is {bases!r}: expected names of files")
    for i, base in enumerate(bases):
        if "://" not in base:
            beside = os.path.join(os.path.dirname(path), os.path.expanduser(base))
            is_beside = os.path.exists(beside)
            bases[i] = beside if is_beside else str(_configs().get(_short(base), beside))
    return content, bases


def _merge(upper: Mapping[str, Any], lower: dict[str, Any]) -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            _merge(value, lower[key])
        else:
            lower[key] = value


def _count_nodes(node: yaml.Node, counts: dict[int, float]) -> float:
    """How many nodes there are with aliases written out; infinite if one stands for itself."""
    if id(node) not in counts:
        # The value while the children are counted, and so of a node among its own descendants.
        counts[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    path = ""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            line = key.start_mark.line + 1
            # <<: merges another mapping; it is no key.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(self.construct_object(key, deep=True), str):
                raise ConfigError(f"{self.path}, line {line}: {key.value!r} is no name of a key")
            if names.count(key.value) > 1:
                logger.warning("%s, line %d: %s is there twice", self.path, line, key.value)
        return super().construct_mapping(node, deep=deep)


_PUBLISHED = re.compile(r"\[int\(x \* ([\d.]+) \* (\d+)\) for x in range\((\d+), (\d+)\)\]")


def _construct_eval(loader: _Loader, node: yaml.Node) -> list[int]:
    """The list of sizes in published files: [int(x * 0.1 * 640) for x in range(5, 21)]."""
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    found = _PUBLISHED.fullmatch(str(arguments[0])) if len(arguments) == 1 else None
    if found is None:
        return _refuse_tag(loader, "object/apply:eval", node)
    factor, size, first, end = float(found[1]), int(found[2]), int(found[3]), int(found[4])
    return [int(x * factor * size) for x in range(first, min(end, MAX_NODES))]


def _refuse_tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    raise ConfigError(
        f"{loader.path}, line {node.start_mark.line + 1}: the tag !!python/{suffix} is refused, "
        "because it runs code: expected plain values, and lists as in published files, "
        "[int(x * 0.1 * 640) for x in range(5, 21)]"
    )


# The longer tag takes precedence over the prefix.
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_eval)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _refuse_tag)
