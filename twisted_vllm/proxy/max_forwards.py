"""``Max-Forwards``: how many more servers may pass on an OPTIONS or TRACE request (RFC 9110 §7.6.2)."""

from __future__ import annotations

from twisted_vllm.api_routes import VllmRoute
from twisted_vllm.errors import InvalidRequest, MethodNotAllowed
from twisted_vllm.http.headers import HeaderList, RequestHead, ResponseHead

MAX_FORWARDS = b"max-forwards"

#: the methods for which the header counts
COUNTED_METHODS = frozenset((b"OPTIONS", b"TRACE"))

#: a larger number is passed on as this one
MOST = 255


def is_last(head: RequestHead) -> bool:
    """Return whether the gateway must answer an OPTIONS or TRACE request itself.

    Raises:
        InvalidRequest: the header is not one number.
        MethodNotAllowed: for TRACE, whose answer would show what proxies added to the request.
    """
    if MAX_FORWARDS not in head.first:
        return False
    if head.names.count(MAX_FORWARDS) > 1 or not head.first[MAX_FORWARDS].isdigit():
        raise InvalidRequest("Max-Forwards must be one whole number.")
    if head.first[MAX_FORWARDS].strip(b"0"):
        return False
    if head.method == b"TRACE":
        raise MethodNotAllowed("The gateway answers no TRACE.")
    return True


def own_answer(row: VllmRoute) -> ResponseHead:
    """Return the answer to OPTIONS at the last server: the route's methods, as far as they are known."""
    methods = dict.fromkeys((*row.methods, b"OPTIONS"))
    return ResponseHead.own(204, b"No Content", [(b"allow", b", ".join(methods))] if row.methods else [])


def one_less(headers: HeaderList) -> HeaderList:
    """Return headers that `is_last` has checked, with one server fewer in ``Max-Forwards``."""
    return [
        (name, b"%d" % _less(value.lstrip(b"0"))) if name.lower() == MAX_FORWARDS else (name, value)
        for name, value in headers
    ]


def _less(digits: bytes) -> int:
    return min(int(digits) - 1, MOST) if len(digits) <= len(str(MOST)) else MOST
