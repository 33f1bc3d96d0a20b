"""Start lines of other protocols, which llhttp reads as if they were HTTP: RTSP and ICE.

The parsers check here the lines that may name another protocol. That is rare: hardly a segment holds such a name, or
ends within a start line.
"""

from __future__ import annotations

#: what stands in a request line of RTSP's; ICE has but the method ``SOURCE``, which `origin_form` refuses
OTHER_PROTOCOL = b" RTSP/"

#: bytes at the end of an unfinished line that must be kept to recognise the protocol with what follows
KEPT = len(OTHER_PROTOCOL)

_HTTP_1 = b"HTTP/1."

#: bytes at the beginning of a status line up to the end of its status
_ENOUGH = len(b"HTTP/1.1 200")

#: methods that RTSP and HTTP share
_SHARED_METHODS = (b"GET", b"POST", b"OPTIONS")


def unfinished_request_line(data: bytes, target: bytes, has_headers: bool) -> bytes:
    """Return the end of the request line that `data` ends within; nothing where the line has ended.

    Args:
        data: a segment.
        target: the request target, as far as it was read.
        has_headers: whether a header of this request was read.
    """
    if has_headers:
        return b""
    line = data[data.rfind(b"\n") + 1 :]
    if target:
        # a line that follows the request's, or the request's own, perhaps behind the end of another's body
        before, found, after = line.rpartition(b" " + target)
        named = after.lstrip(b" ")
        if not found or not before.rstrip(b" ").endswith(_SHARED_METHODS) or not OTHER_PROTOCOL[1:].startswith(named):
            return b""
    return line[-KEPT:]


class StatusLines:
    """Looks at the status lines of a response and of the interim responses before it."""

    def __init__(self) -> None:
        self._line = b""
        self._in_head = self._done = False

    def allow(self, data: bytes) -> bool:
        """Tell whether a segment has no status line of another protocol, or of another version than HTTP/1's."""
        if self._done:
            return True
        *lines, rest = (self._line + data).split(b"\n")
        for line in lines:
            line = line.strip(b"\r")
            if self._in_head:
                self._in_head = bool(line)
            elif line:
                if line[:7] != _HTTP_1:
                    return False
                if line[9:10] != b"1" or line[9:12] == b"101":
                    # what follows is the response, or no HTTP at all
                    self._done = True
                    return True
                self._in_head = True
        self._line = rest[:_ENOUGH]
        return self._in_head or _HTTP_1.startswith(rest.strip(b"\r")[:7])
