"""The database's URL: which databases there are, in SQLAlchemy's spelling, and how one is shown."""

from __future__ import annotations

import re

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.shape import text

_POSTGRESQL = "postgresql+psycopg"
#: how others write what is SQLAlchemy's ``postgresql+psycopg``
_SCHEMES = {"postgres": _POSTGRESQL, "postgresql": _POSTGRESQL, _POSTGRESQL: _POSTGRESQL, "sqlite": "sqlite"}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
#: parameters of Prisma, LiteLLM's database client, that PostgreSQL's own client refuses
_PRISMA_ONLY = frozenset(
    {"schema", "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size", "sslaccept"}
)


def database_url(value: object, place: Place) -> Secret:
    """Check for a PostgreSQL or SQLite URL. Of a refused one, only the scheme is repeated: it may hold a password."""
    found = text(value, place)
    scheme, separator, rest = found.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise Rejected("must be a URL (postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE)")
    if scheme not in _SCHEMES:
        raise Rejected(f"{scheme} is not supported (write postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE)")
    normal = f"{_SCHEMES[scheme]}://{rest}"
    try:
        url = make_url(normal)
    except (ArgumentError, ValueError):
        raise Rejected("is not a valid URL (percent-encode special characters of the password)") from None
    if scheme == "sqlite":
        if not rest.startswith("/") or not url.database:
            raise Rejected("names no file (write sqlite:///FILE, or sqlite:////DIRECTORY/FILE for an absolute path)")
    elif foreign := sorted(_PRISMA_ONLY & url.query.keys()):
        raise Rejected(f"has parameters that PostgreSQL does not know: {', '.join(foreign)} (remove them)")
    return Secret(normal)


def describe_database(url: Secret) -> str:
    """Return the kind and place of a database, without the user's name and password."""
    parsed: URL = make_url(url.reveal())
    if parsed.get_backend_name() == "sqlite":
        return f"SQLite, file {parsed.database}"
    host = parsed.host or "the local socket"
    return f"PostgreSQL, {host}{f':{parsed.port}' if parsed.port else ''}, database {parsed.database or '(default)'}"
