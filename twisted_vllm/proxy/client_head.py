"""Changes to a server's response head: its own address, and the id of a second attempt, must not reach the client."""

from __future__ import annotations

from twisted_vllm.config.settings import Server
from twisted_vllm.context import RequestContext
from twisted_vllm.http.headers import HeaderList, ResponseHead

#: headers that hold a URL of the response
_LOCATIONS = frozenset((b"location", b"content-location"))


def for_client(head: ResponseHead, context: RequestContext, mount: bytes) -> ResponseHead:
    """Return the head for the client: this one, or a changed one.

    vLLM redirects ``/v1/models/`` to its own address, which is internal. The client gets the gateway's path instead.

    Args:
        head: the server's head.
        context: the request's context.
        mount: what stands before the server's paths in the gateway's: ``/vllm``, or nothing.
    """
    assert context.server is not None
    relayed: HeaderList = []
    for name, value in head.relayed:
        key = name.lower()
        if key in _LOCATIONS:
            value = own_location(value, context.server, mount)
        elif key == b"x-request-id" and context.repeated_as:
            value = context.request_id
        relayed.append((name, value))
    if context.fallback:
        relayed.append((b"x-litellm-model-group", context.fallback.encode("utf-8")))
    return head if relayed == head.relayed else head.replacing(relayed)


def own_location(value: bytes, server: Server, mount: bytes) -> bytes:
    """Return a URL of a response as the gateway's, if it is a path on the server or a URL of the server.

    Args:
        value: an absolute URL, one without a scheme, a path, or a relative reference (RFC 3986 §4.1).
        server: the server.
        mount: what stands before the server's paths in the gateway's.
    """
    scheme, separator, rest = value.partition(b"//")
    if separator and scheme.lower() in (b"http:", b"https:", b""):
        at = min((index for index in map(rest.find, (b"/", b"?", b"#")) if index >= 0), default=len(rest))
        authority, path = rest[:at], rest[at:]
        if authority.rpartition(b"@")[2].lower() not in _authorities(server):
            return value
    elif value.startswith(b"/"):
        path = value
    else:
        return value
    base = server.base_path
    if base and (path == base or path.startswith((base + b"/", base + b"?"))):
        path = path[len(base) :]
    return mount + path


def _authorities(server: Server) -> tuple[bytes, ...]:
    """Return how a URL may name the server, in lower case."""
    host = server.host.lower().encode("ascii")
    if b":" in host:
        host = b"[%b]" % host
    named = (server.host_header.lower(), b"%b:%d" % (host, server.port))
    return (*named, host) if server.port == (443 if server.tls else 80) else named
