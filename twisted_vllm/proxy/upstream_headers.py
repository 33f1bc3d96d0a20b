"""The header list for a vLLM server: the client's, without hop-by-hop, credential and operator headers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted_vllm.auth.credentials import SUBPROTOCOLS
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.auth.steering_headers import ADAPTER_HEADERS, GATEWAYS_HEADERS, OPERATORS_HEADERS
from twisted_vllm.config.settings import Server
from twisted_vllm.http.headers import (
    CREDENTIAL_HEADERS,
    HOP_BY_HOP,
    TRACE_HEADERS,
    HeaderList,
    nominated,
    without_twins,
)
from twisted_vllm.proxy.forwarded import FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PREFIX, FORWARDED_PROTO

PRIORITY = b"x-vllm-priority"

REQUEST_ID = b"X-Request-Id"

#: headers that the gateway writes itself; the subprotocols may contain a key
_WRITTEN_ANEW = frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"x-request-id",
        FORWARDED_FOR,
        FORWARDED_HOST,
        FORWARDED_PROTO,
        FORWARDED_PREFIX,
        SUBPROTOCOLS,
    )
)

_NEVER = HOP_BY_HOP | CREDENTIAL_HEADERS | _WRITTEN_ANEW | GATEWAYS_HEADERS
_NEVER_FROM_TENANTS = _NEVER | OPERATORS_HEADERS


def dropped_from(principal: Principal) -> frozenset[bytes]:
    """Return the lower-case names to drop from a caller's headers, operator headers that it lacks included."""
    if principal.is_administrator:
        return _NEVER
    granted = principal.granted_headers
    return _NEVER | (OPERATORS_HEADERS - granted) if granted else _NEVER_FROM_TENANTS


def outgoing_headers(
    headers: HeaderList,
    names: Sequence[bytes],
    *,
    server: Server,
    principal: Principal,
    request_id: bytes,
    forwarded: Iterable[tuple[bytes, bytes]],
    framing: tuple[bytes, bytes] | None,
    connection: bytes | None,
    expects_continue: bool,
    trace: HeaderList | None = None,
) -> HeaderList:
    """Return the headers of the request to the server.

    Args:
        headers: the client's headers, as received.
        names: their names in lower case, in the same order.
        server: the destination.
        principal: the caller; decides which operator headers it may set, and its priority. A preflight, which a
            stranger may send, does not get the server's key.
        request_id: the value of ``X-Request-Id``.
        forwarded: the ``X-Forwarded-*`` headers.
        framing: ``Content-Length`` or ``Transfer-Encoding``, or None for a request without a body.
        connection: the value of the client's ``Connection``. The headers that it nominates are dropped, but the
            adapter's: by these the gateway has decided.
        expects_continue: whether the client waits for the server's ``100 Continue``.
        trace: the headers of a trace, in place of the client's; None passes on the client's.
    """
    drop = dropped_from(principal)
    if connection is not None:
        drop = drop | (nominated(connection) - ADAPTER_HEADERS)
    out: HeaderList = [(b"Host", server.host_header)]
    if trace is not None:
        drop = drop | TRACE_HEADERS
        # before the framing, as `HeaderFormat` expects
        out += trace
    sound = without_twins(headers, names, drop)
    if sound is not headers:
        headers, names = sound, [name.lower() for name, _ in sound]
    out += [pair for name, pair in zip(names, headers, strict=True) if name not in drop]
    if principal.priority is not None and (PRIORITY in drop or PRIORITY not in names):
        out.append((b"X-Vllm-Priority", b"%d" % principal.priority))
    if framing is not None:
        out.append(framing)
    if server.api_key is not None and principal is not PREFLIGHT:
        out.append((b"Authorization", b"Bearer " + server.api_key.reveal().encode()))
    if expects_continue:
        out.append((b"Expect", b"100-continue"))
    out += forwarded
    # last, as `HeaderFormat` expects
    out.append((REQUEST_ID, request_id))
    return out
