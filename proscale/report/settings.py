"""A run's configuration against the defaults."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import get_cfg

from proscale.config.files import read_config_file
from proscale.config.keys import add_proscale_config
from proscale.errors import ConfigError

_NONE = "–"


def changed_keys(config_file: Path) -> list[tuple[str, str, str]]:
    """(key, value, default) of all keys whose value is not the default, in the file's order; keys
    that this version does not have come with a dash. Nothing if the file cannot be read."""
    try:
        content, _ = read_config_file(str(config_file))
    except ConfigError:
        return []
    cfg = get_cfg()
    add_proscale_config(cfg)
    defaults = dict(_leaves(cfg))
    return [
        (key, _shown(value), _shown(defaults[key]) if key in defaults else _NONE)
        for key, value in _leaves(content)
        if key not in defaults or _plain(value) != _plain(defaults[key])
    ]


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    """Tuples as the lists that YAML makes of them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(_plain(value))
