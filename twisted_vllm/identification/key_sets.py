"""The public keys of the issuers of tokens, as they publish them (JWKS, RFC 7517)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from json import loads
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred, gatherResults, inlineCallbacks
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from twisted_vllm.auth.tokens import TokenHeader, TokenKey, fitting, read_key_set
from twisted_vllm.errors import GatewayError, InvalidToken, IssuerUnavailable
from twisted_vllm.upstreams.own_requests import read_at_most

#: a key set's bytes, and the seconds until it must be there
LARGEST_KEY_SET, FETCH_SECONDS = 262_144, 5.0
#: seconds between two fetches: a token with an unknown key causes one, and anybody can make such tokens
FETCH_INTERVAL = 5.0

Fetch = Callable[[str], Deferred[bytes]]


class KeySetError(Exception):
    """A key set could not be had; the message says why, for the operator."""


@inlineCallbacks
def fetch(agent: IAgent, url: str) -> Generator[Deferred[Any], Any, bytes]:
    """Return what a URL answers, without following redirects: the operator names who is trusted.

    Args:
        agent: sends the request. Nothing decodes the answer, so its size on the wire is its size.
        url: the URL of a key set, or of an OpenID configuration.

    Raises:
        KeySetError: the answer is not 200 OK.
    """
    headers = Headers({b"Accept": [b"application/json"], b"User-Agent": [b"twisted-vllm"]})
    response = yield agent.request(b"GET", url.encode("ascii"), headers, None)
    body: bytes = yield read_at_most(response, LARGEST_KEY_SET)
    if response.code != 200:
        raise KeySetError(f"it answers {response.code}")
    return body


class _KeySet:
    """The keys at one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = urlsplit(url).netloc
        self.keys: list[TokenKey] = []
        self.fetched_at: float | None = None
        self.fails = False


class KeySets:
    """Fetches key sets, and keeps their keys while they may be used."""

    _log = Logger()

    def __init__(
        self,
        urls: Sequence[str],
        ttl: float,
        stale_ttl: float,
        fetch: Fetch,
        clock: IReactorTime,
        on_dropped: Callable[[], None],
        without: str = "tokens are answered 503",
    ) -> None:
        """Make it; nothing is fetched yet.

        Args:
            urls: where the key sets are.
            ttl: how long they are used before they are fetched again, in seconds.
            stale_ttl: how much longer they are used while that fails.
            fetch: returns the body at a URL.
            clock: the reactor.
            on_dropped: called when a key is not trusted any more.
            without: what follows if there are no keys, for the log.
        """
        self._sets = [_KeySet(url) for url in urls]
        self._ttl = ttl
        self._stale_ttl = stale_ttl
        self._fetch = fetch
        self._clock = clock
        self._on_dropped = on_dropped
        self._without = without
        self._earliest = float("-inf")
        self._waiting: list[Deferred[None]] | None = None

    def __repr__(self) -> str:
        return f"<KeySets keys={sum(len(each.keys) for each in self._sets)}>"

    def is_like(self, other: KeySets) -> bool:
        """Return whether the others are fetched from the same places as these, and as often."""
        mine, others = ([each.url for each in sets._sets] for sets in (self, other))
        return mine == others and (self._ttl, self._stale_ttl) == (other._ttl, other._stale_ttl)

    @property
    def keys(self) -> list[TokenKey]:
        """The keys that may be used now."""
        self._drop_old()
        return [key for each in self._sets for key in each.keys]

    @property
    def fresh_seconds(self) -> float:
        """How long it is until they are to be fetched again, in seconds; negative or 0 if that is now."""
        ends = [float("-inf") if each.fetched_at is None else each.fetched_at + self._ttl for each in self._sets]
        return min(ends, default=float("-inf")) - self._clock.seconds()

    @inlineCallbacks
    def fetch_for(self, header: TokenHeader) -> Generator[Deferred[Any], Any, list[TokenKey]]:
        """Fetch the keys that may have signed a token, of which none is known.

        Raises:
            IssuerUnavailable: there are no keys now.
            InvalidToken: there is no such key.
        """
        waiting = self.refresh()
        if waiting is not None:
            yield waiting
        keys = self.keys
        if not keys:
            raise IssuerUnavailable(
                "The keys of the issuer of tokens cannot be fetched now, so no token can be verified. Try again.",
                retry_after=int(FETCH_INTERVAL),
            )
        found = fitting(keys, header)
        if not found:
            raise InvalidToken("The issuer has no key (kid) that may have signed this token. Get a new one from it.")
        return found

    def refresh(self) -> Deferred[None] | None:
        """Fetch all key sets, or wait for the fetch in progress.

        Returns:
            A Deferred that fires, and never fails, afterwards; None if they were fetched only a moment ago.
        """
        now = self._clock.seconds()
        if self._waiting is None:
            if now < self._earliest:
                return None
            self._earliest = now + FETCH_INTERVAL
            self._waiting = []
            mine = _queued(self._waiting)
            gatherResults([self._refresh(each) for each in self._sets]).addBoth(self._refreshed)
            return mine
        return _queued(self._waiting)

    def _refreshed(self, _: object) -> None:
        waiting, self._waiting = self._waiting or [], None
        self._drop_old()
        for each in waiting:
            each.callback(None)

    @inlineCallbacks
    def _refresh(self, each: _KeySet) -> Generator[Deferred[Any], Any, None]:
        try:
            body = yield self._get(each.url)
            location = _key_set_named_in(body, each.url)
            if location is not None:
                body = yield self._get(location)
            found = read_key_set(body)
            if not found:
                raise KeySetError("it holds no key that can sign tokens")
        except Exception as error:
            self._failed(each, error)
            return
        if each.fails:
            each.fails = False
            self._log.info("The keys of {issuer} can be fetched again", issuer=each.name)
        self._replace(each, found)
        each.fetched_at = self._clock.seconds()

    def _get(self, url: str) -> Deferred[bytes]:
        getting = self._fetch(url)
        getting.addTimeout(FETCH_SECONDS, self._clock)
        return getting

    def _failed(self, each: _KeySet, error: Exception) -> None:
        if each.fails:
            return
        each.fails = True
        self._log.warn(
            "The keys of {issuer} cannot be fetched: {reason}. {keys} known keys are used for at most {seconds:.0f} s "
            "more; without keys, {consequence}",
            consequence=self._without,
            issuer=each.name,
            reason=reason_of(error),
            keys=len(each.keys),
            seconds=self._ttl + self._stale_ttl,
        )

    def _replace(self, each: _KeySet, found: list[TokenKey]) -> None:
        before = {key.thumbprint: key for key in each.keys}
        each.keys = [before.pop(key.thumbprint, key) for key in found]
        self._distrust(list(before.values()))

    def _drop_old(self) -> None:
        now = self._clock.seconds()
        for each in self._sets:
            if each.keys and each.fetched_at is not None and now >= each.fetched_at + self._ttl + self._stale_ttl:
                keys, each.keys = each.keys, []
                self._distrust(keys)

    def _distrust(self, keys: list[TokenKey]) -> None:
        for key in keys:
            key.trusted = False
        if keys:
            self._on_dropped()


def _key_set_named_in(body: bytes, url: str) -> str | None:
    """Return the address of the key set that an OpenID configuration names; None if this is no such document.

    Raises:
        KeySetError: the address is of another scheme: what came over TLS must not lead to what does not.
    """
    try:
        found = loads(body)
    except (ValueError, RecursionError):
        return None
    named = found.get("jwks_uri") if isinstance(found, dict) and "keys" not in found else None
    if not isinstance(named, str):
        return None
    if not named.startswith(f"{urlsplit(url).scheme}://") or not named.isascii() or not named.isprintable():
        raise KeySetError("its jwks_uri is not a URL of the same scheme")
    return named


def reason_of(error: Exception) -> str:
    """Return why something could not be fetched, for the log."""
    if isinstance(error, (KeySetError, ValueError)):
        return str(error)
    if isinstance(error, GatewayError):
        return error.message
    # what is taken from the other side must not get into the log unread
    return "it does not answer in time" if isinstance(error, (TimeoutError, CancelledError)) else _first_reason(error)


def _first_reason(error: Exception) -> str:
    """Return what failed; twisted.web wraps it in a list."""
    reasons = getattr(error, "reasons", None)
    cause = reasons[0].value if reasons and isinstance(reasons[0], Failure) else error
    return f"{type(cause).__name__}: {str(cause)[:200]}"


def _queued(waiting: list[Deferred[None]]) -> Deferred[None]:
    mine: Deferred[None] = Deferred()
    waiting.append(mine)
    return mine
