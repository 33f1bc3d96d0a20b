"""What is known of the gateway at one moment, and what is wrong with it: plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from prometheus_client.metrics_core import Metric

from twisted_vllm.observability.metrics.names import PREFIX
from twisted_vllm.ratelimit.used_budget import UsedBudget

Severity = Literal["critical", "warning", "info"]
SubjectType = Literal[
    "server",
    "model",
    "budget",
    "certificate",
    "database",
    "ledger",
    "disk",
    "limits",
    "delivery",
    "log",
    "export",
    "process",
    "configuration",
    "requests",
]

#: the values of the labels of a sample, by their names
Labels = Mapping[str, str]


class Problem(msgspec.Struct, kw_only=True, frozen=True):
    """Something that is wrong now."""

    code: Annotated[str, msgspec.Meta(description="What kind of problem it is.")]
    severity: Annotated[
        Severity,
        msgspec.Meta(
            description="critical: clients get errors now, or data is lost. warning: look today. info: worth knowing."
        ),
    ]
    subject_type: Annotated[SubjectType, msgspec.Meta(description="What is concerned.")]
    subject: Annotated[str, msgspec.Meta(description="Its name or id; empty if there is only one of it.")]
    message: Annotated[str, msgspec.Meta(description="What is wrong.")]
    advice: Annotated[str, msgspec.Meta(description="What to do.")]
    since: Annotated[datetime | None, msgspec.Meta(description="Since when; null if that is not known.")]
    runbook: Annotated[str, msgspec.Meta(description="The section of the documents about it; empty without one.")]


class ProblemsReport(msgspec.Struct, kw_only=True):
    """What is wrong now."""

    problems: Annotated[list[Problem], msgspec.Meta(description="The gravest first, then the newest.")]
    looked_at: Annotated[datetime, msgspec.Meta(description="When the gateway looked.")]
    watched_since: Annotated[
        datetime, msgspec.Meta(description="Since when it looks: what began before may seem to begin then.")
    ]


class Found(msgspec.Struct, frozen=True, gc=False):
    """A problem that a rule found.

    Attributes:
        code, severity, subject_type, subject, message, advice: as in `Problem`.
        alert: the alert for Prometheus that says the same; empty without one.
        since: since when, in Unix seconds; None if what is known does not say so.
        hold: it is a problem once it was found for so many seconds.
    """

    code: str
    severity: Severity
    subject_type: SubjectType
    subject: str
    message: str
    advice: str
    alert: str = ""
    since: float | None = None
    hold: float = 0.0


class ServerFact(msgspec.Struct, frozen=True, gc=False):
    """A server.

    Attributes:
        name: its name.
        models: the names of the models that it serves; of the default server, an empty one.
        state: of its breaker, or ``sleeping``.
        reason: why it is in this state.
        since: since when, in Unix seconds.
    """

    name: str
    models: Sequence[str]
    state: str
    reason: str
    since: float


class DiskFact(msgspec.Struct, frozen=True, gc=False):
    """The disk of a directory.

    Attributes:
        use: what is there, in words.
        free: bytes that the gateway may still use.
        total: all bytes.
    """

    use: str
    free: int
    total: int


class Figures:
    """The gauges and counters of the gateway, of all its processes."""

    def __init__(self, families: Iterable[Metric], wanted: frozenset[str]) -> None:
        """Keep what rules look at.

        Args:
            families: the families, with the names that administrators see.
            wanted: the names of those to keep, without what all begin with.
        """
        self._samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in families:
            name = family.name.removeprefix(f"{PREFIX}_")
            if name in wanted:
                shown = (family.name, f"{family.name}_total")
                self._samples[name] = [(each.labels, each.value) for each in family.samples if each.name in shown]

    def of(self, name: str) -> Iterator[tuple[Labels, float]]:
        """Yield the samples of a family; none if the gateway has not the component."""
        yield from self._samples.get(name, ())

    def value(self, name: str) -> float | None:
        """Return the value of a family without labels; None if there is none."""
        return next((value for _, value in self.of(name)), None)


class Facts(msgspec.Struct, frozen=True):
    """What is known at one moment.

    Attributes:
        now: the time, in Unix seconds.
        figures: the metrics of all processes.
        servers: the servers.
        budgets: the budgets that are used most.
        disks: the disks that the gateway writes to.
        file_is_lost: whether the database's file was removed or replaced.
    """

    now: float
    figures: Figures
    servers: Sequence[ServerFact] = ()
    budgets: Sequence[UsedBudget] = ()
    disks: Sequence[DiskFact] = ()
    file_is_lost: bool = False
