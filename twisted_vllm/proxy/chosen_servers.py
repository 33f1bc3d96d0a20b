"""The servers that a request's own headers choose: ``x-vllm-passthrough-server`` and ``x-vllm-passthrough-model``."""

from __future__ import annotations

from collections.abc import Mapping

from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.steering_headers import SERVER
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import ServerNotAllowed, ServerNotFound

#: characters of a caller's text, and names of servers, to quote in a message
CLIP, MOST_NAMED = 100, 20


def may_choose(principal: Principal) -> bool:
    """Return whether a caller may choose the server of its requests, and see the names of servers."""
    return principal.is_administrator or SERVER in principal.granted_headers


def chosen_server(principal: Principal, headers: Mapping[bytes, bytes], servers: Mapping[str, Server]) -> Server | None:
    """Return the server that a request names; None if it names none.

    Args:
        principal: the caller.
        headers: the first value of each header, by lower-case name.
        servers: all configured servers by their names, ``host:port`` and the base path.

    Raises:
        ServerNotAllowed: the caller may not choose. To ignore the header would be worse: ``/sleep`` would go to all
            servers in place of one.
        ServerNotFound: no server has the name. Administrators are told which there are.
    """
    value = headers.get(SERVER)
    if value is None:
        return None
    if not may_choose(principal):
        raise ServerNotAllowed(
            f"This key may not choose a server. Leave the header {SERVER.decode()} out, or ask an administrator to add "
            "it to the key's granted_headers.",
            param=SERVER.decode(),
        )
    name = value.decode("latin-1").strip()
    found = servers.get(name)
    if found is None:
        raise server_not_found(principal, f"No server is called {name[:CLIP]!r}", servers)
    return found


def server_not_found(principal: Principal, what: str, servers: Mapping[str, Server]) -> ServerNotFound:
    """Return the error for a server that a request names in vain, with the names that an administrator may use.

    Args:
        principal: the caller.
        what: what is wrong, without its full stop.
        servers: the servers that would do, by their names.
    """
    named = ""
    if principal.is_administrator and servers:
        named = f" There are: {', '.join(list(servers)[:MOST_NAMED])}{', …' if len(servers) > MOST_NAMED else ''}."
    return ServerNotFound(f"{what}.{named}", param=SERVER.decode())
