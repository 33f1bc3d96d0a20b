"""What stands in several places of the settings, together."""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy.engine import make_url

from twisted_vllm.config.settings import Server, Settings


def servers_of(settings: Settings) -> list[Server]:
    """Return every vLLM server that the settings name, each once, the default server first."""
    default = [settings.default_server] if settings.default_server is not None else []
    return list(dict.fromkeys([*default, *(entry.server for entry in settings.models)]))


def secrets_of(settings: Settings) -> list[str]:
    """Return every secret that the settings hold, for the log to strike out."""
    found = [settings.database_url.reveal()]
    password = make_url(settings.database_url.reveal()).password
    if password is not None:
        found.append(password)
    if settings.redis is not None and settings.redis.password is not None:
        # as it is, and as a URL spells it
        revealed = settings.redis.password.reveal()
        found += [revealed, *{quote(revealed, safe=""), quote(revealed)} - {revealed}]
    if settings.master_key is not None:
        found.append(settings.master_key.reveal())
    found += [server.api_key.reveal() for server in servers_of(settings) if server.api_key is not None]
    return found
