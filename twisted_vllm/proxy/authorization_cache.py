"""Caches the authorization of a request's head for the next request with the same head, of whatever caller.

Client libraries repeat the same head (`twisted_vllm.http.header_cache`), and only the credential tells their callers
apart. What was decided about a head holds for all callers with the same permissions, until the settings change. What
is kept for each caller is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.auth.permissions import PermissionClasses, Permissions
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import Authorization
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.header_cache import LONGEST_HEAD, MOST_HEADS
from twisted_vllm.http.headers import PER_REQUEST_HEADERS, HeaderList
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.forwarded import FORWARDED_FOR

#: decisions that are kept, each about one head and one class of permissions
MOST_DECISIONS = 512
#: header formats of one decision, each of one server
MOST_FORMATS = 8


class HeaderFormat:
    """The serialized headers of a request to one server, with placeholders for the values that vary per request.

    Attributes:
        url: the URL of the request.
    """

    __slots__ = ("_format", "_has_length", "_has_peer", "_traced", "url")

    def __init__(self, url: bytes, headers: HeaderList, peer: bytes = b"") -> None:
        """Build the format from the headers of one request.

        Args:
            url: the URL of the request.
            headers: the headers for the server, in the order trace headers, ``Content-Length`` if present,
                ``X-Forwarded-For`` likewise, and ``X-Request-Id`` last. The values of these are ignored, but for what
                stands before the peer's address.
            peer: this address, with which ``X-Forwarded-For`` ends.
        """
        traced: list[bytes] = []
        self._has_length = self._has_peer = False
        self.url = url
        lines = []
        for name, value in headers:
            key = name.lower()
            if key == FORWARDED_FOR and value.endswith(peer):
                self._has_peer = True
                value = _escaped(value.removesuffix(peer)) + b"%b"
            elif key not in PER_REQUEST_HEADERS:
                value = _escaped(value)
            elif key == b"content-length":
                self._has_length = True
                value = b"%d"
            else:
                if key != b"x-request-id":
                    traced.append(key)
                value = b"%b"
            lines.append(_escaped(name) + b": " + value + b"\r\n")
        self._format = b"".join(lines)
        self._traced = tuple(traced)

    def write(self, length: int, request_id: bytes, first: Mapping[bytes, bytes], peer: bytes = b"") -> RawHeaders:
        """Return the headers of a request.

        Args:
            length: the size of the body in bytes.
            request_id: the value of ``X-Request-Id``.
            first: the values of trace headers, and perhaps others, by lower-case name.
            peer: the address of the peer, as `Peer.written`.
        """
        values: tuple[bytes | int, ...]
        if self._has_peer:
            values = (length, peer, request_id) if self._has_length else (peer, request_id)
        else:
            values = (length, request_id) if self._has_length else (request_id,)
        if self._traced:
            values = (*(first[name] for name in self._traced), *values)
        return RawHeaders(self._format % values)


class Caller(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A caller that was authenticated.

    Attributes:
        principal: who it is.
        permissions: what tells its decisions apart from those of others.
        payer: as in `Authorization`.
    """

    principal: Principal
    permissions: Permissions
    payer: msgspec.Raw


class OtherCaller(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A caller without a virtual key, which holds for one head and credential until anything changes.

    Attributes:
        caller: the caller.
        changes: the change counter (`KeyIndex.changes`) when it was authenticated.
    """

    caller: Caller
    changes: int


class CachedAuthorization:
    """The authorization of one head for all callers with the same permissions.

    Attributes:
        formats: the header formats of servers that were chosen since, by server and what else they depend on.
        epoch: the state of the settings (`KeyIndex.epoch`) for which it holds.
    """

    __slots__ = ("_decided", "_last", "epoch", "formats")

    def __init__(self, authorization: Authorization, epoch: int) -> None:
        """Take the authorization of one of these callers."""
        self.formats: BoundedCache[object, HeaderFormat] = BoundedCache(MOST_FORMATS, LONGEST_HEAD)
        self.epoch = epoch
        # all but principal and payer
        self._decided = msgspec.structs.astuple(authorization)[2:]
        self._last = authorization

    def of(self, caller: Caller) -> Authorization:
        """Return the authorization of another of them."""
        last = self._last
        if last.principal is not caller.principal:
            last = self._last = Authorization(caller.principal, caller.payer, *self._decided)
        return last


class AuthorizationCache:
    """Finds the caller of a head that came before, and what was decided about it. ``len()`` is the decisions kept."""

    def __init__(self, admission: Admission) -> None:
        """Start empty.

        Args:
            admission: knows the keys in use, and counts changes.
        """
        self._index = admission.index
        self._known = admission.known
        self._classes = PermissionClasses()
        self._decisions: BoundedCache[tuple[object, object], CachedAuthorization]
        self._decisions = BoundedCache(MOST_DECISIONS, LONGEST_HEAD)
        self._others: BoundedCache[tuple[object, bytes], OtherCaller] = BoundedCache(MOST_HEADS, LONGEST_HEAD)

    def __len__(self) -> int:
        return len(self._decisions)

    def caller(self, template: object, credential: bytes, now: float) -> Caller | None:
        """Return the caller of a head, if it was authenticated before and that still holds.

        Args:
            template: the head's template.
            credential: its credential, as `RequestHead.credential`.
            now: the time in Unix seconds.
        """
        key, index = self._known(credential), self._index
        if key is not None:
            if now >= key.principal.expires or not (key.changes == index.changes or index.is_current(key)):
                return None
            key.used = True
            caller: Caller | None = key.caller
            return caller
        other = self._others.get((template, credential))
        if other is None or other.changes != index.changes or now >= other.caller.principal.expires:
            return None
        return other.caller

    def find(self, template: object, caller: Caller) -> CachedAuthorization | None:
        """Return what was decided about a head of this template for such callers; None if nothing that still holds."""
        get = self._decisions.get
        found = get((template, caller.permissions)) or get((template, caller))
        return found if found is not None and found.epoch == self._index.epoch else None

    def keep(self, template: object, credential: bytes, authorization: Authorization) -> CachedAuthorization | None:
        """Keep the authorization of a head, unless the next one may be decided differently.

        Args:
            template: the head's template.
            credential: its credential.
            authorization: what was decided for its caller just now.
        """
        principal = authorization.principal
        if principal is PREFLIGHT:
            # a head of the same template may announce a body
            return None
        caller = self._keep_caller(template, credential, authorization)
        decided = CachedAuthorization(authorization, self._index.epoch)
        # a stored response belongs to one key
        scope: object = caller.permissions if authorization.response_id is None else caller
        self._decisions.keep((template, scope), decided, len(authorization.forwarded))
        return decided

    def _keep_caller(self, template: object, credential: bytes, authorization: Authorization) -> Caller:
        principal = authorization.principal
        key = self._known(credential)
        is_key = key is not None and key.principal is principal
        if key is not None and is_key and key.caller is not None:
            known: Caller = key.caller
            return known
        caller = Caller(principal, self._classes.of(principal), authorization.payer)
        if key is not None and is_key:
            key.caller = caller
        else:
            other = OtherCaller(caller, self._index.changes)
            self._others.keep((template, credential), other, len(credential))
        return caller


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
