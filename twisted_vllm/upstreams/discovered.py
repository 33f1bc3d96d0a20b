"""Servers that a name stands for: which names to resolve, and what their answers make of the entries of ``model_list``.

An entry with ``discovery`` names a service. Each address in its answer is a server of its own, with its own health,
requests in flight and prefix cache, and each has an entry of its own in place of the service's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import msgspec

from twisted_vllm.config.servers import SRV
from twisted_vllm.config.settings import ModelEntry, Server

#: seconds between two look-ups of a name, whatever DNS says
SHORTEST = 1.0

#: Empty answers one after the other that mean that a service has no servers. One may be the fault of a DNS server that
#: starts; but addresses are not used for long that may by now belong to others.
EMPTY_ANSWERS = 3


class ServiceName(msgspec.Struct, frozen=True):
    """A name that DNS resolves.

    Attributes:
        discovery: ``dns`` for addresses, ``srv`` for SRV records.
        host: the name, in lower case.
    """

    discovery: str
    host: str


class Found(msgspec.Struct, frozen=True, order=True):
    """A server in an answer.

    Attributes:
        order: its place among the priorities of the answer: 0 comes first.
        address: its IP address.
        port: its port; 0 for the entry's.
        weight: its share among servers of the same order.
    """

    order: int
    address: str
    port: int = 0
    weight: int = 1


class Answer(msgspec.Struct, frozen=True):
    """What DNS says of a name.

    Attributes:
        found: the servers, sorted.
        ttl: for how many seconds it is valid; None if DNS does not say.
        left_out: servers beyond the most that are used.
    """

    found: tuple[Found, ...] = ()
    ttl: float | None = None
    left_out: int = 0


def make_answer(found: Iterable[Found], ttl: float | None, most: int) -> Answer:
    """Return an answer of at most `most` servers, each once; the priorities become orders without gaps."""
    # the first place that the answer gives a server counts
    each = sorted({(one.address, one.port): one for one in sorted(found, reverse=True)}.values())
    ranks = {priority: rank for rank, priority in enumerate(sorted({one.order for one in each}))}
    ranked = tuple(msgspec.structs.replace(one, order=ranks[one.order]) for one in each)
    return Answer(ranked[:most], ttl, max(0, len(ranked) - most))


def seconds_until_next(answer: Answer | None, interval: float) -> float:
    """Return when to resolve a name again: after `interval`, or earlier if the answer is not valid for so long.

    Args:
        answer: the last answer; None if there was none.
        interval: the longest time, in seconds.
    """
    if answer is None or answer.ttl is None:
        return interval
    return min(interval, max(answer.ttl, SHORTEST))


class Knowledge:
    """What is known of one name.

    Attributes:
        found: its servers.
        failing: whether the last look-up failed.
    """

    __slots__ = ("_empty", "failing", "found")

    def __init__(self) -> None:
        """Nothing is known."""
        self.found: tuple[Found, ...] = ()
        self.failing = False
        self._empty = 0

    def answered(self, answer: Answer) -> bool:
        """Note an answer; return whether the servers have changed."""
        self.failing = False
        self._empty = 0 if answer.found else self._empty + 1
        if answer.found == self.found or 0 < self._empty < EMPTY_ANSWERS:
            return False
        self.found = answer.found
        return True

    def failed(self) -> bool:
        """Note a look-up that failed, which keeps the servers; return whether the one before it did not fail."""
        first, self.failing = not self.failing, True
        return first


def service_of(entry: ModelEntry) -> ServiceName | None:
    """Return the name that an entry's servers are found by; None if it is one server."""
    return None if entry.discovery is None else ServiceName(entry.discovery, entry.server.host)


def services_of(entries: Iterable[ModelEntry]) -> frozenset[ServiceName]:
    """Return all names that servers are found by."""
    return frozenset(name for name in map(service_of, entries) if name is not None)


class Expansion:
    """Puts the entries of the servers that were found in place of those that name a service.

    The entry of a server that stays is made once: when one of a thousand servers changes, the reactor must not stop to
    make all entries, and to compare and hash them.
    """

    def __init__(self) -> None:
        """Begin without entries."""
        self._made: dict[ModelEntry, dict[Found, ModelEntry]] = {}

    def expand(
        self, entries: Sequence[ModelEntry], known: Mapping[ServiceName, Sequence[Found]]
    ) -> tuple[ModelEntry, ...]:
        """Return the entries as they are used; entries that this call does not return are forgotten.

        An entry whose service has no known server stays as it is: its requests fail as those to a server that is down.

        Args:
            entries: the entries.
            known: the servers of each name.
        """
        before, self._made = self._made, {}
        expanded: list[ModelEntry] = []
        for entry in entries:
            name = service_of(entry)
            found = () if name is None else known.get(name, ())
            if not found:
                expanded.append(entry)
                continue
            made = self._made.get(entry) or before.get(entry, {})
            self._made[entry] = {one: made.get(one) or _entry_of(entry, one) for one in found}
            expanded += self._made[entry].values()
        return tuple(expanded)


def _entry_of(entry: ModelEntry, found: Found) -> ModelEntry:
    return attrs.evolve(
        entry,
        server=_server_of(entry, found),
        weight=entry.weight * found.weight,
        order=entry.order + found.order,
    )


def _server_of(entry: ModelEntry, found: Found) -> Server:
    """Return a server of a service. Its Host header, and its name in TLS, are those of the service."""
    service = entry.server
    host, port = service.host, found.port or service.port
    header = service.host_header
    if entry.discovery == SRV:
        host = _without_service(host)
        usual = port == (443 if service.tls else 80)
        header = (host if usual else f"{host}:{port}").encode("ascii")
    base = service.base_path.decode("ascii")
    return attrs.evolve(
        service,
        name=f"{host}:{port}{base}/{found.address}",
        host=host,
        port=port,
        host_header=header,
        address=found.address,
        kv_events=_at(found.address, host, service.kv_events),
        kv_events_replay=_at(found.address, host, service.kv_events_replay),
    )


def _at(address: str, host: str, endpoint: str | None) -> str | None:
    """Return an endpoint of ZeroMQ with an address in place of the service's name."""
    own = f"tcp://{host}:"
    if endpoint is None or not endpoint.startswith(own):
        return endpoint
    return f"tcp://{f'[{address}]' if ':' in address else address}:{endpoint.removeprefix(own)}"


def _without_service(host: str) -> str:
    """Return the domain of an SRV record's name (RFC 2782): ``_http._tcp.vllm.default.svc`` is at the last three."""
    return host.split(".", 2)[2]
