"""The families of one process as a message to others, and how those of several become one gateway's.

Nothing here needs `prometheus_client`: the supervisor has it not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Literal

import msgspec

from twisted_vllm.observability.metrics.rules import GROWING, Rule, rule_of

#: values of labels that name nobody
NO_NAMES = frozenset({"", "other"})
#: the labels whose values strangers get as numbers
NAMED = ("model", "server", "listener")
#: the label that tells processes apart
PROCESS = "process"
#: the most rows of a family to keep of processes that have ended; the oldest are forgotten
MOST_ROWS = 10_000

#: the values of labels, the place of its bounds in the family, and its numbers
Row = tuple[tuple[str, ...], int, list[float]]


class Family(msgspec.Struct, array_like=True, gc=False):
    """A family of samples.

    Attributes:
        name: its name, without ``_total``.
        documentation: its text of help.
        kind: its type.
        is_open: whether strangers get it.
        form: ``numbers``, rows with the values of `labels` and one number each; ``histograms``, with a count for each
            bound, cumulative, and the sum; ``samples``, with the name of the sample and its labels, each followed by
            its value, and one number.
        labels: the names of the labels; of ``samples`` none.
        rows: the rows.
        bounds: the upper bounds of histograms, as they are written; each row has some of these.
    """

    name: str
    documentation: str
    kind: str
    is_open: bool
    form: Literal["numbers", "histograms", "samples"]
    labels: tuple[str, ...]
    rows: list[Row]
    bounds: list[tuple[str, ...]] = []


class Part(msgspec.Struct, array_like=True, gc=False):
    """The families of one process.

    Attributes:
        process: its name; empty for all that have ended.
        families: its families.
        is_current: whether they are what the process has now. If not, only what grows counts.
    """

    process: str
    families: list[Family]
    is_current: bool = True


class RawPart(msgspec.Struct, array_like=True, gc=False):
    """A `Part` whose families are encoded."""

    process: str
    families: msgspec.Raw
    is_current: bool = True


class _Merging:
    """A family that takes rows in."""

    def __init__(self, family: Family, rule: Rule) -> None:
        self.family = family
        self.rule = rule
        self.rows: dict[tuple[str, ...], tuple[tuple[str, ...], list[float]]] = {}

    def take(self, part: Part, family: Family) -> None:
        """Take the rows of a process in."""
        if family.form != self.family.form or (family.labels != self.family.labels and self.rule != Rule.PROCESS):
            # of another version: the first one counts
            return
        rows, rule = self.rows, self.rule
        for key, place, values in family.rows:
            bounds = family.bounds[place] if family.bounds else ()
            if rule == Rule.PROCESS:
                key = (*key, PROCESS, part.process) if family.form == "samples" else (*key, part.process)
            known = rows.get(key)
            if known is None:
                rows[key] = bounds, values
            elif known[0] == bounds and len(known[1]) == len(values):
                rows[key] = bounds, _combined(rule, family, key, known[1], values)
            elif part.is_current:
                rows[key] = _in_common(known, (bounds, values))

    def merged(self) -> Family:
        """Return the family with all rows."""
        family = self.family
        labels = family.labels
        if self.rule == Rule.PROCESS and family.form != "samples":
            labels = (*labels, PROCESS)
        bounds: dict[tuple[str, ...], int] = {}
        rows = [(key, bounds.setdefault(each, len(bounds)), values) for key, (each, values) in self.rows.items()]
        return Family(
            family.name, family.documentation, family.kind, family.is_open, family.form, labels, rows, list(bounds)
        )


def _combined(rule: Rule, family: Family, key: tuple[str, ...], one: list[float], other: list[float]) -> list[float]:
    if rule == Rule.MIN or (family.form == "samples" and key[0].endswith("_created")):
        return list(map(min, one, other))
    if rule == Rule.MAX:
        return list(map(max, one, other))
    return [a + b for a, b in zip(one, other, strict=True)]


def _in_common(
    one: tuple[tuple[str, ...], list[float]], other: tuple[tuple[str, ...], list[float]]
) -> tuple[tuple[str, ...], list[float]]:
    """Add two histograms whose bounds differ, with the bounds that both have: their counts are cumulative."""
    known = dict(zip(other[0], other[1], strict=False))
    both = [(bound, count + known[bound]) for bound, count in zip(one[0], one[1], strict=False) if bound in known]
    return tuple(bound for bound, _ in both), [*(count for _, count in both), one[1][-1] + other[1][-1]]


def merge(parts: Iterable[Part]) -> list[Family]:
    """Return the families of one gateway.

    Args:
        parts: those of its processes. Of families that one process says for all, the first part counts. Of two
            processes with one name, the later one's own figures are left out, those that add are not.
    """
    found: dict[str, _Merging] = {}
    names: set[str] = set()
    for part in parts:
        is_second = part.process in names
        names.add(part.process)
        for family in part.families:
            rule = rule_of(family.name, family.kind)
            if rule == Rule.PROCESS and is_second:
                continue
            if not part.is_current and not _grows(family, rule):
                continue
            merging = found.get(family.name)
            if merging is None:
                merging = found[family.name] = _Merging(family, rule)
            elif rule == Rule.FIRST:
                continue
            merging.take(part, family)
    return [merging.merged() for merging in found.values()]


def _grows(family: Family, rule: Rule) -> bool:
    """Return whether a family is part of the whole even if its process has ended."""
    return family.kind in GROWING and rule in (Rule.SUM, Rule.MAX)


def add_ended(ended: Sequence[Family], last: Sequence[Family]) -> list[Family]:
    """Return what processes that have ended counted.

    Args:
        ended: that of those before.
        last: what another one that has ended counted.
    """
    # the last one first, so that its bounds count
    merged = merge([Part("", list(last), is_current=False), Part("", list(ended), is_current=False)])
    for family in merged:
        family.rows = list(islice(family.rows, MOST_ROWS))
    return merged


def names_in(families: Iterable[Family]) -> list[tuple[str, str]]:
    """Return the labels and values that strangers must not learn, of the families that they get."""
    found: dict[tuple[str, str], None] = {}
    for family in families:
        if not family.is_open:
            continue
        if family.form == "samples":
            for key, _, _ in family.rows:
                pairs = zip(key[1::2], key[2::2], strict=True)
                found.update(((label, value), None) for label, value in pairs if label in NAMED)
        else:
            for place, label in enumerate(family.labels):
                if label in NAMED:
                    found.update(((label, key[place]), None) for key, _, _ in family.rows)
    return [(label, value) for label, value in found if value not in NO_NAMES]


def for_strangers(families: Iterable[Family], numbers: Mapping[tuple[str, str], str]) -> list[Family]:
    """Return the families that strangers get, with numbers in place of names.

    Args:
        families: all families.
        numbers: the numbers of the labels and values of `names_in`; what has none is left out.
    """
    found: list[Family] = []
    for family in families:
        if not family.is_open:
            continue
        labels = family.labels
        is_samples = family.form == "samples"
        if not is_samples and not any(label in NAMED for label in labels):
            found.append(family)
            continue
        rows: list[Row] = []
        for key, place, values in family.rows:
            named = zip(key[1::2], key[2::2], strict=True) if is_samples else zip(labels, key, strict=True)
            renamed = [(label, _number(label, value, numbers)) for label, value in named]
            if all(number is not None for _, number in renamed):
                pieces = [number for _, number in renamed if number is not None]
                if is_samples:
                    pieces = [key[0], *(piece for label, value in renamed for piece in (label, value or ""))]
                rows.append((tuple(pieces), place, values))
        found.append(
            Family(
                family.name,
                family.documentation,
                family.kind,
                is_open=True,
                form=family.form,
                labels=labels,
                rows=rows,
                bounds=family.bounds,
            )
        )
    return found


def _number(label: str, value: str, numbers: Mapping[tuple[str, str], str]) -> str | None:
    if label not in NAMED or value in NO_NAMES:
        return value
    return numbers.get((label, value))
