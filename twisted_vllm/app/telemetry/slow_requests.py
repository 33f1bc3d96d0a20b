"""Names servers whose answers do not come: a line of the log while their requests wait."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.proxy.slow_requests import QUEUED, STALLED, Slow, SlowRequests
from twisted_vllm.upstreams.server_state import Servers


class SlowRequestLog(TelemetryPart):
    """Logs what waits for long: `passthrough.log.slow_request_warning`."""

    _log = Logger()

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up."""
        site, reactor = surroundings.site, surroundings.reactor
        self._servers = surroundings.servers
        self._seconds = reactor.seconds
        self._threshold: float | None = None
        self._running = False
        self._slow = SlowRequests(
            lambda: site.connections, surroundings.text, turn_cooperator(reactor).cooperate, reactor, self._tell
        )

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Take another threshold."""
        threshold = settings.log.slow_request_warning

        def apply() -> None:
            self._threshold = threshold
            if self._running:
                self._slow.reconfigure(threshold)

        return apply

    def start(self) -> None:
        """Begin to look."""
        self._running = True
        self._slow.reconfigure(self._threshold)

    def stop(self) -> None:
        """Look no more."""
        self._running = False
        self._slow.stop()

    def _tell(self, slow: Slow) -> None:
        self._log.warn("{slow}", slow=words(slow, self._servers, self._seconds()))


def words(slow: Slow, servers: Servers, now: float) -> str:
    """Return what waits, for a person.

    Args:
        slow: what waits.
        servers: the servers, to say when the one in question last answered.
        now: the time in the reactor's seconds.
    """
    many = f"{slow.count} requests wait" if slow.count > 1 else "1 request waits"
    route = f" ({slow.route})" if slow.route else ""
    oldest = f"{slow.request_id}, model {slow.model or 'unnamed'}, key {slow.key_name or 'none'}"
    if slow.waits == QUEUED:
        what = f"for a server with room for {slow.server or 'the default server'}"
    elif slow.waits == STALLED:
        what = f"for {slow.server} to go on with its answer"
    else:
        what = f"for {slow.server} to begin its answer"
    text = f"{many} {what}{route}, the oldest for {slow.age:.0f} s: {oldest}"
    state = None if slow.waits == QUEUED else servers.named(slow.server)
    if state is None:
        return text
    ago = now - state.last_alive
    return (
        f"{text}. The server has not answered any request yet"
        if ago > now
        else f"{text}. It last began an answer {max(ago, 0.0):.0f} s ago"
    )
