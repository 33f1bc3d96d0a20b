"""Joins the metrics of several servers into one exposition, with a ``server`` label on every sample.

Read are Prometheus' text format 0.0.4 and OpenMetrics 1.0; written is 0.0.4, in which every scraper understands both.
A server's text is taken whole or not at all, as Prometheus does: half a histogram would be wrong without saying so.
Everything is done in steps, because a fleet's metrics are megabytes.

Sources: the exposition formats at prometheus.io/docs/instrumenting/exposition_formats and
github.com/prometheus/OpenMetrics; ``exported_`` as in Prometheus' ``honor_labels: false``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import isfinite

import msgspec

#: the media type of what is written
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: the label that names the server; a server's own label of this name gets the prefix
LABEL, PREFIX = "server", "exported_"
#: tells of each server whether its metrics are here
SCRAPE_UP = "vllm_passthrough_upstream_scrape_up"
SCRAPE_UP_HELP = "Whether the metrics of this server could be read."
#: lines in one step, which take about a millisecond
LINES_IN_STEP = 100

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"(?:[^"\\\n]++|\\[\\"n])*+"'
_NUMBER = r"[+-]?(?:(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|[Ii]nf|[Nn]a[Nn])"
_SAMPLE = re.compile(
    rf"({_NAME})[ \t]*+(?:\{{[ \t]*+({_LABEL}(?:[ \t]*+,[ \t]*+{_LABEL})*+)?[ \t]*+,?[ \t]*+\}})?[ \t]*+"
    rf"({_NUMBER})(?:[ \t]++(-?[0-9][0-9.eE+-]{{0,30}}+))?[ \t]*+(#.*)?",
    re.ASCII,
)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\\n]++|\\[\\"n])*+)"', re.ASCII)
_ABOUT = re.compile(rf"#[ \t]++(HELP|TYPE|UNIT)[ \t]++({_NAME})(?:[ \t]++(.*))?", re.ASCII)
_BAD_ESCAPE = re.compile(r"\\(?:([\\n])|(?=(.?)))")

#: the ends of the names of a family's samples, by its type
_SUFFIXES = {
    "counter": ("",),
    "gauge": ("",),
    "untyped": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
}
#: likewise in OpenMetrics, with the type in 0.0.4 of what is a family of its own there; None for a part of the family
_OPEN_SUFFIXES: dict[str, dict[str, str | None]] = {
    "counter": {"_total": "counter", "_created": "gauge"},
    "gauge": {"": None},
    "unknown": {"": None},
    "info": {"_info": "gauge"},
    "stateset": {"": None},
    "histogram": {"_bucket": None, "_sum": None, "_count": None, "_created": "gauge"},
    "summary": {"": None, "_sum": None, "_count": None, "_created": "gauge"},
    "gaugehistogram": {"_bucket": "gauge", "_gsum": "gauge", "_gcount": "gauge"},
}
#: the types of 0.0.4 for those of OpenMetrics that it lacks
_PLAIN_TYPES = {"unknown": "untyped", "stateset": "gauge"}
#: the endings to cut when the family of a sample is looked for, the empty one first
_ENDINGS = ("", "_bucket", "_sum", "_count", "_created", "_total", "_info", "_gsum", "_gcount")

_Identity = frozenset[tuple[str, str]]


class Unreadable(Exception):
    """A server's text is no valid exposition. The message says what is wrong."""


class Family(msgspec.Struct, gc=False):
    """The samples of one metric of one server, ready to be written.

    Attributes:
        name: its name in 0.0.4.
        kind: its type there.
        help: its help text, escaped.
        lines: its samples in their order, each a line without its end.
        names: the names of its samples.
    """

    name: str
    kind: str
    help: str = ""
    lines: list[str] = msgspec.field(default_factory=list)
    names: set[str] = msgspec.field(default_factory=set)


class Exposition:
    """The metrics of one server."""

    def __init__(self, server: str, *, is_open: bool = False) -> None:
        """Start without a metric.

        Args:
            server: the server's name.
            is_open: whether the text is OpenMetrics.
        """
        self.families: dict[str, Family] = {}
        self._label = f'{LABEL}="{escaped(server)}"'
        self._is_open = is_open
        # the types and help texts of the server's own families
        self._kinds: dict[str, str] = {}
        self._help: dict[str, str] = {}
        # the family of each name of a sample
        self._found: dict[str, tuple[Family, set[_Identity]]] = {}
        self._ended = False

    def read(self, text: bytes) -> Iterator[None]:
        """Read a whole text, in steps.

        Raises:
            Unreadable: it is not valid. The families are then of no use.
        """
        try:
            lines = text.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise Unreadable("it is not UTF-8") from None
        for number, line in enumerate(lines, 1):
            if number % LINES_IN_STEP == 0:
                yield
            try:
                self._line(line)
            except Unreadable as error:
                raise Unreadable(f"line {number}: {error}") from None
        if self._is_open and not self._ended:
            raise Unreadable("it ends without # EOF")

    def _line(self, line: str) -> None:
        if self._ended:
            if line:
                raise Unreadable("there is something after # EOF")
            return
        line = line.strip(" \t\r")
        if not line:
            return
        if line[0] == "#":
            if self._is_open and line == "# EOF":
                self._ended = True
                return
            about = _ABOUT.fullmatch(line)
            if about is not None:
                self._about(about[1], about[2], about[3] or "")
            return
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            raise Unreadable("it is no sample")
        name, labels, value, time, _ = sample.groups()
        found = self._found.get(name) or self._find(name)
        family, seen = found
        text, identity = self._labels(labels)
        if identity in seen:
            raise Unreadable("the same sample came before")
        seen.add(identity)
        family.lines.append(f"{name}{{{text}}} {value}{self._time(time)}")

    def _about(self, word: str, name: str, rest: str) -> None:
        if word == "HELP":
            self._help.setdefault(name, _mended(rest, is_open=self._is_open))
        elif word == "TYPE":
            kind = rest.strip()
            if kind not in (_OPEN_SUFFIXES if self._is_open else _SUFFIXES):
                raise Unreadable("the type is unknown")
            if self._kinds.setdefault(name, kind) != kind:
                raise Unreadable("the metric has two types")

    def _find(self, name: str) -> tuple[Family, set[_Identity]]:
        """Return the family that a sample belongs to, by its name."""
        own, kind, owner = name, "untyped", name
        for ending in _ENDINGS:
            owner = name.removesuffix(ending) if ending else name
            stated = self._kinds.get(owner)
            if stated is None or (ending and owner == name):
                continue
            if not self._is_open and ending in _SUFFIXES[stated]:
                own, kind = owner, stated
                break
            if self._is_open and ending in _OPEN_SUFFIXES[stated]:
                apart = _OPEN_SUFFIXES[stated][ending]
                own, kind = (owner, _PLAIN_TYPES.get(stated, stated)) if apart is None else (name, apart)
                break
        else:
            owner = name
        family = self.families.get(own)
        if family is None:
            family = self.families[own] = Family(own, kind, self._help.get(owner, ""))
        elif family.kind != kind:
            raise Unreadable("the metric has two types")
        family.names.add(name)
        found = self._found[name] = (family, {_OWN} if name == SCRAPE_UP else set())
        return found

    def _labels(self, text: str | None) -> tuple[str, _Identity]:
        """Return the labels of a sample with the server's, and what tells it from others."""
        if not text:
            return self._label, _OWN
        pairs: list[tuple[str, str]] = _PAIR.findall(text)
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            raise Unreadable("a label is there twice")
        if "__name__" in names:
            raise Unreadable("__name__ is no label")
        if LABEL in names:
            renamed = PREFIX + LABEL
            while renamed in names:
                renamed = PREFIX + renamed
            pairs = [(renamed if name == LABEL else name, value) for name, value in pairs]
        # a label without a value is none (prometheus.io/docs/concepts/data_model)
        identity = frozenset(pair for pair in pairs if pair[1])
        return ",".join([self._label, *(f'{name}="{value}"' for name, value in pairs)]), identity

    def _time(self, text: str | None) -> str:
        """Return a timestamp for 0.0.4, in milliseconds, with the space before it; OpenMetrics has seconds."""
        if text is None:
            return ""
        try:
            time = float(text) * 1000 if self._is_open else int(text)
        except ValueError:
            raise Unreadable("the timestamp is no number") from None
        if not isfinite(time) or abs(time) >= 2**63:
            raise Unreadable("the timestamp is too large")
        return f" {round(time)}"


#: what tells a sample without labels from others
_OWN: _Identity = frozenset()


def merged(servers: Iterable[tuple[str, Exposition | None]]) -> Iterator[bytes]:
    """Write the metrics of all servers as one exposition, in pieces.

    A metric has the type that its servers agree on. Where they do not, or where one name stands for samples of two
    metrics, what it names is untyped: a scraper refuses a text in which a metric has two types.

    Args:
        servers: the servers' names, each once, and what they exposed; None of a server that could not be read.

    Yields:
        Pieces of the exposition.
    """
    servers = tuple(servers)
    up = [f'{SCRAPE_UP}{{{LABEL}="{escaped(name)}"}} {int(found is not None)}' for name, found in servers]
    expositions = [found for _, found in servers if found is not None]
    own = Exposition("")
    own.families[SCRAPE_UP] = Family(SCRAPE_UP, "gauge", SCRAPE_UP_HELP, up, {SCRAPE_UP})
    everything = [own, *expositions]
    untyped = _in_conflict(everything)
    groups: dict[str, list[Family]] = {}
    for exposition in everything:
        for family in exposition.families.values():
            if family.name not in untyped:
                groups.setdefault(family.name, []).append(family)
                continue
            for name in sorted(family.names):
                lines = [line for line in family.lines if line.startswith(name + "{")]
                groups.setdefault(name, []).append(Family(name, "untyped", family.help, lines))
    for name, families in groups.items():
        yield _written(name, families).encode("utf-8")


def _written(name: str, families: list[Family]) -> str:
    text = next((family.help for family in families if family.help), "")
    head = [f"# HELP {name} {text}"] if text else []
    head.append(f"# TYPE {name} {families[0].kind}")
    return "\n".join([*head, *(line for family in families for line in family.lines), ""])


def _in_conflict(expositions: Iterable[Exposition]) -> frozenset[str]:
    """Return the names of the metrics that cannot keep their type."""
    owners: dict[str, set[tuple[str, str]]] = {}
    for exposition in expositions:
        for family in exposition.families.values():
            for name in (family.name, *family.names):
                owners.setdefault(name, set()).add((family.name, family.kind))
    return frozenset(name for found in owners.values() if len(found) > 1 for name, _ in found)


def escaped(value: str) -> str:
    """Return a label's value as it is written between quotation marks."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _mended(text: str, *, is_open: bool) -> str:
    """Return a help text with the two escapes that 0.0.4 has."""
    if "\\" not in text:
        return text
    if is_open:
        text = re.sub(r"\\(.)", lambda found: '"' if found[1] == '"' else found[0], text)
    return _BAD_ESCAPE.sub(lambda found: found[0] if found[1] else "\\\\", text)
