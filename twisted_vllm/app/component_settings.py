"""What components get of the settings, at the start and at each reload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from sqlalchemy import make_url
from twisted.internet.interfaces import IReactorTime

from twisted_vllm.admin.self_service import SelfService
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.key_index import GatewayLimits
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_index import TokenIndex
from twisted_vllm.auth.tokens import TokenRules, algorithms
from twisted_vllm.config.new_records import RecordDefaults
from twisted_vllm.config.settings import KeyUpperBounds, Limits, Settings
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.key_sets import Fetch, KeySets
from twisted_vllm.identification.verifier import TokenVerifier
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance
from twisted_vllm.storage.report_queue import ReportLimits


class BreakerSettings(TypedDict):
    """What the breakers of servers get."""

    allowed_fails: int
    cooldown: float
    max_cooldown: float
    slow_start: float


def breaker_of(settings: Settings) -> BreakerSettings:
    """Return it."""
    return BreakerSettings(
        allowed_fails=settings.routing.allowed_fails,
        cooldown=settings.routing.cooldown_time,
        max_cooldown=settings.health.max_cooldown,
        slow_start=settings.health.slow_start,
    )


class WebPagesSettings(TypedDict):
    """What `WebPages` gets."""

    is_open: bool
    any_address: bool
    hosts: Sequence[str]
    origins: Sequence[str]


def web_pages_of(settings: Settings) -> WebPagesSettings:
    """Return it."""
    return WebPagesSettings(
        is_open=settings.master_key is None,
        any_address=settings.allow_anonymous,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
    )


class AdmissionSettings(TypedDict):
    """What `Admission` gets."""

    policy: RoutePolicy
    path_aliases: bool
    fields: FieldPolicies
    inject_usage: bool


def admission_of(settings: Settings) -> AdmissionSettings:
    """Return it; the rules of ``tenant_routes`` were checked."""
    return AdmissionSettings(
        policy=RoutePolicy(settings.tenant_routes),
        path_aliases=settings.path_aliases,
        fields=FieldPolicies(settings.tenant_fields),
        inject_usage=settings.ledger.enabled and settings.ledger.count_stream_usage == "inject",
    )


class AdminSettings(TypedDict):
    """What `AdminApp` gets."""

    metrics_are_open: bool
    key_bounds: KeyUpperBounds
    self_service: SelfService
    record_defaults: RecordDefaults
    database_timeout: float


def admin_of(settings: Settings) -> AdminSettings:
    """Return it."""
    return AdminSettings(
        metrics_are_open=settings.metrics_are_open,
        key_bounds=settings.upperbound_key_generate_params,
        self_service=SelfService(
            enabled=settings.self_service.enabled,
            max_keys=settings.self_service.max_keys,
            # the presets of allowed_routes would open again what the operator closed to keys without any
            presets=not settings.tenant_routes.deny,
        ),
        record_defaults=settings.record_defaults,
        # an earlier change, the connection and the change itself
        database_timeout=3 * settings.timeouts.database,
    )


def gateway_limits_of(settings: Settings) -> GatewayLimits:
    """Return the limits that no record gives, for the key index."""
    proxy = settings.max_budget
    end_user = settings.max_end_user_budget
    return GatewayLimits(
        proxy=Allowance(max_budget=from_dollars(proxy), budget_duration=settings.budget_duration)
        if proxy
        else UNLIMITED,
        end_user=UNLIMITED if end_user is None else Allowance(max_budget=from_dollars(end_user)),
        end_user_budget=settings.max_end_user_budget_id,
        model_aliases=settings.routing.model_group_alias,
    )


def report_limits_of(limits: Limits, workers: int) -> ReportLimits:
    """Return how many reports may run and wait in one process: the workers share out what the settings say.

    Args:
        limits: the settings.
        workers: how many processes read reports. Each may read one at least.
    """
    return ReportLimits(
        max(limits.max_reports // workers, 1),
        max(limits.max_reports_per_key // workers, 1),
        max(limits.max_queued_reports // workers, 1),
    )


def usage_headers_of(settings: Settings) -> list[bytes]:
    """Return the headers that each row of the ledger has."""
    return [name.encode("ascii") for name in settings.ledger.usage_headers]


def key_sets_of(
    settings: Settings, fetch: Fetch, clock: IReactorTime, on_dropped: Callable[[], None], known: KeySets | None
) -> KeySets:
    """Return the keys of the issuers of tokens; those that are known, if they are the same."""
    claims = settings.litellm_jwtauth
    made = KeySets(
        settings.jwt_public_key_url or (),
        claims.public_key_ttl,
        claims.public_key_stale_ttl,
        fetch,
        clock,
        on_dropped,
    )
    return known if known is not None and known.is_like(made) else made


def verifier_of(
    settings: Settings, tokens: TokenIndex, key_sets: KeySets, lookup: CallerLookup, throttle: AuthenticationThrottle
) -> TokenVerifier:
    """Return what verifies tokens; the other arguments are those of `TokenVerifier`."""
    # loaded now, and not while the first token waits
    algorithms()
    jwt = settings.jwt
    rules = TokenRules(
        algorithms=frozenset(jwt.algorithms),
        audiences=None if jwt.accept_any_audience else frozenset(settings.jwt_audience or ()),
        issuers=frozenset(settings.jwt_issuer or ()) or None,
        leeway=jwt.leeway,
    )
    return TokenVerifier(tokens, key_sets, rules, settings.litellm_jwtauth, lookup, throttle, time.time)


def directories_of(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the directories that the gateway writes to, and what it writes there, in words."""
    if settings.ledger.enabled:
        yield "the ledger's spool", settings.spool_directory
    url = make_url(settings.database_url.reveal())
    if url.get_backend_name() == "sqlite" and url.database:
        yield "the database", Path(url.database).parent
