"""From a configuration file and overrides to a complete configuration.

Mistakes in them are found here, before any model or data is built, and told in one sentence that
names the file or key.
"""

import difflib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from proscale.config.files import find_config, load_config_file
from proscale.config.own_data import fit_to_own_data, keys_set_by_user
from proscale.config.schema import (
    add_proscale_config,
    check_values,
    convert,
    set_value,
    value_of,
)
from proscale.data.datasets.own import register_own_data
from proscale.errors import ConfigError


def setup_cfg(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Build the configuration of a command.

    ``MODEL.DEVICE``, where neither the file nor the overrides set it, is cuda if there is CUDA,
    else cpu, with a warning. ``DATASETS.OWN`` is registered in this process, and the keys that
    follow from it are set (:func:`~proscale.config.own_data.fit_to_own_data`).

    Args:
        config_file: YAML file, or its name (:func:`proscale.config.find_config`); the empty string
            takes the defaults.
        overrides: KEY VALUE pairs in a row, as on the command line.

    Returns:
        the frozen configuration.

    Raises:
        ConfigError: an unknown key (the nearest known ones are named), a value of the wrong type or
            out of range, a file that is missing, no YAML or runs code, a device that this machine
            does not have, or own data that are not described as accepted.
        DataError: files of own data are wrong.
    """
    # 1. Defaults of Detectron2 and of this project.
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.MODEL.DEVICE = ""
    # 2. The file on its bases.
    if config_file:
        config_file = find_config(config_file)
        content = load_config_file(config_file)
        # Detectron2 would convert keys of version 1, whose names are not known here.
        if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
            raise ConfigError(
                f"{config_file}: VERSION is {content['VERSION']}: expected {cfg.VERSION}, that of "
                "Detectron2's current keys"
            )
        try:
            _merge_block(cfg, content, cfg, "")
        except ConfigError as error:
            raise ConfigError(f"{config_file}: {error}") from error
    # Then the command line, in order, so that the last of several values of a key counts.
    if len(overrides) % 2:
        raise ConfigError(f"overrides are pairs of KEY VALUE; {overrides[-1]} is left over")
    keys = set(_keys(cfg))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key not in keys:
            raise ConfigError(_unknown_key(cfg, key))
        default = value_of(cfg, key)
        if isinstance(default, CfgNode):
            raise ConfigError(f"{key} is a block: expected its keys, {', '.join(default)}")
        set_value(cfg, key, convert(key, value, default))
    # 3. Keys that follow from the user's data, and the device of this machine.
    if cfg.DATASETS.OWN:
        datasets = register_own_data(cfg.DATASETS.OWN)
        fit_to_own_data(cfg, datasets, kept=keys_set_by_user(config_file, overrides))
    cfg.MODEL.DEVICE = _choose_device(cfg.MODEL.DEVICE)
    # 4. Values, each alone and together.
    check_values(cfg)
    cfg.freeze()
    return cfg


def check_datasets(names: Iterable[str], where: str = "") -> None:
    """Make sure that data sets are registered; ``where`` is the key that has them.

    Raises:
        ConfigError: one is not; names the nearest that are.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            place, nearest = f"{where}: " * bool(where), nearest_names(name, known)
            raise ConfigError(f"{place}there is no data set {name}; nearest are {nearest}")


def check_output_dir(cfg: CfgNode) -> None:
    """Make ``OUTPUT_DIR`` and sure that it can be written, before there is something to lose.

    Raises:
        ConfigError: it cannot.
    """
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        # Permissions do not tell whether a file system is read-only or full.
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except OSError as error:
        expected = f"expected a folder that can be written ({error.strerror})"
        raise ConfigError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}: {expected}") from error


@contextmanager
def built_from_keys() -> Iterator[None]:
    """Within it ValueErrors of constructors, about their arguments, are ConfigErrors."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def nearest_names(name: str, known: Iterable[str]) -> str:
    """The likely meaning of an unknown ``name``: the nearest of ``known``, else some of them."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name, known) or known[:5])


def _merge_block(cfg: CfgNode, content: Mapping[str, Any], node: CfgNode, prefix: str) -> None:
    """Set the keys of ``node``, which stands at ``prefix`` in ``cfg``, from a file's block."""
    for name, value in content.items():
        key = prefix + name
        if name not in node:
            raise ConfigError(_unknown_key(cfg, key))
        if not isinstance(node[name], CfgNode):
            node[name] = convert(key, value, node[name])
        elif isinstance(value, Mapping):
            _merge_block(cfg, value, node[name], f"{key}.")
        else:
            keys = ", ".join(node[name])
            raise ConfigError(f"{key} is {value!r}: expected a block of keys, {keys}")


def _unknown_key(cfg: CfgNode, key: str) -> str:
    keys, name = list(_keys(cfg)), key.rpartition(".")[2]
    # A key at the wrong place is likelier than a misspelt one.
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    nearest = ", ".join((elsewhere or difflib.get_close_matches(key, keys))[:3])
    return f"there is no config key {key}" + (f"; nearest are {nearest}" if nearest else "")


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Full names of all nodes and leaves below ``node``."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _choose_device(wanted: str) -> str:
    # Detectron2's default is cuda, which fails late on a machine without it.
    has_cuda = torch.cuda.is_available()
    if not wanted:
        if not has_cuda:
            logging.getLogger(__name__).warning("CUDA is not available: MODEL.DEVICE is cpu")
        return "cuda" if has_cuda else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {wanted!r}: expected cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not has_cuda:
        raise ConfigError(
            f"MODEL.DEVICE is {wanted}, but CUDA is not available; set MODEL.DEVICE cpu"
        )
    return wanted
