"""``MODEL.MIT.TOKEN_MERGING`` as merging methods: presets of SegFormer++ and stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from proscale.errors import ConfigError
from proscale.modeling.backbones.token_merging import (
    AveragePooling,
    BipartiteSoftMatching,
    Method,
    Unmerged,
)

STAGES = 4
NO_MERGING = "none"

TokenMerging: TypeAlias = str | Sequence[Mapping[str, object]] | None

# What follows ``q_`` or ``kv_``: by mode, the settings that it reads, all of them needed.
_SETTINGS = {"bsm": ("r", "sx", "sy"), "n2d": ("s",), "n1d": ("s",)}
_KEYS = [f"{side}_{name}" for side in ("q", "kv") for name in ("mode", "r", "sx", "sy", "s")]

# Stages 1 and 2 have few keys and values after reduction, and merge these further; stages 3 and 4
# merge queries.
_HQ_KEY_VALUE = {"kv_mode": "bsm", "kv_r": 0.6, "kv_sx": 2, "kv_sy": 2}
_HQ_QUERY = {"q_mode": "bsm", "q_r": 0.8, "q_sx": 4, "q_sy": 4}
_FAST_KEY_VALUE = {"kv_mode": "bsm", "kv_r": 0.9, "kv_sx": 4, "kv_sy": 4}
_FAST_QUERY = {"q_mode": "bsm", "q_r": 0.9, "q_sx": 4, "q_sy": 4}
#: Settings of the four stages by name (SegFormer++, §IV).
PRESETS: Mapping[str, Sequence[Mapping[str, object]]] = MappingProxyType(
    {
        NO_MERGING: ({},) * STAGES,
        "bsm_hq": (_HQ_KEY_VALUE, _HQ_KEY_VALUE, _HQ_QUERY, _HQ_QUERY),
        "bsm_fast": (_FAST_KEY_VALUE, _FAST_KEY_VALUE, _FAST_QUERY, _FAST_QUERY),
        "n2d_2x2": ({"q_mode": "n2d", "q_s": 2},) * STAGES,
    }
)


@dataclass(frozen=True)
class StageMerging:
    """What a stage does with the queries and with the keys and values of its attention."""

    query: Method
    key_value: Method


def parse_token_merging(value: TokenMerging) -> tuple[StageMerging, ...]:
    """The methods of the four stages.

    Args:
        value: a name of :data:`PRESETS`; None, which is ``none``; or a mapping for each stage. Its
            keys, for queries, are ``q_mode`` (``none``, None or absent: no merging) and the mode's
            settings; for keys and values the same with ``kv_``. ``bsm``: ``q_r``, fraction of the
            tokens to merge away, in [0, 1), and ``q_sx``, ``q_sy``, width and height of a cell,
            tokens. ``n2d``: ``q_s``, side of the window, tokens, or [rows, columns]. ``n1d``:
            ``q_s``, length of the window, tokens.

    Raises:
        ConfigError: naming the stage, from 1, the key, and what it accepts.
    """
    accepted = (
        f"token_merging is {value!r}: expected {', '.join(PRESETS)}, or a list with one dictionary "
        f"for each of the {STAGES} stages"
    )
    if value is None:
        value = NO_MERGING
    stages = PRESETS.get(value) if isinstance(value, str) else value
    if not isinstance(stages, Sequence) or len(stages) != STAGES:
        raise ConfigError(accepted)
    return tuple(
        _parse_stage(settings, f"token_merging, stage {number}")
        for number, settings in enumerate(stages, 1)
    )


def _parse_stage(settings: Mapping[str, object], where: str) -> StageMerging:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} is {settings!r}: expected a dictionary with keys of {_KEYS}")
    unknown = [key for key in settings if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where} has the unknown key {unknown[0]!r}: expected keys of {_KEYS}")
    # A setting of None is as good as absent.
    given = {key: value for key, value in settings.items() if value is not None}
    return StageMerging(
        query=_parse_method(given, "q_", where), key_value=_parse_method(given, "kv_", where)
    )


def _parse_method(given: Mapping[str, object], prefix: str, where: str) -> Method:
    """The method of one side, queries or keys and values."""
    # Beside the mode `none` other settings may stand unread.
    mode = given.get(f"{prefix}mode", NO_MERGING)
    if mode == NO_MERGING:
        return Unmerged()
    if not isinstance(mode, str) or mode not in _SETTINGS:
        raise ConfigError(
            f"{where}: {prefix}mode is {mode!r}: expected {', '.join((NO_MERGING, *_SETTINGS))}"
        )
    # Exactly the settings that the mode reads.
    names = [f"{prefix}{name}" for name in _SETTINGS[mode]]
    for name in names:
        if name not in given:
            raise ConfigError(f"{where}: {name} is missing: {prefix}mode {mode} needs {names}")
    for name in given:
        if name.startswith(prefix) and name not in (f"{prefix}mode", *names):
            raise ConfigError(
                f"{where}: {prefix}mode {mode} does not read {name}: it reads {names}"
            )

    values = {name.removeprefix(prefix): given[name] for name in names}
    if mode == "bsm":
        ratio = values["r"]
        if not isinstance(ratio, float | int) or isinstance(ratio, bool) or not 0 <= ratio < 1:
            raise ConfigError(f"{where}: {prefix}r is {ratio!r}: expected numbers in [0, 1)")
        height, width = (_whole(values[s], f"{where}: {prefix}{s}") for s in ("sy", "sx"))
        return BipartiteSoftMatching(ratio=float(ratio), cell=(height, width))
    name, stride = f"{where}: {prefix}s", values["s"]
    if mode == "n1d":
        return AveragePooling(window=(1, _whole(stride, name)), flat=True)
    if isinstance(stride, Sequence) and len(stride) == 2:
        return AveragePooling(window=(_whole(stride[0], name), _whole(stride[1], name)))
    side = _whole(stride, name, " or [rows, columns]")
    return AveragePooling(window=(side, side))


def _whole(value: object, name: str, alternative: str = "") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}: expected a whole number from 1{alternative}")
    return value
