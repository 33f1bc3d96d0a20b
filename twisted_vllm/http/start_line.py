"""Start lines of other protocols, which llhttp reads as if they were HTTP: RTSP and ICE.

The parsers check here the lines that may name another protocol. That is rare: few segments contain such a name, or end
within a start line.
"""

from __future__ import annotations

#: marks a request line of RTSP; ICE has only the method ``SOURCE``, which `origin_form` refuses
OTHER_PROTOCOL = b" RTSP/"

#: bytes of an unfinished line to keep, so that the protocol is recognised across segments
KEPT = len(OTHER_PROTOCOL)

_HTTP_1 = b"HTTP/1."

#: length of a status line up to the end of its status
_STATUS_END = len(b"HTTP/1.1 200")

#: methods that RTSP and HTTP share
_SHARED_METHODS = (b"GET", b"POST", b"OPTIONS")


def unfinished_request_line(data: bytes, target: bytes, has_headers: bool) -> bytes:
    """Return the last bytes of the request line that `data` leaves unfinished; empty if it is finished.

    Args:
        data: a segment.
        target: the request target read so far.
        has_headers: whether any header of this request was read.
    """
    if has_headers:
        return b""
    line = data[data.rfind(b"\n") + 1 :]
    if target:
        # a later line, or the request line itself, perhaps after the end of another request's body
        before, found, after = line.rpartition(b" " + target)
        named = after.lstrip(b" ")
        if not found or not before.rstrip(b" ").endswith(_SHARED_METHODS) or not OTHER_PROTOCOL[1:].startswith(named):
            return b""
    return line[-KEPT:]


class StatusLines:
    """Checks the status lines of a response and of the interim responses before it."""

    def __init__(self) -> None:
        self._line = b""
        self._in_head = self._done = False

    def allow(self, data: bytes) -> bool:
        """Return whether all status lines of a segment are HTTP/1."""
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
                    # what follows is the final response, or not HTTP
                    self._done = True
                    return True
                self._in_head = True
        self._line = rest[:_STATUS_END]
        return self._in_head or _HTTP_1.startswith(rest.strip(b"\r")[:7])
