"""The settings of signing in at an OpenID provider, ``passthrough.console.oidc``."""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from twisted_vllm.config.checks import checker, flag, list_of, one_of, optional, seconds, secret, text
from twisted_vllm.config.declaration import Section, section, setting, settings_of
from twisted_vllm.config.jwt import ALGORITHMS, JwtClaims, check_roles, claim_path, role_mappings, routes
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.web_urls import LOOPBACK, web_url

_CLAIM = optional(claim_path, "none")
#: what a scope may consist of (RFC 6749 §3.3)
_NOT_IN_SCOPES = set(' "\\')


@checker("URL", "https://, or http:// on this machine")
def issuer_url(value: object, place: Place) -> str:
    """Check for the URL that is an OpenID provider's name (OpenID Connect Discovery 1.0 §2)."""
    found = web_url(text(value, place), place, "https://login.example.com/realms/ai")
    parts = urlsplit(found)
    if parts.query or "?" in found:
        raise Rejected("must be the issuer alone, without a query (write what the provider's discovery document says)")
    if parts.path.endswith("/.well-known/openid-configuration"):
        raise Rejected("must be the issuer, not its discovery document (leave out /.well-known/openid-configuration)")
    if parts.scheme == "http":
        if parts.hostname not in LOOPBACK:
            raise Rejected("must begin with https://: whoever can answer in its place can sign in as anybody")
        place.warn("is not https://: only for trying it out on one machine")
    return found


@checker("URL", "scheme, host and port alone")
def own_url(value: object, place: Place) -> str:
    """Check for the address of the gateway, and return it without a slash at the end."""
    found = web_url(text(value, place), place, "https://gateway.example.com")
    if urlsplit(found).path.strip("/") or "?" in found:
        raise Rejected("must be scheme, host and port alone: the console is at /ui below it")
    return found.rstrip("/")


@checker("scope")
def scope(value: object, place: Place) -> str:
    """Check for a scope (RFC 6749 §3.3)."""
    found = text(value, place)
    if not found.isascii() or _NOT_IN_SCOPES & set(found):
        raise Rejected("must be one scope: visible ASCII characters without spaces, quotes and backslashes")
    return found


@attrs.frozen
class OidcClaims:
    """What the claims of a person say, by ``litellm_jwtauth``'s names. Dots lead into nested claims."""

    user_id_jwt_field: str = setting(
        "sub",
        claim_path,
        "The claim with the user's id. With email, a person whose address the provider did not verify is refused.",
    )
    user_email_jwt_field: str | None = setting("email", _CLAIM, "The claim with the user's e-mail address.")
    user_allowed_email_domain: str | None = setting(
        None, optional(text, "any"), "The only domain of e-mail addresses that is let in, such as example.com."
    )
    user_id_upsert: bool = setting(
        False, flag, "Whether a user that is not known is made when it signs in. Without it, it is refused."
    )
    user_roles_jwt_field: str | None = setting(None, _CLAIM, "The claim with the roles for user_allowed_roles.")
    user_allowed_roles: tuple[str, ...] = setting(
        (), list_of(text), "A person needs one of these roles in user_roles_jwt_field. Empty lets all in."
    )
    team_ids_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the ids of teams, such as groups. The first that is known counts."
    )
    team_id_default: str | None = setting(None, optional(text, "none"), "The team of those whose claims name none.")
    org_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the organization's id. Without it, the team's organization counts."
    )
    roles_jwt_field: str | None = setting(None, _CLAIM, "The claim with the roles for role_mappings.")
    role_mappings: tuple[tuple[str, str], ...] = setting(
        (), role_mappings, "LiteLLM's role for a role of the provider: proxy_admin or internal_user."
    )
    enforce_rbac: bool = setting(False, flag, "Whether a person needs a role that role_mappings name.")
    admin_allowed_routes: tuple[str, ...] = setting(
        (),
        routes,
        "What administrators by role may call. Empty means the admin API alone; [management_routes, openai_routes] "
        "adds the models.",
    )

    def as_token_claims(self) -> JwtClaims:
        """Return the same settings for `twisted_vllm.auth.token_claims.caller_of`."""
        return JwtClaims(**{each.attribute: getattr(self, each.attribute) for each in settings_of(OidcClaims)})


@attrs.frozen
class OidcSettings:
    """An OpenID provider (Keycloak, Entra ID, Okta, Google …) at which people sign in to the console."""

    issuer: str | None = setting(
        None,
        optional(issuer_url, "nobody signs in so"),
        "The provider's issuer, exactly as its discovery document says it, such as https://login.example.com/realms/ai.",
    )
    client_id: str | None = setting(
        None, optional(text, "none"), "The id by which the provider knows this gateway. Needed with issuer."
    )
    client_secret: Secret | None = setting(
        None,
        optional(secret, "a public client"),
        "The secret of the client. A public client has none: PKCE is its proof.",
    )
    name: str | None = setting(
        None, optional(text, "the issuer's host"), 'What the sign-in page calls the provider: "Sign in with NAME".'
    )
    scopes: tuple[str, ...] = setting(
        ("openid", "profile", "email"),
        list_of(scope),
        "The scopes that are asked for; openid always is. Some providers send groups only for a scope of that name.",
    )
    userinfo: bool = setting(
        False, flag, "Whether claims that the ID token lacks are asked for at the provider's userinfo endpoint."
    )
    algorithms: tuple[str, ...] = setting(
        ALGORITHMS, list_of(one_of(*ALGORITHMS)), "The signatures of ID tokens that are accepted."
    )
    leeway: float = setting(
        10.0, seconds(zero=True), "How far the provider's clock may differ from this one (exp, nbf, iat)."
    )
    claims: OidcClaims = setting(OidcClaims(), section(OidcClaims), "Who a person is, by the provider's claims.")

    @property
    def shown_name(self) -> str:
        """What people read of the provider."""
        return self.name or urlsplit(self.issuer or "").netloc


class _OidcSection(Section[OidcSettings]):
    """Checks what belongs together."""

    def __call__(self, value: object, place: Place, /) -> OidcSettings:
        found = super().__call__(value, place)
        if found.issuer is None:
            if found != OidcSettings():
                place.key("issuer").refuse(
                    "is missing (write the provider's issuer, or leave out passthrough.console.oidc)"
                )
        elif found.client_id is None:
            place.key("client_id").refuse("is missing (write the id that the provider gave this gateway)")
        check_roles(found.claims.as_token_claims(), place.key("claims"))
        return found


OIDC_SECTION = _OidcSection(OidcSettings, settings_of(OidcSettings))
