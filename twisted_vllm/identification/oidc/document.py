"""The provider's discovery document: fetched when it is needed, and kept while it may be used."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_vllm.auth.oidc.provider import Provider, discovery_url, read_provider
from twisted_vllm.errors import IssuerUnavailable
from twisted_vllm.identification.key_sets import FETCH_INTERVAL, FETCH_SECONDS, Fetch, reason_of

#: seconds for which a document is used, and for which it still is while the provider does not answer
FRESH_SECONDS, STALE_SECONDS = 3_600.0, 86_400.0


class ProviderDocument:
    """What a provider says of itself."""

    _log = Logger()

    def __init__(self, issuer: str, fetch: Fetch, clock: IReactorTime) -> None:
        """Make it; nothing is fetched yet.

        Args:
            issuer: the provider's issuer.
            fetch: returns the body at a URL.
            clock: the reactor.
        """
        self.issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._known: Provider | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._fails = False
        self._waiting: list[Deferred[None]] | None = None

    def __repr__(self) -> str:
        return f"<ProviderDocument {self.issuer} known={self._known is not None}>"

    @inlineCallbacks
    def get(self) -> Generator[Deferred[Any], Any, Provider]:
        """Return the provider.

        Raises:
            IssuerUnavailable: it does not answer, or not as it should; the log says why.
        """
        now = self._clock.seconds()
        if self._waiting is not None:
            if not self._is_usable:
                mine: Deferred[None] = Deferred()
                self._waiting.append(mine)
                yield mine
        elif now >= max(self._fetched_at + FRESH_SECONDS, self._tried_at + FETCH_INTERVAL):
            self._tried_at = now
            self._waiting = []
            yield self._refresh()
            waiting, self._waiting = self._waiting, None
            for each in waiting:
                each.callback(None)
        if self._known is None or not self._is_usable:
            raise IssuerUnavailable(
                "The provider at which people sign in does not answer. Try again, or sign in with a key.",
                retry_after=int(FETCH_INTERVAL),
            )
        return self._known

    @property
    def _is_usable(self) -> bool:
        return self._clock.seconds() < self._fetched_at + STALE_SECONDS

    @inlineCallbacks
    def _refresh(self) -> Generator[Deferred[Any], Any, None]:
        try:
            getting = self._fetch(discovery_url(self.issuer))
            body = yield getting.addTimeout(FETCH_SECONDS, self._clock)
            self._known = read_provider(body, self.issuer)
        except Exception as error:
            if not self._fails:
                self._fails = True
                self._log.warn(
                    "Nobody can be signed in at {provider}, whose discovery document cannot be used: {reason}"
                    if self._known is None
                    else "The discovery document of {provider} cannot be fetched, and the known one is used: {reason}",
                    provider=self.issuer,
                    reason=reason_of(error),
                )
            return
        self._fetched_at = self._clock.seconds()
        if self._fails:
            self._fails = False
            self._log.info("The discovery document of {provider} can be fetched again", provider=self.issuer)
