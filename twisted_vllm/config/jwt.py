"""The settings of callers with a JSON Web Token: LiteLLM's ``litellm_jwtauth``, and what it lacks."""

from __future__ import annotations

import attrs

from twisted_vllm.config.checks import checker, flag, kind_of, list_of, one_of, optional, seconds, text
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.litellm import names
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected
from twisted_vllm.config.restricting import Restriction, Restrictions
from twisted_vllm.config.web_urls import web_url

#: the signatures that may be allowed: all of RFC 7518 and RFC 8037 that have a public key
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

#: LiteLLM's roles of a role mapping
_ROLES = ("proxy_admin", "team", "internal_user")

#: LiteLLM's names of groups of routes, as rules of this gateway
_INFERENCE = "llm_api_routes"
_MANAGEMENT = "management"
_ROUTE_GROUPS = {
    **dict.fromkeys(names("openai_routes llm_api_routes anthropic_routes info_routes mcp_routes"), _INFERENCE),
    **dict.fromkeys(names("management_routes spend_tracking_routes global_spend_tracking_routes"), _MANAGEMENT),
}


@checker("dotted name of a claim")
def claim_path(value: object, place: Place) -> str:
    """Check for the name of a claim; dots lead into nested claims: ``realm_access.roles``."""
    found = text(value, place)
    if any(not part for part in found.split(".")) or len(found) > 256:
        raise Rejected("must be the name of a claim, or several joined by single dots (such as realm_access.roles)")
    return found


@checker("URL", "https://, or http:// with a warning")
def key_set_url(value: object, place: Place) -> str:
    """Check for the URL of a key set (JWKS), or of an OpenID configuration that names one."""
    return web_url(
        text(value, place),
        place,
        "https://login.example.com/keys",
        in_clear="whoever can answer in its place can make tokens that are valid here",
    )


@checker("list of URLs, or one, or several with commas between")
def key_set_urls(value: object, place: Place) -> tuple[str, ...]:
    """Check for the URLs of key sets; LiteLLM separates them with commas."""
    if isinstance(value, str):
        value = [piece.strip() for piece in value.split(",") if piece.strip()]
    found: tuple[str, ...] = list_of(key_set_url, lone=True)(value, place)
    return found


@checker("list of names, or one, or several with commas between")
def audiences(value: object, place: Place) -> tuple[str, ...]:
    """Check for audiences or issuers."""
    if isinstance(value, EnvironmentText):
        value = [piece.strip() for piece in value.split(",") if piece.strip()]
    found: tuple[str, ...] = list_of(text, lone=True)(value, place)
    return found


@checker("list of routes", "LiteLLM's groups, or paths")
def routes(value: object, place: Place) -> tuple[str, ...]:
    """Check for LiteLLM's routes of a role, and return them as this gateway's rules."""
    found = []
    for index, name in enumerate(list_of(text)(value, place)):
        if name in _ROUTE_GROUPS:
            found.append(_ROUTE_GROUPS[name])
        elif name.startswith("/"):
            found.append(name)
        else:
            place.item(index).refuse(f"is no group of routes and no path (write one of {', '.join(_ROUTE_GROUPS)})")
    return tuple(dict.fromkeys(found))


def _mappings(value: object, place: Place, *keys: str) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise Rejected(f"must be a list of mappings, not {kind_of(value)}")
    for index, each in enumerate(value):
        if not isinstance(each, dict):
            raise Rejected(f"must hold mappings only, not {kind_of(each)}")
        for name in each:
            if name not in keys:
                place.item(index).refuse(f"may have {' and '.join(keys)} only")
    return value


@checker("list of mappings", "role and internal_role")
def role_mappings(value: object, place: Place) -> tuple[tuple[str, str], ...]:
    """Check for LiteLLM's role mappings; return pairs of the issuer's role and LiteLLM's."""
    return tuple(
        (
            text(each.get("role"), place.item(index).key("role")),
            one_of(*_ROLES)(each.get("internal_role"), place.item(index).key("internal_role")),
        )
        for index, each in enumerate(_mappings(value, place, "role", "internal_role"))
    )


@checker("list of mappings", "scope and models")
def scope_mappings(value: object, place: Place) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Check for LiteLLM's scope mappings; return pairs of a scope and the models that it opens."""
    return tuple(
        (
            text(each.get("scope"), place.item(index).key("scope")),
            list_of(text)(each.get("models"), place.item(index).key("models")),
        )
        for index, each in enumerate(_mappings(value, place, "scope", "models"))
    )


_CLAIM = optional(claim_path, "none")

#: fields of LiteLLM's that restrict somebody, or decide who somebody is, and have no counterpart
RESTRICTING: Restrictions = {
    "agent_id_jwt_field": Restriction("refuse tokens of agents that are not registered", "use user_id_jwt_field"),
    "custom_validate": Restriction(
        "check tokens by Python of your own", "check what the token says by roles or scopes"
    ),
    "id_jag_requesting_apps": Restriction("exchange tokens", "let the issuer give tokens for this gateway"),
    "issuers": Restriction(
        "check the tokens of each issuer by rules of its own",
        "name the issuers in passthrough.jwt_issuer, which share all other settings",
    ),
    "oidc_userinfo_enabled": Restriction(
        "ask the issuer about the caller of each token", "let the issuer put what is needed into the token"
    ),
    "org_alias_jwt_field": Restriction("charge an organization by its alias", "use org_id_jwt_field"),
    "routing_overrides": Restriction("check some tokens by OAuth 2", "give these callers virtual keys"),
    "team_alias_jwt_field": Restriction("charge a team by its alias", "use team_id_jwt_field"),
    "virtual_key_claim_field": Restriction(
        "charge a virtual key that a claim names", "use user_id_jwt_field, and give the user its limits"
    ),
}

#: fields that only widen what a token may do, or concern what this gateway does not have
IGNORED = names(
    """
    auto_register_map_existing_key fallback_to_db_teams jwt_client_id_field jwt_litellm_role_map
    mcp_client_id_jwt_field oidc_userinfo_cache_ttl oidc_userinfo_endpoint public_allowed_routes
    sync_user_role_and_teams team_claim_fallback team_id_upsert unregistered_jwt_client_behavior
    upsert_sso_user_to_team virtual_key_mapping_cache_ttl
    """
)


@attrs.frozen
class JwtClaims:
    """What the claims of a token say: LiteLLM's ``litellm_jwtauth``. Dots lead into nested claims."""

    user_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the user's id. Without it, a token has no user."
    )
    user_email_jwt_field: str | None = setting(None, _CLAIM, "The claim with the user's e-mail address.")
    user_allowed_email_domain: str | None = setting(
        None, optional(text, "any"), "The only domain of e-mail addresses that is let in, such as example.com."
    )
    user_id_upsert: bool = setting(
        False, flag, "Whether a user that is not known is made. Without it, its token is answered 403."
    )
    user_roles_jwt_field: str | None = setting(None, _CLAIM, "The claim with the roles for user_allowed_roles.")
    user_allowed_roles: tuple[str, ...] = setting(
        (), list_of(text), "A token needs one of these roles in user_roles_jwt_field. Empty lets all in."
    )
    team_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the team's id, which every token then needs unless there is a team_id_default."
    )
    team_ids_jwt_field: str | None = setting(
        None,
        _CLAIM,
        "The claim with the ids of several teams. The first that is known counts, or the one that the request names "
        "in x-litellm-team-id.",
    )
    team_id_default: str | None = setting(None, optional(text, "none"), "The team of tokens that name none.")
    team_allowed_routes: tuple[str, ...] = setting(
        (),
        routes,
        "The only routes for tokens: LiteLLM's groups, of which all of inference are one here, and paths. Empty means "
        "what virtual keys may call.",
    )
    org_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the organization's id. Without it, the team's organization counts."
    )
    end_user_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the end user, who then counts whatever the request names."
    )
    admin_jwt_scope: str = setting(
        "litellm_proxy_admin", text, "The scope (claim scope or scp) that makes a caller an administrator."
    )
    admin_allowed_routes: tuple[str, ...] = setting(
        (),
        routes,
        "What administrators by scope or role may call. Empty means the admin API alone, as in LiteLLM; "
        "[management_routes, openai_routes] adds the models.",
    )
    roles_jwt_field: str | None = setting(None, _CLAIM, "The claim with the roles for role_mappings.")
    role_mappings: tuple[tuple[str, str], ...] = setting(
        (),
        role_mappings,
        "LiteLLM's role for a role of the issuer: proxy_admin, team or internal_user.",
    )
    object_id_jwt_field: str | None = setting(
        None, _CLAIM, "The claim with the id of the user or team, as the role in role_mappings says."
    )
    enforce_rbac: bool = setting(False, flag, "Whether a token needs a role that role_mappings name.")
    scope_mappings: tuple[tuple[str, tuple[str, ...]], ...] = setting(
        (),
        scope_mappings,
        "The models that each scope opens; only with enforce_scope_based_access.",
    )
    enforce_scope_based_access: bool = setting(
        False, flag, "Whether a token may use only the models that its scopes open."
    )
    enforce_team_based_model_access: bool = setting(False, flag, "Whether a token needs a team.")
    public_key_ttl: float = setting(
        600.0, seconds(), "How long the issuer's keys are used before they are asked for again."
    )
    public_key_stale_ttl: float = setting(
        3600.0, seconds(zero=True), "How much longer they are used while the issuer does not answer."
    )


@attrs.frozen
class JwtSettings:
    """What LiteLLM has no setting for."""

    algorithms: tuple[str, ...] = setting(
        ALGORITHMS, list_of(one_of(*ALGORITHMS)), "The signatures that are accepted, each by its own kind of key only."
    )
    leeway: float = setting(
        10.0, seconds(zero=True), "How far the issuer's clock may differ from this one (exp, nbf, iat)."
    )
    accept_any_audience: bool = setting(
        False,
        flag,
        "Whether tokens are accepted that the issuer made for other programs. Without it, jwt_audience must be set.",
    )


def check_roles(claims: JwtClaims, at: Place) -> None:
    """Refuse settings of which one needs another: it would let everybody in, or nobody."""
    if (claims.user_roles_jwt_field is None) != (not claims.user_allowed_roles):
        at.refuse("needs user_roles_jwt_field and user_allowed_roles together, or none of them")
    if claims.user_allowed_email_domain is not None and claims.user_email_jwt_field is None:
        at.key("user_allowed_email_domain").refuse("needs user_email_jwt_field")
    if claims.role_mappings and claims.roles_jwt_field is None:
        at.key("role_mappings").refuse("needs roles_jwt_field")
    if claims.enforce_rbac and not claims.role_mappings:
        at.key("enforce_rbac").refuse("needs role_mappings")
