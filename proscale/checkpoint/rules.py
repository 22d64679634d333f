"""Naming schemes as tables of rules, read in either direction.

A rule says which tensors of this project hold the same numbers as which tensors of another scheme.
Where one side keeps in one tensor what the other splits (queries, keys and values), a rule has
several names on that side: their tensors are concatenated along the first dimension.

Names are templates. ``{stage}`` and ``{block}`` stand for numbers from 0, ``{stage+1}`` and
``{stage+2}`` for the same numbers counted from 1 and from 2, ``{tensor}`` for a module's own name
of a tensor, such as ``weight``. A prefix in brackets may be missing when names are read.

A tensor that only one side has, because it follows from another one, is implied: made on the way to
that side, left out on the way from it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_PLACEHOLDER = re.compile(r"\{(\w+)(?:\+(\d))?\}")
_OPTIONAL = re.compile(r"^\[([^]]*)\]")
# From an escaped template to a pattern: the prefix, the name of a tensor, the numbers.
_GROUPS = (
    (r"^\\\[(.*?)\\\]", r"(?:\1)?"),
    (r"\\\{tensor\\\}", "(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"),
    (r"\\\{(\w+)(?:\\\+\d)?\\\}", r"(?P<\1>\\d+)"),
)

Translation = tuple[dict[str, Tensor], list[str]]
"""Tensors under their new names, and the names that no rule has."""


@dataclass(frozen=True)
class Template:
    """The names of one kind of tensor.

    Attributes:
        text: see the module.
        units: length of its tensors in a concatenation, in units that all parts share.
    """

    text: str
    units: int = 1

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches whole names; its groups are the placeholders, counted as the names count."""
        # A named group for every placeholder, so that a match gives the values.
        escaped = re.escape(self.text)
        for pattern, group in _GROUPS:
            escaped = re.sub(pattern, group, escaped)
        return re.compile(escaped)

    @cached_property
    def _first(self) -> dict[str, int]:
        """The number that a placeholder's count starts from."""
        return {name: int(first or 0) for name, first in _PLACEHOLDER.findall(self.text)}

    def match(self, name: str) -> dict[str, str] | None:
        """The placeholders' values in ``name``, from 0; None if it is another kind of name."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        return {
            key: value if key == "tensor" else str(int(value) - self._first[key])
            for key, value in match.groupdict().items()
        }

    def fill(self, values: Mapping[str, str], *, with_prefix: bool = True) -> str:
        """The name with ``values`` for the placeholders."""
        text = _OPTIONAL.sub(r"\1" if with_prefix else "", self.text)
        return _PLACEHOLDER.sub(
            lambda key: str(int(values[key[1]]) + int(key[2])) if key[2] else values[key[1]], text
        )


@dataclass(frozen=True)
class Rule:
    """The same numbers under both schemes' names.

    Attributes:
        ours, theirs: the parts on either side, in the order of the concatenation.
        to_ours, to_theirs: applied to the concatenation, where shapes or orders differ.
    """

    ours: tuple[Template, ...]
    theirs: tuple[Template, ...]
    to_ours: Callable[[Tensor], Tensor] = lambda tensor: tensor
    to_theirs: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Implied:
    """A tensor that follows from another one of the same side.

    Attributes:
        template, source: its names and the other's, with the same placeholders.
        make: from the other tensor.
    """

    template: Template
    source: Template
    make: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NamingScheme:
    """A naming scheme.

    Attributes:
        mark: matches a name in every checkpoint of the scheme, and none in any other's.
        rules: in any order.
        container: the key of its ``.pth`` files below which the tensors are; None at the top.
        settings: configuration that models with such weights were trained with, by key.
        implied_ours, implied_theirs: tensors that only this project, or only the scheme, has.
    """

    mark: re.Pattern[str]
    rules: tuple[Rule, ...]
    container: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    implied_ours: tuple[Implied, ...] = ()
    implied_theirs: tuple[Implied, ...] = ()

    def to_ours(self, state: Mapping[str, Tensor]) -> Translation:
        """``state`` under this project's names."""
        steps = [(rule.theirs, rule.ours, rule.to_ours) for rule in self.rules]
        translated, left = _translate(state, steps, with_prefix=True)
        return _with_implied(translated, self.implied_ours), _without(left, self.implied_theirs)

    def from_ours(self, state: Mapping[str, Tensor], *, with_prefix: bool) -> Translation:
        """The reverse; ``with_prefix`` writes the prefixes that may be missing."""
        steps = [(rule.ours, rule.theirs, rule.to_theirs) for rule in self.rules]
        translated, left = _translate(state, steps, with_prefix=with_prefix)
        return _with_implied(translated, self.implied_theirs), _without(left, self.implied_ours)


def matching(*templates: str) -> re.Pattern[str]:
    """Matches the names of any of ``templates``."""
    patterns = (Template(text).pattern.pattern for text in templates)
    # Alternatives may not repeat names of groups.
    return re.compile("|".join(re.sub(r"\?P<\w+>", "", pattern) for pattern in patterns))


def rename(ours: str, theirs: str, **functions: Callable[[Tensor], Tensor]) -> Rule:
    """A rule of one name on each side."""
    return Rule((Template(ours),), (Template(theirs),), **functions)


def rename_modules(
    ours: str, theirs: str, names: str, **functions: Callable[[Tensor], Tensor]
) -> tuple[Rule, ...]:
    """Rules of all tensors of modules.

    Args:
        ours, theirs: prefix of all names on either side.
        names: a word ``ours=theirs`` for each module, or its name if that is the same.
        functions: see :class:`Rule`.
    """
    pairs = (word.split("=") for word in names.split())
    return tuple(
        rename(f"{ours}{pair[0]}.{{tensor}}", f"{theirs}{pair[-1]}.{{tensor}}", **functions)
        for pair in pairs
    )


def concatenate(ours: str, *theirs: str) -> Rule:
    """A rule of one name here that holds several of theirs, in order."""
    return Rule((Template(ours),), tuple(map(Template, theirs)))


def _translate(
    state: Mapping[str, Tensor],
    steps: Iterable[tuple[tuple[Template, ...], tuple[Template, ...], Callable[[Tensor], Tensor]]],
    *,
    with_prefix: bool,
) -> Translation:
    translated: dict[str, Tensor] = {}
    used: set[str] = set()
    for sources, targets, function in steps:
        # The names of every part, by the values of the placeholders, which the parts share.
        found: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
        for name in state:
            for i, source in enumerate(sources):
                values = source.match(name)
                if values is not None:
                    found.setdefault(tuple(sorted(values.items())), {})[i] = name
        for key, names in found.items():
            # A part alone gives nothing: its tensors stay without a counterpart.
            if len(names) < len(sources):
                continue
            used.update(names.values())
            tensors = [torch.as_tensor(state[names[i]]) for i in range(len(sources))]
            # Concatenate the parts of this side, and split by those of the other.
            whole = function(torch.cat(tensors) if len(tensors) > 1 else tensors[0])
            for target, tensor in zip(targets, _split(whole, targets), strict=True):
                translated[target.fill(dict(key), with_prefix=with_prefix)] = tensor
    return translated, [name for name in state if name not in used]


def _split(tensor: Tensor, parts: tuple[Template, ...]) -> list[Tensor]:
    if len(parts) == 1:
        return [tensor]
    # The length of queries, say, where keys and values together have two.
    unit = len(tensor) // sum(part.units for part in parts)
    # Copies, because files hold every tensor by itself.
    return [piece.clone() for piece in tensor.split([unit * part.units for part in parts])]


def _with_implied(state: dict[str, Tensor], implied: tuple[Implied, ...]) -> dict[str, Tensor]:
    made = {
        kind.template.fill(values): kind.make(tensor)
        for kind in implied
        for name, tensor in state.items()
        if (values := kind.source.match(name)) is not None
    }
    return state | made


def _without(names: list[str], implied: tuple[Implied, ...]) -> list[str]:
    return [name for name in names if all(kind.template.match(name) is None for kind in implied)]
