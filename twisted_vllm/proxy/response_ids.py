"""The ids of stored responses: who made a response, and which server has it, can be told from its id alone.

vLLM stores a response below the request's own ``request_id`` (0.32: ``openai/responses/protocol.py``). So the gateway
chooses that id for every request of a virtual key: ``resp_`` and 32 hex digits. 64 of the bits are random, 16 are a
digest of these and the server's name, and 48 are a digest of both under the key's permanent id. vLLM's own ids have the
same form with 16 digits; it accepts any text.

The digests are not secret: nobody can choose an id, so nobody can make another key's id one of his own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from urllib.parse import unquote_to_bytes

from twisted_vllm.auth.records import Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import ResponseNotFound

#: characters of a caller's id to quote in a message
CLIP = 100
#: servers that are no longer configured and are remembered, and the maximum length of such a name
MAX_DEPARTED, MAX_NAME = 1_000, 512
#: the sizes of the parts of an id, in bytes
RANDOM_BYTES, SERVER_BYTES, OWNER_BYTES = 8, 2, 6

_ID = re.compile(r"resp_([0-9a-f]{16})([0-9a-f]{4})([0-9a-f]{12})", re.ASCII)
# anywhere in the path: a server may have a prefix of its own
_STORED = re.compile(rb"/v1/responses/([^/]+)(.*)", re.DOTALL)
#: takes the body of a new response, and no id
_RENDER = b"render"


def response_not_found(response_id: str) -> ResponseNotFound:
    """Return the error for a response that does not exist, or that another key made: vLLM's own words."""
    return ResponseNotFound(f"Response with id '{response_id[:CLIP]}' not found.", param="response_id")


def stored_response_in(path: bytes) -> str | None:
    """Return the id of the stored response that a path names, as vLLM reads it; None if it names none.

    Args:
        path: the raw path for the server, without the query. The server decodes it once.
    """
    if b"responses" not in path and b"%" not in path:
        return None
    found = _STORED.search(unquote_to_bytes(path))
    if found is None or (found[1] == _RENDER and not found[2]):
        return None
    return found[1].decode("utf-8", "replace")


def hides_responses(path: bytes) -> bool:
    """Return whether the server may read a path as ``/v1/responses``, whatever the gateway takes it for."""
    if b"responses" not in path and b"%" not in path:
        return False
    # Starlette's patterns match before a last line feed too
    return unquote_to_bytes(path).removesuffix(b"\n").endswith(b"/v1/responses")


class ResponseIds:
    """Makes and reads the ids of stored responses."""

    def __init__(self, servers: Iterable[Server], randbytes: Callable[[int], bytes]) -> None:
        """Set up.

        Args:
            servers: all configured servers.
            randbytes: a random source.
        """
        self._servers: dict[str, Server] = {}
        self._departed: BoundedCache[str, None] = BoundedCache(MAX_DEPARTED, MAX_NAME)
        self._randbytes = randbytes
        self.reconfigure(servers)

    def reconfigure(self, servers: Iterable[Server]) -> None:
        """Use other servers from now on; responses on a server that is gone are not found."""
        before = self._servers
        self._servers = {server.name: server for server in reversed(tuple(servers))}
        for name in before:
            if name not in self._servers:
                self._departed.keep(name, None, len(name))

    def make(self, principal: Principal, server: Server) -> str:
        """Return the id of a new response."""
        return response_id_of(principal.key_id, server.name, self._randbytes(RANDOM_BYTES))

    def server_of(self, principal: Principal, response_id: str) -> Server | None:
        """Return the server that has a response; for an administrator, None if the id does not tell.

        Raises:
            ResponseNotFound: the caller is a virtual key and did not make the response; or its server was taken out of
                the configuration.
        """
        parts = _ID.fullmatch(response_id)
        if parts is not None:
            for name, server in self._servers.items():
                if _is_of(parts, name, principal):
                    return server
            for name, _ in self._departed.newest_first():
                if _is_of(parts, name, principal):
                    raise ResponseNotFound(
                        f"The server that had the response '{response_id}' is no longer configured. Send the request "
                        "again without it.",
                        param="response_id",
                    )
        if principal.is_administrator:
            return None
        raise response_not_found(response_id)


def response_id_of(key_id: str, server: str, random: bytes) -> str:
    """Return the id of a response of a key on a server, with `RANDOM_BYTES` random bytes."""
    return f"resp_{random.hex()}{_server_part(server, random)}{_owner_part(key_id, server, random)}"


def _is_of(parts: re.Match[str], server: str, principal: Principal) -> bool:
    """Return whether an id is of a server, and of a caller unless that is an administrator."""
    random = bytes.fromhex(parts[1])
    return _server_part(server, random) == parts[2] and (
        principal.is_administrator or _owner_part(principal.key_id, server, random) == parts[3]
    )


def _server_part(server: str, random: bytes) -> str:
    return blake2b(random + server.encode("utf-8", "surrogateescape"), digest_size=SERVER_BYTES).hexdigest()


def _owner_part(key_id: str, server: str, random: bytes) -> str:
    content = random + server.encode("utf-8", "surrogateescape")
    return blake2b(content, digest_size=OWNER_BYTES, key=key_id.encode()[: blake2b.MAX_KEY_SIZE]).hexdigest()
