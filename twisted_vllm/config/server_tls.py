"""How TLS is spoken to a server: its settings, and what the settings of its entries come to together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from twisted_vllm.config.checks import checker, flag, optional, text
from twisted_vllm.config.declaration import setting, settings_of
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected


@attrs.frozen
class ServerTls:
    """How to speak TLS to a server. The files are read when the gateway starts, and again at a reload.

    Attributes:
        verify: whether its certificate must be valid and for its name.
        ca_file: the authorities that may have signed it, in PEM; None for the system's.
        certificate_file: the gateway's own certificate, in PEM; None for none.
        key_file: the private key of that, in PEM; None if it is in the same file.
    """

    verify: bool = True
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


#: the certificate is checked with the system's authorities, and none is shown
DEFAULT_TLS = ServerTls()


@checker("true, false or file")
def flag_or_file(value: object, place: Place) -> bool | str:
    """Check for true, false or the name of a file."""
    if isinstance(value, bool):
        return value
    if isinstance(value, EnvironmentText):
        try:
            return flag(value, place)
        except Rejected:
            pass
    return text(value, place)


@attrs.frozen
class TlsParams:
    """The settings of one place. None means that it does not say."""

    verify: bool | str | None = setting(
        None,
        optional(flag_or_file, "true"),
        "Whether the certificate of an https:// server is checked. false accepts any: whoever is in between can read "
        "and change everything, keys included. A file in place of true is the same as ssl_ca.",
        name="ssl_verify",
        block="",
    )
    ca: str | None = setting(
        None,
        optional(text, "the system's authorities", empty=True),
        "The file, in PEM, with the authorities that the server's certificate is checked against.",
        name="ssl_ca",
        block="",
    )
    certificate: str | None = setting(
        None,
        optional(text, "none", empty=True),
        "The file, in PEM, with the certificate that the gateway shows to the server, and the chain to its authority. "
        "It may hold the key as well.",
        name="ssl_certificate",
        block="",
    )
    key: str | None = setting(
        None,
        optional(text, "it is in the file of ssl_certificate", empty=True),
        "The file, in PEM, with the private key of ssl_certificate. It must not be encrypted.",
        name="ssl_key",
        block="",
    )

    @property
    def named(self) -> Mapping[str, bool | str]:
        """The settings that it names, by their names in the file."""
        values = ((each.name, getattr(self, each.attribute)) for each in TLS_SETTINGS)
        return {name: value for name, value in values if value is not None}


TLS_SETTINGS = settings_of(TlsParams)


def resolve_tls(
    tls: bool, server: str, entries: Iterable[tuple[Place, TlsParams]], own: tuple[Place, TlsParams], usual: TlsParams
) -> ServerTls:
    """Return how TLS is spoken to one server. Problems are reported at the place of the setting.

    Args:
        tls: whether it is an https:// server.
        server: its name, for messages.
        entries: what each of its entries in ``model_list`` says, which must agree.
        own: what ``passthrough.servers`` says of it, which wins.
        usual: what ``litellm_settings`` says of all servers.
    """
    found: dict[str, tuple[Place, bool | str]] = {}
    for place, params in entries:
        for name, value in params.named.items():
            first, known = found.setdefault(name, (place, value))
            if known != value:
                place.key(name).refuse(
                    f"differs from {first.path}.{name}, and both are of the same server (write the same, or write it "
                    "once, below passthrough.servers)"
                )
    place, params = own
    found |= {name: (place, value) for name, value in params.named.items()}
    if not tls:
        for name, (first, _) in found.items():
            first.key(name).refuse("is for servers with https:// in their api_base alone (remove it)")
        return DEFAULT_TLS
    for name, value in usual.named.items():
        # Whoever names an authority means it to be used, so that a general ssl_verify does not count for that server.
        if not (name == "ssl_verify" and "ssl_ca" in found):
            found.setdefault(name, (place.at("litellm_settings"), value))
    return _checked(server, found)


def _checked(server: str, found: Mapping[str, tuple[Place, bool | str]]) -> ServerTls:
    values = {name: value for name, (_, value) in found.items()}
    verify = values.get("ssl_verify", True)
    authorities = values.get("ssl_ca")
    if authorities is not None and verify is not True:
        what = "contradicts ssl_verify: false" if verify is False else "stands twice, in ssl_verify as well"
        found["ssl_ca"][0].key("ssl_ca").refuse(f"{what} (remove one of them)")
    if verify is False:
        found["ssl_verify"][0].key("ssl_verify").warn(
            f"the certificate of {server} is not checked: whoever is in between can read and change everything, keys "
            "included (name its authority in ssl_ca)"
        )
    elif isinstance(verify, str):
        authorities = verify
    if "ssl_key" in values and "ssl_certificate" not in values:
        found["ssl_key"][0].key("ssl_key").refuse("is the key of no certificate (write ssl_certificate, or remove it)")
    certificate, key = values.get("ssl_certificate"), values.get("ssl_key")
    return ServerTls(verify is not False, _name(authorities), _name(certificate), _name(key))


def _name(value: bool | str | None) -> str | None:
    return value if isinstance(value, str) else None
