"""When certificates end: those that clients see, those that servers see, and those of the servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_vllm.config.alert_types import OUTAGE
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.net.certificates import Listeners
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.upstreams.health_checks import Checked

DAY = 86_400.0
#: seconds before its end from which on a certificate has a warning in the log, and an error
SOON, VERY_SOON = 14 * DAY, 3 * DAY

LISTENER = "listener"

#: what each certificate is, what its end means, and what to do
_WORDS = {
    LISTENER: (
        "The certificate of the listener {name}",
        "clients that check it cannot connect from then on. Replace the files that passthrough.listen names, then "
        "reload",
    ),
    "client": (
        "The gateway's certificate for the server {name}",
        "the server may refuse the gateway from then on. Replace the file of ssl_certificate, then reload",
    ),
    "authority": (
        "The last certificate of the authorities for the server {name}",
        "the gateway trusts no certificate of the server from then on. Replace the file of ssl_ca, then reload",
    ),
    "server": (
        "The certificate of the server {name}",
        "the gateway does not connect to it from then on if it checks it. Renew it on the server",
    ),
}


@attrs.frozen
class KnownCertificate:
    """A certificate whose end is known.

    Attributes:
        use: ``listener``, ``client``, ``authority`` or ``server``.
        number: the number of the listener or server.
        name: its name, which strangers must not learn.
        ends: when it ends, in Unix seconds.
    """

    use: str
    number: int
    name: str
    ends: float


def known_certificates(
    listeners: Listeners, servers: Iterable[Checked], agent: UpstreamAgent
) -> Iterator[KnownCertificate]:
    """Yield all certificates that are in use now."""
    for number, certificate in enumerate(listeners.certificates, 1):
        yield KnownCertificate(LISTENER, number, certificate.listener, certificate.ends)
    for checked in servers:
        for use, ends in agent.certificate_ends(checked.state.server):
            yield KnownCertificate(use, checked.number, checked.state.name, ends)


class CertificateWatch:
    """Writes to the log which certificates have ended or end soon.

    It looks at the start, after reloads, once a day, and when one that it saw has ended.
    """

    _log = Logger()

    def __init__(
        self,
        certificates: Callable[[], Iterable[KnownCertificate]],
        clock: Any,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Set up.

        Args:
            certificates: returns those in use.
            clock: a provider of IReactorTime.
            now: Unix seconds.
        """
        self._certificates = certificates
        self._clock = clock
        self._now = now
        self._loop = LoopingCall(self.look)
        self._loop.clock = clock
        self._soon: Any = None
        #: when the next certificate has ended
        self._end: Any = None

    def start(self) -> None:
        """Look now, and once a day."""
        self._loop.start(DAY)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()
        for call in (self._soon, self._end):
            if call is not None and call.active():
                call.cancel()
        self._soon = self._end = None

    def reloaded(self) -> None:
        """Look in the next turn of the reactor, when all components have the new settings."""
        if self._loop.running:
            self._soon = self._clock.callLater(0, self.look)

    def look(self) -> None:
        """Look at all certificates."""
        now, nearest = self._now(), DAY
        for each in self._certificates():
            left = each.ends - now
            if left >= SOON:
                continue
            if 0 <= left < nearest:
                nearest = left
            which, then = _WORDS[each.use]
            level = self._log.warn if left >= VERY_SOON else self._log.error
            level(
                "{which} {ends} at {moment}: {then}",
                which=which.format(name=each.name),
                ends="ended" if left < 0 else f"ends in {_in_words(left)},",
                moment=datetime.fromtimestamp(each.ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                then=then,
                alert=OUTAGE,
                alert_about=f"certificate {each.name}",
            )
        if self._end is not None and self._end.active():
            self._end.cancel()
        # later ones are seen by the look of the next day
        self._end = self._clock.callLater(nearest + 1.0, self.look) if self._loop.running and nearest < DAY else None


def _in_words(seconds: float) -> str:
    """Return how long that is, as one says it."""
    for unit, length in (("days", DAY), ("hours", 3_600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes"


class CertificateCollector(Collector):
    """Reads on each scrape when the certificates end."""

    def __init__(self, certificates: Callable[[], Iterable[KnownCertificate]], *, named: bool) -> None:
        """Collect from these.

        Args:
            certificates: returns those in use.
            named: whether the labels have names, or numbers.
        """
        self._certificates = certificates
        self._named = named

    def collect(self) -> Iterator[Metric]:
        """Return when each one ends."""
        family = GaugeMetricFamily(
            f"{PREFIX}_tls_certificate_expiry_timestamp_seconds",
            "When a certificate ends, in Unix seconds.",
            labels=["use", "listener", "server"],
        )
        for each in self._certificates():
            name = each.name if self._named else str(each.number)
            is_listener = each.use == LISTENER
            family.add_metric([each.use, name if is_listener else "", "" if is_listener else name], each.ends)
        yield family
