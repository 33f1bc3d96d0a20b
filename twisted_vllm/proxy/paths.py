"""Maps a request target below a mount to the vLLM server's target.

Path and query keep their bytes: ``%2F``, repeated parameters, their order and ``+``. Only routes that vLLM serves below
``/v1`` alone get a missing ``/v1`` added (`VllmRoute.alias`), so that one base URL serves both ``/metrics`` and
``/chat/completions``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import attrs

from twisted_vllm.api_routes import MEMOISED_LENGTH, without_alias
from twisted_vllm.errors import InvalidRequest

# RFC 9112 §3.2 allows no fragment in a request target; uvicorn (httptools) cuts one off and refuses other bytes. So the
# gateway and vLLM would read the excluded bytes differently.
_TARGET = re.compile(rb"[!\"$-~]*")
_SEGMENT_ENDS = re.compile(rb"[/\\]")
_ANY_SLASH = re.compile(r"[/\\]")


@attrs.frozen
class Target:
    """The destination of a request on the server.

    Attributes:
        path: the raw path, with its ``/v1``.
        query: the raw query; None without a ``?``.
        forwarded: the path and query to send, below the server's base path.
    """

    path: bytes
    query: bytes | None
    forwarded: bytes


def target(raw: bytes, aliases: bool = True) -> Target:
    """Return the destination of a request.

    Args:
        raw: the request target below its mount as received, such as ``b"/chat/completions?x=%2F"``.
        aliases: whether routes that vLLM serves only below ``/v1`` also work without it.

    Raises:
        InvalidRequest: the target has invalid bytes, or dot segments that lead out of ``/vllm``.
    """
    if len(raw) <= MEMOISED_LENGTH:
        return _memoised(raw, aliases)
    return _target(raw, aliases)


def _target(raw: bytes, aliases: bool) -> Target:
    path, mark, query = raw.partition(b"?")
    path = path or b"/"
    if not path.startswith(b"/"):
        raise InvalidRequest("The path below /vllm must begin with a slash.")
    if not _TARGET.fullmatch(raw):
        raise InvalidRequest(
            "The request target has a fragment, a control character, a space or a byte above 127. Percent-encode it."
        )
    if (b"." in path or b"%" in path) and _escapes_root(path):
        raise InvalidRequest("The path's dot segments climb out of /vllm. Send the path that is meant, without them.")
    if aliases:
        path = without_alias(path)
    return Target(path, query, path + b"?" + query) if mark else Target(path, None, path)


def _escapes_root(path: bytes) -> bool:
    """Return whether any server or proxy could resolve `path` to something above its root.

    The path is checked as it is (an escaped dot is a dot: RFC 3986 §6.2.2.2) and decoded once, as uvicorn does. As in
    some proxies, backslashes separate segments, ``;parameters`` are cut and empty segments are ignored. As in others, a
    backslash is also an ordinary character: as a separator it adds a segment, which hides one step up.
    """
    readings = (re.sub(rb"%2e", b".", path, flags=re.IGNORECASE), unquote_to_bytes(path))
    return any(
        _goes_above_root(segments)
        for decoded in readings
        for segments in (_SEGMENT_ENDS.split(decoded), decoded.split(b"/"))
    )


def _goes_above_root(segments: Iterable[bytes]) -> bool:
    depth = 0
    for piece in segments:
        segment = piece.partition(b";")[0]
        if segment == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif segment not in (b"", b"."):
            depth += 1
    return False


_memoised = lru_cache(maxsize=1024)(_target)


#: the paths of one model, below which its name stands; the second is an alias
_MODEL_PATHS = (b"/v1/models/", b"/models/")


def model_in(path: bytes, aliases: bool) -> str | None:
    """Return the name of the model that a path describes; None if it describes none.

    The name may have slashes, percent-encoded or not.

    Args:
        path: the raw path, as in `Target`.
        aliases: whether it may stand without ``/v1``.
    """
    for start in _MODEL_PATHS if aliases else _MODEL_PATHS[:1]:
        if path.startswith(start):
            with suppress(UnicodeDecodeError):
                name = unquote_to_bytes(path[len(start) :]).decode("utf-8")
                # a server without --served-model-name names its model by an absolute path; with a last slash it is
                # the list's path; with dot segments, nobody knows
                parts = _ANY_SLASH.split(name.removeprefix("/"))
                return None if any(part in ("", ".", "..") for part in parts) else name
    return None
