"""Makes what signs people in at an OpenID provider, at the start and at each reload."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted_vllm.auth.sessions import provider_mark, secret_of
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.settings import Settings
from twisted_vllm.identification.caller_lookup import CallerLookup

if TYPE_CHECKING:
    # loaded where there is a provider
    from twisted_vllm.identification.oidc.relying_party import RelyingParty

#: how long the provider's keys are used, and how much longer while it does not answer, in seconds
KEY_SECONDS, STALE_KEY_SECONDS = 600.0, 3_600.0


def provider_of(settings: Settings) -> str:
    """Return the mark of the provider at which people sign in; empty if there is none."""
    oidc = settings.console.oidc
    return "" if oidc.issuer is None or settings.master_key is None else provider_mark(oidc)


def relying_party_of(
    settings: Settings, reactor: Any, lookup: CallerLookup, throttle: AuthenticationThrottle, known: RelyingParty | None
) -> RelyingParty | None:
    """Return what signs people in; None if there is no provider.

    Args:
        settings: the settings.
        reactor: the reactor.
        lookup: looks up users and teams.
        throttle: counts answers that are not valid by address.
        known: the one before a reload: what it fetched stays, as the provider may be down.
    """
    oidc = settings.console.oidc
    if not provider_of(settings) or oidc.issuer is None or oidc.client_id is None:
        return None
    # Imported here: gateways without a provider load none of it.
    from twisted.web.client import Agent, BrowserLikePolicyForHTTPS

    from twisted_vllm.auth.oidc.attempt import Attempts
    from twisted_vllm.auth.oidc.provider import discovery_url
    from twisted_vllm.auth.tokens import algorithms
    from twisted_vllm.identification.key_sets import KeySets, fetch
    from twisted_vllm.identification.oidc.document import ProviderDocument
    from twisted_vllm.identification.oidc.relying_party import RelyingParty
    from twisted_vllm.identification.oidc.requests import ProviderRequests
    from twisted_vllm.observability.delivery.bounded_answers import BoundedEndpoints

    # not while somebody waits
    algorithms()
    endpoints = BoundedEndpoints(reactor, BrowserLikePolicyForHTTPS(), settings.timeouts.connect)
    agent = Agent.usingEndpointFactory(reactor, endpoints)
    get = partial(fetch, agent)
    document = ProviderDocument(oidc.issuer, get, reactor)
    key_sets = KeySets(
        [discovery_url(oidc.issuer)],
        KEY_SECONDS,
        STALE_KEY_SECONDS,
        get,
        reactor,
        # sessions do not end with the key that signed their ID token
        lambda: None,
        without="nobody can be signed in",
    )
    if known is not None and known.document.issuer == oidc.issuer:
        document, key_sets = known.document, known.key_sets
    return RelyingParty(
        oidc,
        Attempts(secret_of(settings.master_key, settings.salt_key), os.urandom),
        document,
        key_sets,
        ProviderRequests(agent, reactor),
        lookup,
        throttle,
        time.time,
        provider_of(settings),
    )
