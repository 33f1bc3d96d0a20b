"""Runs Canaille, an OpenID provider of its own right (MIT licence; its tokens are Authlib's and joserfc's), in memory.

``python -m tests.services.canaille_server``, with what it holds as JSON on standard input; it says ``ready`` and serves
until it is killed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

#: it serves without TLS, on the loopback
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"


def main(told: dict[str, Any]) -> None:
    """Serve what was told: host, port, users, groups and clients."""
    from canaille import create_app
    from werkzeug.serving import make_server

    find_what_fits_all()
    app = create_app(
        {
            "SECRET_KEY": "of-tests-" * 4,
            "SERVER_NAME": f"{told['host']}:{told['port']}",
            "PREFERRED_URL_SCHEME": "http",
            "CANAILLE": {
                "DATABASE": "memory",
                "FORCE_HTTPS": False,
                "ACL": {"DEFAULT": {"PERMISSIONS": ["edit_self", "use_oidc"], "READ": ["user_name", "groups"]}},
            },
            "CANAILLE_OIDC": {"ENABLE_OIDC": True},
        }
    )
    with app.app_context():
        fill(told)
    server = make_server("127.0.0.1", told["port"], app, threaded=True)
    print("ready", flush=True)
    server.serve_forever()


def find_what_fits_all() -> None:
    """Mend what is in memory: it finds what fits one of several conditions, such as the consent or code of another."""
    from canaille.backends.memory.backend import MemoryBackend

    memory: Any = MemoryBackend
    find_any = memory.do_query

    def find_all(self: Any, model: Any, *args: Any, **conditions: Any) -> list[Any]:
        found = [find_any(self, model, **{name: value}) for name, value in conditions.items()]
        fitting = set.intersection(*({each.id for each in some} for some in found)) if found else set()
        return [each for each in found[0] if each.id in fitting] if found else list(find_any(self, model, *args))

    memory.do_query = find_all


def fill(told: dict[str, Any]) -> None:
    """Make the users, groups and clients."""
    from canaille.app import models
    from canaille.backends import Backend

    known: Any = models
    backend: Any = Backend.instance
    with backend.session():
        users = {}
        for name, password in told["users"].items():
            names = {"user_name": name, "formatted_name": name.title(), "family_name": name.title()}
            users[name] = known.User(**names, emails=[f"{name}@example.com"], password=password)
            backend.save(users[name])
        for name, members in told["groups"].items():
            backend.save(known.Group(display_name=name, members=[users[each] for each in members]))
        for each in told["clients"]:
            client = known.Client(
                **each,
                grant_types=["authorization_code"],
                response_types=["code"],
                scope=["openid", "profile", "email", "groups"],
            )
            backend.save(client)
            client.audience = [client]
            backend.save(client)


if __name__ == "__main__":
    main(json.load(sys.stdin))
