"""Says who the caller with a valid token is, by its claims and LiteLLM's settings of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from twisted_vllm.auth.records import MANAGEMENT, PROXY_ADMIN
from twisted_vllm.auth.roles import INTERNAL_USER
from twisted_vllm.config.jwt import JwtClaims
from twisted_vllm.errors import InvalidToken, TokenNotAllowed

#: characters of an id or a name, and teams of one token, that are read
LONGEST_NAME, MOST_TEAMS = 256, 200
_ID_DIGITS = 32


class TokenCaller(msgspec.Struct, frozen=True):
    """The caller with a token.

    Attributes:
        key_id: stands for the caller wherever a key's id does: made of issuer and subject, the same for all its tokens.
        name: its name in logs: the e-mail address, the user or the subject.
        user_id: the user; None if the token names none.
        user_email: the user's e-mail address.
        organization_id: the organization; None takes its team's.
        team_ids: the teams, of which the first that is known counts.
        needs_team: whether it is refused without a team.
        models: the models that its scopes open; empty means all models.
        allowed_routes: the rules of the routes that it may call; empty means those of virtual keys.
        end_user_id: the end user, whatever a request says; None if the token names none.
        administers: whether it is an administrator.
    """

    key_id: str
    name: str
    user_id: str | None = None
    user_email: str | None = None
    organization_id: str | None = None
    team_ids: tuple[str, ...] = ()
    needs_team: bool = False
    models: tuple[str, ...] = ()
    allowed_routes: tuple[str, ...] = ()
    end_user_id: str | None = None
    administers: bool = False


def caller_of(claims: Mapping[str, Any], settings: JwtClaims, noun: str = "token") -> TokenCaller:
    """Return the caller with a token that is valid.

    Args:
        claims: what it says.
        settings: which claim says what.
        noun: what says it, for refusals.

    Raises:
        InvalidToken: a claim that is needed is missing.
        TokenNotAllowed: its role, scope or e-mail address is not let in.
    """
    role = _role_of(claims, settings, noun)
    user_id = _name(claims, settings.user_id_jwt_field, noun)
    email = _name(claims, settings.user_email_jwt_field, noun)
    teams = _teams_of(claims, settings)
    object_id = _name(claims, settings.object_id_jwt_field, noun)
    if object_id is not None and role == "team":
        teams = (object_id,)
    elif object_id is not None and role == INTERNAL_USER:
        user_id = object_id
    subject = _name(claims, "sub", noun) or user_id
    if subject is None:
        raise InvalidToken(f"This {noun} does not say whose it is: it has no subject (sub).")
    _check_email(email, settings, noun)
    scopes = scopes_of(claims)
    administers = role == PROXY_ADMIN or settings.admin_jwt_scope in scopes
    needs_team = settings.enforce_team_based_model_access or settings.team_id_jwt_field is not None
    issuer = claims.get("iss")
    return TokenCaller(
        key_id=_id_of(issuer if isinstance(issuer, str) else "", subject),
        name=(email or user_id or subject)[:LONGEST_NAME],
        user_id=user_id,
        user_email=email,
        organization_id=_name(claims, settings.org_id_jwt_field, noun),
        team_ids=teams,
        needs_team=needs_team and not administers,
        models=() if administers else _models_of(scopes, settings),
        allowed_routes=settings.admin_allowed_routes or (MANAGEMENT,) if administers else settings.team_allowed_routes,
        end_user_id=_name(claims, settings.end_user_id_jwt_field, noun),
        administers=administers,
    )


def scopes_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes of a token: words, or a list (RFC 8693 §4.2), also as ``scp``, which Entra ID writes."""
    found: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        if isinstance(value, str):
            found.update(value.split())
        elif isinstance(value, list):
            found.update(each for each in value if isinstance(each, str))
    return frozenset(found)


def claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim, by its own name or by a path of names with dots between; None without it."""
    if path in claims:
        # such as https://example.com/team
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _name(claims: Mapping[str, Any], path: str | None, noun: str) -> str | None:
    """Return a claim that is a name, or the first of a list; None if it says nothing.

    Raises:
        InvalidToken: it cannot be a name.
    """
    value = None if path is None else claim(claims, path)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable() or value.startswith("sk-"):
        raise InvalidToken(f"The claim {path} of this {noun} is not a name of at most {LONGEST_NAME} characters.")
    return value


def _names(claims: Mapping[str, Any], path: str | None) -> list[str]:
    value = None if path is None else claim(claims, path)
    values: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [each for each in values if isinstance(each, str) and 0 < len(each) <= LONGEST_NAME and each.isprintable()]


def _teams_of(claims: Mapping[str, Any], settings: JwtClaims) -> tuple[str, ...]:
    own = _names(claims, settings.team_id_jwt_field)[:1]
    teams = [*own, *_names(claims, settings.team_ids_jwt_field)]
    if not teams and settings.team_id_default is not None:
        teams = [settings.team_id_default]
    return tuple(dict.fromkeys(teams))[:MOST_TEAMS]


def _role_of(claims: Mapping[str, Any], settings: JwtClaims, noun: str) -> str | None:
    """Return LiteLLM's role: the first mapping whose role the token has.

    Raises:
        TokenNotAllowed: it has none of the roles that are let in.
    """
    if settings.user_allowed_roles:
        has = _names(claims, settings.user_roles_jwt_field)
        if not any(role in settings.user_allowed_roles for role in has):
            raise TokenNotAllowed(
                f"This {noun} has none of the roles that are let in, in its claim {settings.user_roles_jwt_field}. Ask "
                "an administrator for such a role."
            )
    has = _names(claims, settings.roles_jwt_field)
    role = next((internal for name, internal in settings.role_mappings if name in has), None)
    if role is None and settings.enforce_rbac:
        raise TokenNotAllowed(
            f"This {noun} has no role that is known here, in its claim {settings.roles_jwt_field}. Ask an "
            "administrator for such a role."
        )
    return role


def _models_of(scopes: frozenset[str], settings: JwtClaims) -> tuple[str, ...]:
    if not settings.enforce_scope_based_access:
        return ()
    models = [model for scope, models in settings.scope_mappings if scope in scopes for model in models]
    if not models:
        raise TokenNotAllowed("The scopes of this token open no model. Ask for a token with another scope.")
    return tuple(dict.fromkeys(models))


def _check_email(email: str | None, settings: JwtClaims, noun: str) -> None:
    domain = settings.user_allowed_email_domain
    if domain is None:
        return
    if email is None or "@" not in email or email.rpartition("@")[2].lower() != domain.lower():
        raise TokenNotAllowed(f"The e-mail address of this {noun} is not of a domain that is let in.")


def _id_of(issuer: str, subject: str) -> str:
    """Return the id of a caller. The issuer's length keeps apart what only looks alike when joined."""
    return sha256(f"{len(issuer)}:{issuer}{subject}".encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]
