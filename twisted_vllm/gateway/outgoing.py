"""The header list that goes to a vLLM server: the client's, less what is not the server's business."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted_vllm.access.credentials import CREDENTIAL_HEADERS, SUBPROTOCOLS
from twisted_vllm.config.settings import Server
from twisted_vllm.gateway.forwarded import FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO
from twisted_vllm.wire.headers import HOP_BY_HOP, HeaderList, nominated

#: What steers vLLM's scheduler and routing, and is the operator's to set (vLLM 0.32: its serving layers read these).
#: The adapter headers put another model in the place of the body's on /invocations.
OPERATORS_HEADERS = frozenset(
    (
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        b"x-session-id",
        b"endpoint-load-metrics-format",
        b"x-amzn-sagemaker-session-id",
        b"x-amzn-sagemaker-closed-session-id",
        b"x-amzn-sagemaker-adapter-identifier",
        b"x-amzn-sagemaker-adapter-alias",
    )
)

#: what the gateway writes itself; among the subprotocols may be a key
_WRITTEN_ANEW = frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"x-request-id",
        FORWARDED_FOR,
        FORWARDED_HOST,
        FORWARDED_PROTO,
        SUBPROTOCOLS,
    )
)

_NEVER = HOP_BY_HOP | CREDENTIAL_HEADERS | _WRITTEN_ANEW
_NEVER_FROM_TENANTS = _NEVER | OPERATORS_HEADERS


def dropped_from(trusted: bool) -> frozenset[bytes]:
    """Return the lower-case names that never go on; `trusted` is whether the caller may set the operator's headers."""
    return _NEVER if trusted else _NEVER_FROM_TENANTS


def outgoing_headers(
    headers: HeaderList,
    names: Sequence[bytes],
    *,
    server: Server,
    trusted: bool,
    request_id: bytes,
    forwarded: Iterable[tuple[bytes, bytes]],
    framing: tuple[bytes, bytes] | None,
    connection: bytes | None,
    expects_continue: bool,
) -> HeaderList:
    """Return the headers of the request to the server.

    Args:
        headers: the client's, as they came.
        names: their names in lower case, in the same order.
        server: where they go.
        trusted: whether the caller may set the operator's headers.
        request_id: what ``X-Request-Id`` says.
        forwarded: the ``X-Forwarded-*`` headers.
        framing: ``Content-Length`` or ``Transfer-Encoding``, or None for a request without a body.
        connection: the value of the client's ``Connection``, whose nominees stay behind.
        expects_continue: whether the client waits for the server's ``100 Continue``.
    """
    drop = dropped_from(trusted)
    if connection is not None:
        drop = drop | nominated(connection)
    out: HeaderList = [(b"Host", server.host_header)]
    out += [pair for name, pair in zip(names, headers, strict=True) if name not in drop]
    if framing is not None:
        out.append(framing)
    if server.api_key is not None:
        out.append((b"Authorization", b"Bearer " + server.api_key.reveal().encode()))
    if expects_continue:
        out.append((b"Expect", b"100-continue"))
    out.append((b"X-Request-Id", request_id))
    out += forwarded
    return out
