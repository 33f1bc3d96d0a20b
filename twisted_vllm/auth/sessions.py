"""Sessions of the console, and tickets: who signed in, in sealed form, so that no process has to remember it.

A session names a key by its hash and never holds the key. It is bound to it: `Authenticator.authenticate_session`
looks the key up at each request. A ticket is a session that is sent as a bearer credential, for minutes, by a page of
the console whose script calls vLLM's routes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal

import msgspec

from twisted_vllm.auth.sealing import Sealer, Unsealable
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.oidc import OidcSettings
from twisted_vllm.config.secret import Secret, hash_of

#: how a ticket begins: it is hidden in logs as every key is
TICKET_PREFIX = "sk-ticket-"
#: seconds for which a ticket is valid
TICKET_SECONDS = 900.0

#: what a sealed session is for: one does not open as the other
SESSION, TICKET = "console session", "console ticket"

_PURPOSE = b"twisted_vllm: sessions of the console"
#: sessions that were ended before their time, of which the latest are remembered
MOST_ENDED = 10_000
_ID_BYTES = 16
#: a ticket is no longer, in characters
_LONGEST_TICKET = 4_096


class Session(msgspec.Struct, frozen=True, array_like=True):
    """Who signed in.

    Attributes:
        id: a random name, 32 hex digits, that nobody but its owner knows.
        kind: ``master``, ``key`` (a virtual key) or ``user`` (of an OpenID provider).
        token: the SHA-256 of the key in hex; of a ``user`` its permanent id.
        began: when it began, in Unix seconds.
        until: when it ends, likewise.
        caller: who a ``user`` is.
        provider: of a ``user``, what tells the provider and its settings from others, as `provider_mark` returns it.
    """

    id: str
    kind: Literal["master", "key", "user"]
    token: str
    began: float
    until: float
    caller: TokenCaller | None = None
    provider: str = ""

    def __repr__(self) -> str:
        return f"<Session {self.kind}>"

    @property
    def anti_forgery(self) -> str:
        """The word that each form of the session sends (CSRF): no other page can know it."""
        return sha256(b"form of " + self.id.encode("ascii")).hexdigest()[:32]


class SessionSealer:
    """Seals sessions with a key of their own, derived from the gateway's secret."""

    def __init__(self, secret: Secret | None, randbytes: Callable[[int], bytes]) -> None:
        """Make it.

        Args:
            secret: the secret, as `secret_of` returns it; None seals nothing.
            randbytes: returns that many bytes, fit for secrets.
        """
        self._sealer = Sealer(secret, randbytes, _PURPOSE)
        self._randbytes = randbytes

    @property
    def can_seal(self) -> bool:
        """Whether there is a secret."""
        return self._sealer.can_seal

    def new_id(self) -> str:
        """Return the id of a new session."""
        return self._randbytes(_ID_BYTES).hex()

    def seal(self, session: Session) -> str:
        """Return a session as its cookie holds it."""
        return self._seal(session, SESSION)

    def open(self, sealed: str, now: float) -> Session | None:
        """Return the session of a cookie; None if it is none of ours, or over."""
        return self._open(sealed, SESSION, now)

    def ticket(self, session: Session, now: float) -> str:
        """Return a bearer credential that acts as a session does."""
        return TICKET_PREFIX + self._seal(msgspec.structs.replace(session, until=now + TICKET_SECONDS), TICKET)

    def of_ticket(self, credential: str, now: float) -> Session | None:
        """Return the session of a ticket; None if it is none of ours, or over."""
        if len(credential) > _LONGEST_TICKET:
            return None
        return self._open(credential.removeprefix(TICKET_PREFIX), TICKET, now)

    def _seal(self, session: Session, purpose: str) -> str:
        return self._sealer.seal(Secret(msgspec.json.encode(session).decode("utf-8")), purpose)

    def _open(self, sealed: str, purpose: str, now: float) -> Session | None:
        try:
            found = msgspec.json.decode(self._sealer.open(sealed, purpose).reveal(), type=Session)
        except (Unsealable, msgspec.DecodeError):
            # the latter: an older or newer gateway sealed it
            return None
        return found if now < found.until else None


def is_ticket(credential: str) -> bool:
    """Return whether a credential has the form of a ticket."""
    return credential.startswith(TICKET_PREFIX)


def secret_of(master_key: Secret | None, salt_key: Secret | None) -> Secret | None:
    """Return what sessions are sealed with: the salt key, or the master key itself.

    Whoever reads the hash of a master key in a file must not be able to make sessions: then there is none.
    """
    if salt_key is not None:
        return salt_key
    return master_key if master_key is not None and hash_of(master_key) is None else None


def provider_mark(settings: OidcSettings) -> str:
    """Return what tells a provider, its client and its claims from others; sessions end when they change."""
    decisive = repr((settings.issuer, settings.client_id, settings.claims))
    return sha256(decisive.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class EndedSessions:
    """The sessions that were ended before their time, until then."""

    def __init__(self) -> None:
        self._until: BoundedCache[str, float] = BoundedCache(MOST_ENDED, 1)

    def end(self, id: str, until: float) -> None:
        """End a session.

        Args:
            id: its id.
            until: when it would have ended, in Unix seconds.
        """
        self._until.keep(id, until, 0)

    def has(self, id: str) -> bool:
        """Return whether a session was ended."""
        return self._until.get(id) is not None

    def current(self, now: float) -> Sequence[tuple[str, float]]:
        """Return the ids of those that would not be over by themselves, and when they would be."""
        return [(id, until) for id, until in self._until.newest_first() if until > now]
