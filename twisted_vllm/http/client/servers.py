"""The configured servers by their URLs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from twisted.web.client import URI

from twisted_vllm.config.settings import Server, Timeouts

#: longer URLs (in bytes) are not cached: a client may send a query of any length
MEMOISED_LENGTH = 256

#: offset from which to search the end of a URL's authority: after ``//`` and at least one character
_AUTHORITY = len(b"http://?")


class ServersByURL:
    """Finds the server that a URL belongs to.

    Servers with the same URL differ in their keys and total timeouts, which do not affect the connection. The first of
    them represents all.
    """

    def __init__(self, servers: Iterable[Server] = ()) -> None:
        # by scheme and authority: pairs of base URL and server, the longest URL first
        self._servers: dict[bytes, list[tuple[bytes, Server]]] = {}
        self._memoised = lru_cache(maxsize=1024)(self._find)
        for server in servers:
            self.add(server)

    def add(self, server: Server) -> None:
        """Add a server, unless there is one of this URL."""
        base = server.url + b"/"
        origin = server.url.removesuffix(server.base_path)
        candidates = self._servers.setdefault(origin, [])
        if base not in [url for url, _ in candidates]:
            candidates.append((base, server))
            candidates.sort(key=lambda entry: -len(entry[0]))
            self._memoised.cache_clear()

    def find(self, url: bytes) -> tuple[Server, bytes]:
        """Return the server of a URL without a fragment, and the request target; empty if the URL has no path.

        A URL that belongs to no configured server gets a server with default timeouts.
        """
        return self._memoised(url) if len(url) <= MEMOISED_LENGTH else self._find(url)

    def _find(self, url: bytes) -> tuple[Server, bytes]:
        end = url.find(b"/", _AUTHORITY)
        for base, server in self._servers.get(url[:end], ()):
            if url.startswith(base):
                return server, url[end:]
        return self._parse(url)

    def _parse(self, url: bytes) -> tuple[Server, bytes]:
        parsed = URI.fromBytes(url)
        target = parsed.originForm if parsed.path or parsed.query else b""
        if target.startswith(b"?"):
            target = b"/" + target
        origin = b"%b://%b" % (parsed.scheme, parsed.netloc)
        for base, server in self._servers.get(origin, ()):
            if (origin + (target or b"/")).startswith(base):
                return server, target
        server = Server(
            name=parsed.netloc.decode("ascii"),
            host=parsed.host.decode("ascii"),
            port=parsed.port,
            tls=parsed.scheme == b"https",
            base_path=b"",
            host_header=parsed.netloc,
            api_key=None,
            timeouts=Timeouts(),
        )
        return server, target
