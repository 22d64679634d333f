"""Naming schemes as tables of rules, read in either direction.

A rule says which tensors of this project hold the same numbers as which tensors of another scheme.
Where one side keeps in one tensor what the other splits (queries, keys and values), a rule has
several names on that side: their tensors are concatenated along the first dimension.

Names are templates. ``{stage}`` and ``{block}`` stand for numbers from 0, ``{stage+1}`` and
``{stage+2}`` for the same numbers counted from 1 and from 2, ``{tensor}`` for what a module calls
its tensors. A prefix in brackets may be missing when names are read.

A tensor that one side has and the other makes do without, because it follows from another one, is
implied: made on the way to that side, left out on the way from it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_TENSORS = "weight|bias|running_mean|running_var|num_batches_tracked"
_PLACEHOLDER = re.compile(r"\{(\w+)(?:\+(\d))?\}")
_OPTIONAL = re.compile(r"^\[([^]]*)\]")

State = Mapping[str, Tensor]


class Template:
    """The names of one kind of tensor."""

    def __init__(self, text: str):
        self._text = text
        optional = _OPTIONAL.match(text)
        rest = text[optional.end() :] if optional else text
        pieces, end = [f"(?:{re.escape(optional[1])})?" if optional else ""], 0
        for placeholder in _PLACEHOLDER.finditer(rest):
            pattern = _TENSORS if placeholder[1] == "tensor" else r"\d+"
            pieces += [
                re.escape(rest[end : placeholder.start()]),
                f"(?P<{placeholder[1]}>{pattern})",
            ]
            end = placeholder.end()
        self._pattern = re.compile("".join(pieces) + re.escape(rest[end:]))
        self._first = {name: int(first) for name, first in _PLACEHOLDER.findall(rest) if first}

    def match(self, name: str) -> dict[str, str] | None:
        """What the placeholders stand for in ``name``; None if it is another kind of name."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        return {
            key: str(int(value) - self._first[key]) if key in self._first else value
            for key, value in match.groupdict().items()
        }

    def fill(self, values: Mapping[str, str], *, with_prefix: bool) -> str:
        """The name with ``values`` for the placeholders."""
        text = _OPTIONAL.sub(r"\1" if with_prefix else "", self._text)
        return _PLACEHOLDER.sub(
            lambda key: str(int(values[key[1]]) + int(key[2])) if key[2] else values[key[1]], text
        )


@dataclass(frozen=True)
class Part:
    """Tensors of one template, and how much of the concatenation they are."""

    template: str
    share: int = 1

    @cached_property
    def names(self) -> Template:
        return Template(self.template)


@dataclass(frozen=True)
class Rule:
    """The same numbers under both schemes' names.

    Attributes:
        ours, theirs: the parts on either side, in the order of the concatenation.
        to_ours, to_theirs: applied to the whole tensor, where shapes or orders differ.
    """

    ours: tuple[Part, ...]
    theirs: tuple[Part, ...]
    to_ours: Callable[[Tensor], Tensor] = lambda tensor: tensor
    to_theirs: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Implied:
    """A tensor that follows from another one of the same side.

    Attributes:
        template, source: its name and the other's, with the same placeholders.
        make: from the other tensor.
    """

    template: str
    source: str
    make: Callable[[Tensor], Tensor]

    @cached_property
    def names(self) -> Template:
        return Template(self.template)

    @cached_property
    def sources(self) -> Template:
        return Template(self.source)


@dataclass(frozen=True)
class Scheme:
    """A naming scheme.

    Attributes:
        marks: templates; a name of one of them is in every checkpoint of the scheme and in no
            other's.
        rules: in any order.
        container: the key of its ``.pth`` files below which the tensors are; None at the top.
        settings: configuration that models with such weights were trained with, by key.
        implied_ours, implied_theirs: tensors that only this project, or only the scheme, has.
    """

    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    container: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    implied_ours: tuple[Implied, ...] = ()
    implied_theirs: tuple[Implied, ...] = ()

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether ``names`` are this scheme's."""
        marks = [Template(mark) for mark in self.marks]
        return any(mark.match(name) is not None for name in names for mark in marks)

    def to_ours(self, state: State) -> tuple[dict[str, Tensor], list[str]]:
        """``state`` under this project's names, and the names that no rule has."""
        steps = [(rule.theirs, rule.ours, rule.to_ours) for rule in self.rules]
        translated, left = _apply(state, steps, with_prefix=True)
        _add(translated, self.implied_ours)
        return translated, _without(left, self.implied_theirs)

    def from_ours(self, state: State, *, with_prefix: bool) -> tuple[dict[str, Tensor], list[str]]:
        """The reverse; ``with_prefix`` writes the prefixes that may be missing."""
        steps = [(rule.ours, rule.theirs, rule.to_theirs) for rule in self.rules]
        translated, left = _apply(state, steps, with_prefix=with_prefix)
        _add(translated, self.implied_theirs)
        return translated, _without(left, self.implied_ours)


def rename(ours: str, theirs: str, **functions: Callable[[Tensor], Tensor]) -> Rule:
    """A rule of one name on each side."""
    return Rule((Part(ours),), (Part(theirs),), **functions)


def as_linear(tensor: Tensor) -> Tensor:
    """The weight of a 1×1 convolution as that of a linear layer; others as they are."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def as_convolution(tensor: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1×1 convolution; others as they are."""
    return tensor[..., None, None] if tensor.ndim == 2 else tensor


def reverse_stages(tensor: Tensor) -> Tensor:
    """``(C, 4·C, 1, 1)``: the input's four blocks of channels in reverse."""
    return torch.cat(tensor.chunk(4, dim=1)[::-1], dim=1)


def _add(state: dict[str, Tensor], implied: tuple[Implied, ...]) -> None:
    for kind in implied:
        for name in list(state):
            values = kind.sources.match(name)
            if values is not None:
                state[kind.names.fill(values, with_prefix=True)] = kind.make(state[name])


def _without(names: list[str], implied: tuple[Implied, ...]) -> list[str]:
    return [name for name in names if all(kind.names.match(name) is None for kind in implied)]


def _apply(
    state: State,
    steps: list[tuple[tuple[Part, ...], tuple[Part, ...], Callable[[Tensor], Tensor]]],
    *,
    with_prefix: bool,
) -> tuple[dict[str, Tensor], list[str]]:
    translated: dict[str, Tensor] = {}
    used: set[str] = set()
    for sources, targets, function in steps:
        found: dict[tuple, dict[int, str]] = {}
        for name in state:
            for i, part in enumerate(sources):
                values = part.names.match(name)
                if values is not None:
                    found.setdefault(tuple(sorted(values.items())), {})[i] = name
        for values, names in found.items():
            if len(names) < len(sources):
                continue
            used.update(names.values())
            tensors = [torch.as_tensor(state[names[i]]) for i in range(len(sources))]
            whole = function(torch.cat(tensors) if len(tensors) > 1 else tensors[0])
            for part, tensor in zip(targets, _split(whole, targets), strict=True):
                translated[part.names.fill(dict(values), with_prefix=with_prefix)] = tensor
    return translated, [name for name in state if name not in used]


def _split(tensor: Tensor, parts: tuple[Part, ...]) -> list[Tensor]:
    if len(parts) == 1:
        return [tensor]
    unit = len(tensor) // sum(part.share for part in parts)
    # Copies, because files hold every tensor by itself.
    return [piece.clone() for piece in tensor.split([unit * part.share for part in parts])]
