"""Finds the server that has a stored response, by asking all of them at once.

Only for responses whose id does not tell: those of administrators and of open mode that this process did not see pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import ResponseNotLocated
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.upstreams.own_requests import get_json
from twisted_vllm.upstreams.response_places import ResponsePlaces

#: seconds to wait for all servers
TIMEOUT = 5.0
#: searches at the same time; each is a request to every server
MAX_SEARCHES = 64
#: longer ids are those of no response, in characters
MAX_ID = 256


class ResponseLocator:
    """Asks servers for stored responses."""

    _log = Logger()

    def __init__(self, client: PassThroughClient, clock: IReactorTime, places: ResponsePlaces) -> None:
        """Set up.

        Args:
            client: asks the servers; it must not queue.
            clock: the reactor's clock.
            places: remembers what was found.
        """
        self._client = client
        self._clock = clock
        self._places = places
        self._searches: dict[str, _Search] = {}

    def locate(self, response_id: str, servers: Sequence[Server]) -> Deferred[Server | None]:
        """Find a response.

        The first server that has it wins. If none has it, one that says something else than 404 does: what it says is
        more than that it does not know.

        Args:
            response_id: the id, as the client wrote it.
            servers: the servers that may have it.

        Returns:
            Its server; None if every server says that it does not have it. Cancelling it stops the search if nobody
            else waits. It fails with:

            ResponseNotLocated: no server says that it has it, and one did not answer; or too many searches run.
        """
        found: Deferred[Server | None] = Deferred(lambda wanted: self._dropped(response_id, wanted))
        if not servers or len(response_id) > MAX_ID or response_id in (".", ".."):
            found.callback(None)
            return found
        search = self._searches.get(response_id)
        if search is None:
            if len(self._searches) >= MAX_SEARCHES:
                found.errback(
                    ResponseNotLocated("Too many responses are searched for. Send the request again.", retry_after=1)
                )
                return found
            search = self._searches[response_id] = _Search(self, response_id, servers)
            search.waiting.append(found)
            search.start()
        else:
            search.waiting.append(found)
        return found

    def ask(self, response_id: str, server: Server) -> Deferred[UpstreamResponse]:
        """Ask one server."""
        return get_json(self._client, server, b"/v1/responses/" + quote(response_id, safe="").encode("ascii"))

    def call_later(self, seconds: float, call: Any) -> Any:
        """Call after some seconds."""
        return self._clock.callLater(seconds, call)

    def warn(self, server: Server, reason: str) -> None:
        """Log that a server did not answer."""
        self._log.warn(
            "{server} did not tell whether it has a stored response: {reason}",
            server=server.name,
            reason=reason,
            once_a_second=server.name,
        )

    def ended(self, response_id: str, server: Server | None) -> None:
        """Forget a search that is over, and remember where the response is."""
        del self._searches[response_id]
        if server is not None:
            self._places.keep(response_id, server.name)

    def _dropped(self, response_id: str, wanted: Deferred[Server | None]) -> None:
        search = self._searches.get(response_id)
        if search is None or wanted not in search.waiting:
            return
        search.waiting.remove(wanted)
        if not search.waiting:
            search.stop()
            del self._searches[response_id]


class _Search:
    """One search: what each server said so far."""

    def __init__(self, locator: ResponseLocator, response_id: str, servers: Sequence[Server]) -> None:
        self.waiting: list[Deferred[Server | None]] = []
        self._locator = locator
        self._id = response_id
        self._servers = servers
        self._asking: dict[int, Deferred[Any]] = {}
        self._codes: dict[int, int] = {}
        self._silent = 0
        self._over = False
        self._timer: Any = None

    def start(self) -> None:
        self._timer = self._locator.call_later(TIMEOUT, self._too_slow)
        for index, server in enumerate(self._servers):
            asking: Deferred[Any] = self._locator.ask(self._id, server)
            self._asking[index] = asking
            asking.addCallbacks(self._answered, self._failed, callbackArgs=(index,), errbackArgs=(index,))
            if self._over:
                return
        self._look()

    def stop(self) -> None:
        """Give up all requests."""
        self._over = True
        if self._timer.active():
            self._timer.cancel()
        asking, self._asking = self._asking, {}
        for each in asking.values():
            each.cancel()

    def _answered(self, response: UpstreamResponse, index: int) -> None:
        # the response itself is not read: it may be large, and the client asks for it
        response.stopProducing()
        self._asking.pop(index, None)
        if self._over:
            return
        if response.code == 200:
            self._end(self._servers[index])
            return
        if response.code >= 500:
            self._silent += 1
            self._locator.warn(self._servers[index], f"it answered {response.code}")
        else:
            self._codes[index] = response.code
        self._look()

    def _failed(self, failure: Failure, index: int) -> None:
        self._asking.pop(index, None)
        if self._over and failure.check(CancelledError):
            return
        self._silent += 1
        self._locator.warn(self._servers[index], failure.getErrorMessage())
        if not self._over:
            self._look()

    def _too_slow(self) -> None:
        for index in self._asking:
            self._silent += 1
            self._locator.warn(self._servers[index], f"it did not answer within {TIMEOUT:g} s")
        self._decide()

    def _look(self) -> None:
        """Decide, once every server has answered."""
        if not self._over and len(self._codes) + self._silent >= len(self._servers):
            self._decide()

    def _decide(self) -> None:
        other = next((index for index, code in sorted(self._codes.items()) if code != 404), None)
        if other is not None:
            self._end(self._servers[other])
        elif self._silent:
            self._end(
                ResponseNotLocated(
                    "The servers that answer do not have this response, and not all of them answer. Send the request "
                    "again later.",
                    param="response_id",
                    retry_after=int(TIMEOUT),
                )
            )
        else:
            self._end(None)

    def _end(self, result: Server | ResponseNotLocated | None) -> None:
        self.stop()
        self._locator.ended(self._id, result if isinstance(result, Server) else None)
        for each in self.waiting:
            if isinstance(result, ResponseNotLocated):
                each.errback(result)
            else:
                each.callback(result)
