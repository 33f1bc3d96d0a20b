"""The policy for the fields of a request's body, by its principal and its route."""

from __future__ import annotations

from twisted_vllm.api_routes import Route, UsageFormat
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import TenantFields
from twisted_vllm.field_policy.media_hosts import MediaRules
from twisted_vllm.field_policy.policy import FieldPolicy, GatewayFields, policy_of

#: fields of the body that do the same as a header that the operator grants
_AS_GRANTED = {b"x-vllm-priority": "priority", b"x-session-id": "session_id"}


class FieldPolicies:
    """Finds policies by the operator's rules and those of each key and team.

    Args:
        tenant_fields: the rules for all virtual keys.
    """

    def __init__(self, tenant_fields: TenantFields) -> None:
        media = tenant_fields.media
        self._gateway = GatewayFields(
            allow=tenant_fields.allow,
            deny=tenant_fields.deny,
            limits=tuple(sorted(tenant_fields.limits.items())),
            media=MediaRules(media.schemes, media.allowed_hosts, media.denied_hosts) if media.restrict else None,
        )

    def of(self, principal: Principal, route: Route) -> FieldPolicy | None:
        """Return the policy for a request; None if it may send any field: from an administrator, or without a body.

        What the gateway replaces may be sent: ``priority`` by a key that has its own, and the id of a response that a
        server may store.
        """
        if principal.kind != "key" or not route.takes_model:
            return None
        exempt = [field for header, field in _AS_GRANTED.items() if header in principal.granted_headers]
        if principal.priority is not None:
            exempt.append("priority")
        if route.row.stores:
            exempt.append("request_id")
        return policy_of(
            self._gateway,
            principal.key_fields,
            principal.team_fields,
            tuple(exempt),
            # vLLM's Responses API alone runs tools
            server_tools=route.row.usage is UsageFormat.RESPONSES,
        )
