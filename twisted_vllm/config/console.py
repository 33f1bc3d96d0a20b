"""The settings of the console, ``passthrough.console``: the web page at ``/ui``."""

from __future__ import annotations

import attrs

from twisted_vllm.config.checks import flag, optional, seconds
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.oidc import OIDC_SECTION, OidcSettings, own_url


@attrs.frozen
class ConsoleSettings:
    """The web page for those who give access, use it and run it."""

    enabled: bool = setting(True, flag, "Whether there is a console at /ui. Without it, /ui is answered 404.")
    session_idle: float = setting(
        1_800.0, seconds(), "How long a session lasts after its last request; then its owner signs in again."
    )
    session_lifetime: float = setting(
        43_200.0, seconds(), "How long a session lasts at most, whatever its owner does, after signing in."
    )
    url: str | None = setting(
        None,
        optional(own_url, "what the request says"),
        "The gateway's address as browsers see it, such as https://gateway.example.com. Without it, the request's Host "
        "and the headers of trusted_proxies say it.",
    )
    oidc: OidcSettings = setting(
        OidcSettings(), OIDC_SECTION, "Signing in at an OpenID provider (OIDC), beside keys. Off without an issuer."
    )
