"""What the key routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.budget_references import (
    budgets_of,
    check_budget,
    effective,
    effective_limits,
    report_budget,
)
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.field_rules import report_rules
from twisted_vllm.admin.fields import expiry_of, redacted
from twisted_vllm.admin.keys.models import (
    BulkRequest,
    DeleteRequest,
    RegenerateRequest,
    UpdateRequest,
)
from twisted_vllm.admin.limits import dollars, report_usage
from twisted_vllm.admin.memberships import find_organization
from twisted_vllm.admin.model_limits import check_limits_of_key, with_names_of_team
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.parsing import parse_body, without_blanks
from twisted_vllm.admin.scope import IScope
from twisted_vllm.admin.spending import set_given_spend, set_spend, spend_now
from twisted_vllm.admin.unsupported import IN_KEY_REPORTS
from twisted_vllm.auth.authenticator import hash_key, name_key
from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.errors import Conflict, GatewayError, InvalidRequest, NotFound
from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.storage.records import FormerKeyRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction

#: how long to store a key's former value after it stopped working, so that its callers get the reason
_FORMER_KEY_RETENTION = timedelta(days=1)


def new_record(key: str, values: Mapping[str, Any], audit: AuditContext) -> KeyRecord:
    """Return the record of a new key.

    Args:
        key: the key itself.
        values: attributes of the record.
        audit: who creates it.
    """
    return KeyRecord(
        token=hash_key(key), key_name=name_key(key), key_id=audit.randbytes(16).hex(), **audit.created, **values
    )


def insert(
    transaction: Transaction,
    audit: AuditContext,
    record: KeyRecord,
    given: Mapping[str, Any] = {},
    *,
    service_account: bool = False,
) -> KeyRecord:
    """Store a new key, and return it: what the request left out may become as the actor's own key.

    Args:
        transaction: the transaction.
        audit: who creates it.
        record: the key.
        given: the fields of the request.
        service_account: whether it shall belong to no user.

    Raises:
        KeyExists, AliasExists: the key or its alias exists.
        InvalidRequest: a limit would never count.
        RouteNotAllowed: the actor may not create such a key.
    """
    record = audit.scope.new_key(transaction, record, given, service_account)
    _check_references(transaction, record)
    _check_model_limits(transaction, record)
    transaction.keys.insert(record)
    audit.record_key(transaction, None, record)
    return record


def set_spend_of_key(transaction: Transaction, audit: AuditContext, record: KeyRecord, spend: float | None) -> None:
    """Set the spend of a key that a request gives, in US dollars; None leaves it.

    Raises:
        RouteNotAllowed: the actor may not set it.
    """
    if spend is not None:
        audit.scope.check_administrators("spend")
        set_given_spend(transaction, audit, "key", record.key_id, record, spend, name=record.hash_prefix)


def find(transaction: Transaction, scope: IScope, key: str | None, alias: str | None) -> KeyRecord:
    """Return the key that a request names: by itself or its hash, or else by its alias.

    Raises:
        NotFound: there is none; the message does not repeat the key.
        RouteNotAllowed: the caller may not see it.
    """
    if key is not None:
        missing = NotFound("No such key is known.", param="key")
        return scope.visible_key(transaction, transaction.keys.get(token_of(key)), missing)
    missing = NotFound(f"No key has the alias `{redacted(alias or '')}`.", param="key_alias")
    return scope.visible_key(transaction, transaction.keys.by_alias(alias or ""), missing)


def change(transaction: Transaction, audit: AuditContext, record: KeyRecord, values: Mapping[str, Any]) -> KeyRecord:
    """Set attributes of a key and return its new record.

    Raises:
        KeyExists, AliasExists: another key has the new value or alias.
        InvalidRequest: the change makes a limit that would never count.
        RouteNotAllowed: the actor may not change this key, or not into this.
    """
    changed = attrs.evolve(record, **values, **audit.updated)
    audit.scope.check_key_change(transaction, record, changed)
    if _referred(changed) != _referred(record):
        _check_references(transaction, changed)
    if _counted(changed) != _counted(record):
        _check_model_limits(transaction, changed)
    transaction.replace_key(record, changed)
    audit.record_key(transaction, record, changed)
    return changed


def _referred(record: KeyRecord) -> tuple[object, ...]:
    return record.budget_id, record.organization_id, record.team_id


def _check_references(transaction: Transaction, record: KeyRecord) -> None:
    """Check that what gives a key limits exists, and that no key leaves the organization of its team.

    Raises:
        NotFound: its budget or its organization does not exist.
        InvalidRequest: its team is in another organization.
    """
    check_budget(transaction, record.budget_id)
    if record.organization_id is None:
        return
    find_organization(transaction, record.organization_id)
    team = None if record.team_id is None else transaction.teams.get(record.team_id)
    if team is not None and team.organization_id not in (None, record.organization_id):
        raise InvalidRequest(
            "The key's team is in another organization: leave `organization_id` out, and the team's holds.",
            param="organization_id",
        )


def _counted(record: KeyRecord) -> tuple[object, ...]:
    """Return what decides which limits of one model count for a key."""
    allowance = record.allowance
    models = allowance.model_rpm, allowance.model_tpm, allowance.model_budgets
    return record.aliases, models, record.user_id, record.team_id, record.budget_id


def _check_model_limits(transaction: Transaction, record: KeyRecord) -> None:
    team = None if record.team_id is None else transaction.teams.get(record.team_id)
    if not record.aliases and (team is None or not team.aliases):
        return
    holders = {"key": effective_limits(transaction, record)}
    user = None if record.user_id is None else transaction.users.get(record.user_id)
    if user is not None:
        holders["user"] = effective_limits(transaction, user)
    if team is not None:
        holders["team"] = effective_limits(transaction, team)
        record = with_names_of_team(record, team.aliases)
    check_limits_of_key(record, holders)


def update(transaction: Transaction, audit: AuditContext, body: UpdateRequest, given: Container[str]) -> KeyRecord:
    """Do what ``/key/update`` asks for.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound, AliasExists, RouteNotAllowed: as `find` and `change`.
    """
    record = find(transaction, audit.scope, body.key, body.key_alias)
    changed = change(transaction, audit, record, body.values(given, audit, record))
    set_spend_of_key(transaction, audit, changed, body.spend)
    return changed


def update_each(transaction: Transaction, audit: AuditContext, body: BulkRequest) -> Json:
    """Update several keys, each on its own, and return the results."""
    changed: list[KeyRecord] = []
    failed: list[Json] = []
    for number, each in enumerate(body.keys):
        try:
            given = without_blanks(each)
            changed.append(update(transaction, audit, parse_body(given, UpdateRequest), given))
        except GatewayError as error:
            # Operations check before they write, so a refused one has changed nothing.
            failed.append({"index": number, "key_info": None, "failed_reason": error.message})
    return {
        "total_requested": len(body.keys),
        "successful_updates": [
            {"key": report["token"], "key_info": report} for report in report_keys(transaction, changed, audit.now)
        ],
        "failed_updates": failed,
    }


def regenerate(
    transaction: Transaction, audit: AuditContext, body: RegenerateRequest, given: Container[str], value: str
) -> KeyRecord:
    """Give a key a new value; the former one works until the grace period ends.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request; it may change other fields as well.
        given: the names of the fields that it has.
        value: the new value.

    Raises:
        NotFound, KeyExists, AliasExists, RouteNotAllowed: as `find` and `change`.
    """
    record = find(transaction, audit.scope, body.key, body.key_alias)
    values = {
        **body.values(given, audit, record),
        "token": hash_key(value),
        "key_name": name_key(value),
        "rotation_count": record.rotation_count + 1,
        "last_rotation_at": audit.now,
    }
    changed = change(transaction, audit, record, values)
    set_spend_of_key(transaction, audit, changed, body.spend)
    _delete_old_former_keys(transaction, record, audit.now)
    transaction.former.insert(
        FormerKeyRecord(
            token=record.token, key_id=record.key_id, works_until=_end_of_grace(body.grace_period, audit.now)
        )
    )
    return changed


def _end_of_grace(period: str | int | None, now: datetime) -> datetime:
    if period in (None, "", 0, "0", "0s"):
        return now
    end = expiry_of(period, now, "grace_period")
    if end is None:
        raise InvalidRequest("`grace_period` must end: send a number and a unit, as in 1h.", param="grace_period")
    return end


def _delete_old_former_keys(transaction: Transaction, record: KeyRecord, now: datetime) -> None:
    old = [
        each.token
        for each in transaction.former.find(key_id=record.key_id)
        if each.works_until + _FORMER_KEY_RETENTION <= now
    ]
    if old:
        transaction.former.delete(old)


def reset_spend(transaction: Transaction, audit: AuditContext, key: str, reset_to: int) -> Json:
    """Set the spend of a key in its budget's current period, and return it with the spend before.

    Args:
        transaction: the transaction.
        audit: who asks.
        key: the key, or its hash.
        reset_to: the new spend, in picodollars.

    Raises:
        NotFound: there is no such key.
        Conflict: its spend is lower than that.
        RouteNotAllowed: the actor may not change this key.
    """
    record = find(transaction, audit.scope, key, None)
    audit.scope.check_keys(transaction, record)
    limits = effective_limits(transaction, record)
    before = spend_now(transaction, audit, "key", record.key_id, limits)
    if reset_to > before:
        raise Conflict("`reset_to` must not be more than the key has spent.", param="reset_to")
    set_spend(transaction, audit, "key", record.key_id, limits, reset_to, name=record.hash_prefix)
    report = report_key(transaction, record, audit.now)
    return {
        "key_hash": record.token,
        "previous_spend": dollars(before),
        **{name: report[name] for name in ("spend", "total_spend", "max_budget", "budget_reset_at")},
    }


def delete(transaction: Transaction, audit: AuditContext, body: DeleteRequest) -> list[str]:
    """Delete all keys that a request names, or none, and return the names that it used.

    Raises:
        NotFound: one of them does not exist; the message counts keys and repeats none.
        RouteNotAllowed: the actor may not delete one of them.
    """
    named = _find_named(transaction, audit.scope, body)
    delete_records(transaction, audit, [record for record, _ in named.values()])
    return [name for _, name in named.values()]


def delete_records(transaction: Transaction, audit: AuditContext, records: Sequence[KeyRecord]) -> None:
    """Delete keys.

    Raises:
        RouteNotAllowed: the actor may not delete one of them.
    """
    audit.scope.check_keys(transaction, *records)
    transaction.delete_keys(list(records))
    for record in records:
        audit.record_key(transaction, record, None)


def _find_named(transaction: Transaction, scope: IScope, body: DeleteRequest) -> dict[str, tuple[KeyRecord, str]]:
    """Return the keys that a request names, each once and with its name there, by token."""
    keys = dict.fromkeys(body.keys or ())
    tokens = {key: token_of(key) for key in keys}
    known = {record.token: record for record in transaction.keys.among("token", tokens.values())}
    unknown = sum(token not in known for token in tokens.values())
    missing = NotFound(f"{unknown} of the {len(keys)} keys are not known. Nothing was deleted.", param="keys")
    for token in tokens.values():
        scope.visible_key(transaction, known.get(token), missing)
    named: dict[str, tuple[KeyRecord, str]] = {}
    for key, token in tokens.items():
        named.setdefault(token, (known[token], key))
    for alias in body.key_aliases or ():
        missing = NotFound(f"No key has the alias `{redacted(alias)}`. Nothing was deleted.", param="key_aliases")
        record = scope.visible_key(transaction, transaction.keys.by_alias(alias), missing)
        named.setdefault(record.token, (record, alias))
    return named


def status_of(record: KeyRecord, now: datetime) -> str:
    """Return LiteLLM's word for a key's state: ``active``, ``expired``, or ``revoked`` for a blocked key."""
    if record.blocked:
        return "revoked"
    return "expired" if record.expires is not None and now >= record.expires else "active"


def report_keys(transaction: Transaction, records: Sequence[KeyRecord], now: datetime) -> list[Json]:
    """Return keys as `KeyReport` describes them."""
    spend = transaction.spend.of("key", [record.key_id for record in records])
    budgets = budgets_of(transaction, records)
    return [_report(record, spend[record.key_id], budgets, now) for record in records]


def report_name(user: UserRecord) -> Json:
    """Return a user as `FoundUser` describes it."""
    return {name: getattr(user, name) for name in ("user_id", "user_email", "user_alias", "user_role")}


def expand_users(transaction: Transaction, reports: Sequence[Json]) -> None:
    """Add to each key its user, as `ListedKey` describes it."""
    ids = {report["user_id"] for report in reports if report["user_id"] is not None}
    users = {user.user_id: report_name(user) for user in transaction.users.among("user_id", ids)}
    for report in reports:
        report["user"] = users.get(report["user_id"])


def report_key(transaction: Transaction, record: KeyRecord, now: datetime) -> Json:
    """Return a key as `KeyReport` describes it."""
    [report] = report_keys(transaction, [record], now)
    return report


def _report(record: KeyRecord, spend: Spend, budgets: Mapping[str, Allowance], now: datetime) -> Json:
    return {
        **IN_KEY_REPORTS,
        **report_usage(record.allowance, spend, now, effective(record, budgets)),
        "budget_id": record.budget_id,
        "litellm_budget_table": report_budget(record, budgets)["litellm_budget_table"] if record.budget_id else None,
        "token": record.token,
        "key_name": record.key_name,
        "key_alias": record.key_alias,
        "models": record.models,
        "aliases": record.aliases,
        "allowed_routes": record.allowed_routes,
        "priority": record.priority,
        "granted_headers": record.granted_headers,
        "cache_isolation": record.cache_salt is not None,
        "log_bodies": record.log_bodies,
        **report_rules(record.fields),
        "allowed_fields": record.fields.allowed,
        "blocked": record.blocked,
        "status": status_of(record, now),
        "expires": record.expires,
        "metadata": record.metadata,
        "tags": record.tags,
        "user_id": record.user_id,
        "team_id": record.team_id,
        "organization_id": record.organization_id,
        "rotation_count": record.rotation_count,
        "last_rotation_at": record.last_rotation_at,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
        "updated_by": record.updated_by,
    }
