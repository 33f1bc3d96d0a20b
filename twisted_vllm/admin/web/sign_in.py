"""Sessions of the console: signing in, the cookie, and their end.

The cookie holds the session in sealed form, so that every process of every gateway with the same secret knows it and
none has to remember it. Its path is the console's: the API and vLLM's routes never see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorization import AdminAuthenticator, session_of
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.sessions import EndedSessions, Session, SessionSealer, is_ticket
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.errors import InvalidRequest

#: where the cookie is sent to
COOKIE_PATH = "/ui"
COOKIE = b"vllm_console"
#: a browser takes it over TLS only
_SECURE_PREFIX = b"__Secure-"
#: a longer key is none
_LONGEST_KEY = 1_024
#: the cookie is written anew once this share of its idle time is over
_RENEWED_AFTER = 0.1
#: scripts that ask by themselves send this header: that does not keep a session alive
POLL_HEADER = b"x-console-poll"

CANNOT_SEAL = (
    "Nobody can sign in here: the master key is configured as its hash, from which no session may be made. Set "
    "VLLM_PASSTHROUGH_SALT_KEY (general_settings.salt_key) to a long random text."
)


class SignIn:
    """Begins, renews and ends sessions."""

    def __init__(
        self,
        *,
        authenticator: AdminAuthenticator,
        sealer: Callable[[], SessionSealer],
        ended: EndedSessions,
        tell_ended: Callable[[str, float], None],
        settings: Callable[[], ConsoleSettings],
        now: Callable[[], float],
        origin_of: Callable[[IRequest], str],
        prefix_of: Callable[[IRequest], str],
    ) -> None:
        """Make it.

        Args:
            authenticator: authenticates the callers of the admin API.
            sealer: returns what seals sessions now.
            ended: the sessions that were ended before their time.
            tell_ended: tells the other processes of the gateway of one that was ended: its id and its end.
            settings: returns the settings as they are now.
            now: the time in Unix seconds.
            origin_of: returns where the browser of a request believes to be.
            prefix_of: returns the path that proxies in front cut off.
        """
        self._authenticator = authenticator
        self.sealer = sealer
        self._ended = ended
        self._tell_ended = tell_ended
        self.settings = settings
        self.now = now
        self._origin_of = origin_of
        self._prefix_of = prefix_of

    # the session of a request

    def attach(self, request: IRequest) -> None:
        """Give a request the session of its cookie; none if that is over or not ours."""
        found = None
        cookie = self.cookie(request, COOKIE)
        if cookie:
            session = self.sealer().open(cookie, self.now())
            if session is not None and not self._ended.has(session.id):
                found = session
        cast(Any, request).console_session = found

    def is_over(self, request: IRequest) -> bool:
        """Return whether the session of a request is over meanwhile."""
        session = session_of(request)
        return session is not None and (self.now() >= session.until or self._ended.has(session.id))

    def renew(self, request: IRequest) -> None:
        """Let the session of a request go on, if a person made it and not a page by itself."""
        session = session_of(request)
        if session is None or request.requestHeaders.hasHeader(POLL_HEADER):
            return
        if b"text/event-stream" in b",".join(request.requestHeaders.getRawHeaders(b"accept", [b""])):
            return
        settings, now = self.settings(), self.now()
        until = min(now + settings.session_idle, session.began + settings.session_lifetime)
        if until - session.until > settings.session_idle * _RENEWED_AFTER:
            self._set(request, msgspec.structs.replace(session, until=until))

    # begin and end

    async def begin(self, request: IRequest, key: str) -> Session:
        """Begin the session of a key.

        Raises:
            InvalidRequest: it is no key, or nobody can sign in here.
            InvalidApiKey, ExpiredApiKey, BlockedApiKey, TooManyFailures: as in the pass-through.
        """
        if not key or len(key) > _LONGEST_KEY or is_ticket(key):
            raise InvalidRequest("Enter a key: sk-… or the master key.", param="key")
        if not self.sealer().can_seal:
            raise InvalidRequest(CANNOT_SEAL)
        principal, token = await self._authenticator.sign_in(request, key)
        kind = self._kind_of(principal, key)
        return self.keep(request, kind, token)

    def _kind_of(self, principal: Principal, key: str) -> str:
        if self._authenticator.is_master(key):
            return "master"
        if not principal.hash_prefix or not self._authenticator.is_known(key):
            raise InvalidRequest("This is a token of a login service. Sign in with a key.", param="key")
        return "key"

    def keep(self, request: IRequest, kind: Any, token: str, **more: Any) -> Session:
        """Begin a session, and give the browser its cookie.

        Args:
            request: the request that is answered.
            kind: as in `Session`, likewise `token`.
            token: the SHA-256 of the key.
            more: other attributes of the session.
        """
        settings, now, sealer = self.settings(), self.now(), self.sealer()
        until = now + min(settings.session_idle, settings.session_lifetime)
        session = Session(id=sealer.new_id(), kind=kind, token=token, began=now, until=until, **more)
        cast(Any, request).console_session = session
        self._set(request, session)
        return session

    def end(self, request: IRequest) -> None:
        """End the session of a request, everywhere."""
        session = session_of(request)
        if session is not None:
            # it may have been renewed since
            until = session.began + self.settings().session_lifetime
            self._ended.end(session.id, until)
            self._tell_ended(session.id, until)
        self.forget(request)

    # the cookie

    def forget(self, request: IRequest) -> None:
        """Let the browser forget the cookie of a session that is over."""
        if self.cookie(request, COOKIE):
            self.add_cookie(request, COOKIE, "", 0)

    def _set(self, request: IRequest, session: Session) -> None:
        # the browser forgets it when it is closed, or when it is over
        self.add_cookie(request, COOKIE, self.sealer().seal(session), max(0, int(session.until - self.now())))

    def cookie(self, request: IRequest, name: bytes) -> str:
        """Return what a cookie of the console holds; empty if the browser sent none of this name."""
        found: bytes | None = cast(Any, request).getCookie(self._prefixed(request, name))
        return "" if found is None else found.decode("latin-1")

    def add_cookie(
        self,
        request: IRequest,
        name: bytes,
        value: str,
        seconds: int,
        *,
        path: str = COOKIE_PATH,
        same_site: bytes = b"strict",
    ) -> None:
        """Give the browser a cookie, which scripts cannot read.

        Args:
            request: the request that is answered.
            name: the cookie's name.
            value: what it holds.
            seconds: how long the browser keeps it; 0 has it forgotten.
            path: the pages that get it, at `COOKIE_PATH` or below.
            same_site: ``lax`` if it must come with a request to which another site leads, such as a provider.
        """
        cast(Any, request).addCookie(
            self._prefixed(request, name),
            value.encode("ascii"),
            path=(self._prefix_of(request) + path).encode("ascii"),
            max_age=b"%d" % seconds,
            secure=self.is_secure(request),
            httpOnly=True,
            sameSite=same_site,
        )

    def is_secure(self, request: IRequest) -> bool:
        """Return whether the browser came over TLS, to the gateway or to a trusted proxy in front of it."""
        return self._origin_of(request).startswith("https://")

    def _prefixed(self, request: IRequest, name: bytes) -> bytes:
        return (_SECURE_PREFIX if self.is_secure(request) else b"") + name
