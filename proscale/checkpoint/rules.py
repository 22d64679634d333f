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
from collections.abc import Callable, Mapping
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
    (r"\\\{(\w+)(?:\\\+\d)?\\\}", r"(?P<\1>0|[1-9][0-9]{0,3})"),
)


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

    def match(self, name: str) -> dict[str, str] | None:
        """The placeholders' values in ``name``, from 0; None if it is another kind of name."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        first = dict(_PLACEHOLDER.findall(self.text))
        return {
            key: value if key == "tensor" else str(int(value) - int(first[key] or 0))
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
        marks: one of them matches a name in every checkpoint of the scheme, none in any other's.
        rules: in any order.
        container: the key of its ``.pth`` files below which the tensors are; None at the top.
        settings: configuration that models with such weights were trained with, by key.
        implied_ours, implied_theirs: tensors that only this project, or only the scheme, has.
    """

    marks: tuple[Template, ...]
    rules: tuple[Rule, ...]
    container: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    implied_ours: tuple[Implied, ...] = ()
    implied_theirs: tuple[Implied, ...] = ()

    def translate(
        self, state: Mapping[str, Tensor], *, to_ours: bool, with_prefix: bool = True
    ) -> tuple[dict[str, Tensor], list[str]]:
        """``state`` under this project's names, or from these under the scheme's.

        ``with_prefix`` writes the prefixes that may be missing. Returns also the names that no rule
        has.
        """
        translated: dict[str, Tensor] = {}
        used: set[str] = set()
        for rule in self.rules:
            sources, targets, function = rule.theirs, rule.ours, rule.to_ours
            if not to_ours:
                sources, targets, function = rule.ours, rule.theirs, rule.to_theirs
            # The names of every part, by the values of the placeholders, which the parts share.
            found: dict[frozenset[tuple[str, str]], dict[int, str]] = {}
            for name in state:
                for i, source in enumerate(sources):
                    values = source.match(name)
                    if values is not None:
                        found.setdefault(frozenset(values.items()), {})[i] = name
            for key, names in found.items():
                # A part alone gives nothing: its tensors stay without a counterpart.
                if len(names) < len(sources):
                    continue
                used.update(names.values())
                # Concatenate the parts of this side, and split by those of the other.
                parts = [torch.as_tensor(state[names[i]]) for i in range(len(sources))]
                whole = function(torch.cat(parts) if len(parts) > 1 else parts[0])
                pieces = [whole]
                if len(targets) > 1:
                    # The length of queries, say, where keys and values together have two.
                    unit = len(whole) // sum(target.units for target in targets)
                    split = whole.split([unit * target.units for target in targets])
                    # Copies, because files hold every tensor by itself.
                    pieces = [piece.clone() for piece in split]
                for target, piece in zip(targets, pieces, strict=True):
                    translated[target.fill(dict(key), with_prefix=with_prefix)] = piece

        # Make the tensors that only the other side has, and leave out those of this side.
        made, dropped = self.implied_ours, self.implied_theirs
        if not to_ours:
            made, dropped = dropped, made
        translated |= {
            implied.template.fill(values): implied.make(tensor)
            for implied in made
            for name, tensor in translated.items()
            if (values := implied.source.match(name)) is not None
        }
        left = [
            name
            for name in state
            if name not in used and all(implied.template.match(name) is None for implied in dropped)
        ]
        return translated, left


def rename(ours: str, theirs: str) -> Rule:
    """A rule of one name on each side."""
    return Rule((Template(ours),), (Template(theirs),))


def rename_modules(
    ours: str, theirs: str, names: str, **functions: Callable[[Tensor], Tensor]
) -> tuple[Rule, ...]:
    """Rules of all tensors of modules.

    Args:
        ours, theirs: prefix of all names on either side.
        names: a word ``ours=theirs`` for each module, or its name if that is the same. Commas join
            the parts of a concatenation, ``*2`` gives a part's units. A name with ``{tensor}`` in
            it is a tensor's, others are modules'.
        functions: see :class:`Rule`.
    """

    def parts(prefix: str, joined: str) -> tuple[Template, ...]:
        found = []
        for part in joined.split(","):
            name, _, units = part.partition("*")
            text = name if "{tensor}" in name else f"{name}.{{tensor}}"
            found.append(Template(prefix + text, int(units or 1)))
        return tuple(found)

    pairs = (word.split("=") for word in names.split())
    return tuple(Rule(parts(ours, p[0]), parts(theirs, p[-1]), **functions) for p in pairs)
