"""What becomes of keys: plain steps on one transaction, each with its note in the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.allowances import dollars, present_spend
from twisted_vllm.admin.authorize import token_of
from twisted_vllm.admin.durations import expiry_of
from twisted_vllm.admin.key_schemas import DeleteRequest, RegenerateRequest, UpdateRequest
from twisted_vllm.admin.litellm import shown
from twisted_vllm.auth.authenticator import hash_key, name_key
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.storage.records import FormerKeyRecord
from twisted_vllm.storage.transaction import Transaction

#: how long a value that a key had is remembered after its end, so that its caller learns what became of it
_REMEMBERED = timedelta(days=1)


def new_record(key: str, key_id: str, values: Mapping[str, Any], act: AuditContext) -> KeyRecord:
    """Return the record of a new key.

    Args:
        key: the key itself.
        key_id: what it is known by for good.
        values: attributes of the record.
        act: who makes it.
    """
    return KeyRecord(
        token=hash_key(key),
        key_name=name_key(key),
        key_id=key_id,
        created_at=act.now,
        created_by=act.actor,
        updated_at=act.now,
        updated_by=act.actor,
        **values,
    )


def insert(transaction: Transaction, act: AuditContext, record: KeyRecord) -> None:
    """Keep a new key.

    Raises:
        KeyExists, AliasExists: it or its alias is there already.
        RouteNotAllowed: the actor may not make such a key.
    """
    act.check_may_change(record)
    transaction.keys.insert(record)
    act.note_key(transaction, None, record)


def find(transaction: Transaction, key: str | None, alias: str | None) -> KeyRecord:
    """Return the key that a caller means: itself or its hash, else its alias.

    Raises:
        NotFound: there is none; the message names no key.
    """
    if key is not None:
        record = transaction.keys.get(token_of(key))
        if record is None:
            raise NotFound("No such key is known.", param="key")
        return record
    record = transaction.keys.by_alias(alias or "")
    if record is None:
        raise NotFound(f"No key has the alias `{shown(alias or '')}`.", param="key_alias")
    return record


def change(transaction: Transaction, act: AuditContext, record: KeyRecord, values: Mapping[str, Any]) -> KeyRecord:
    """Change a key, and return what it is now.

    Raises:
        KeyExists, AliasExists: what it would become is there already.
        RouteNotAllowed: the actor may not change this key, or not to this.
    """
    changed = attrs.evolve(record, **values, updated_at=act.now, updated_by=act.actor)
    act.check_may_change(record, changed)
    transaction.replace_key(record, changed)
    act.note_key(transaction, record, changed)
    return changed


def update(transaction: Transaction, act: AuditContext, asked: UpdateRequest, given: Mapping[str, Any]) -> KeyRecord:
    """Do what ``/key/update`` asks.

    Raises:
        NotFound, AliasExists, RouteNotAllowed: as `find` and `change` do.
    """
    record = find(transaction, asked.key, asked.key_alias)
    return change(transaction, act, record, asked.values(given, act, record))


def regenerate(
    transaction: Transaction, act: AuditContext, asked: RegenerateRequest, given: Mapping[str, Any], key: str
) -> KeyRecord:
    """Give a key another value, and let the old one work for as long as was asked.

    Args:
        transaction: where.
        act: who does it.
        asked: which key, and what else changes.
        given: what of `asked` was given.
        key: the new value.

    Raises:
        NotFound, KeyExists, AliasExists, RouteNotAllowed: as `find` and `change` do.
    """
    record = find(transaction, asked.key, asked.key_alias)
    values = {
        **asked.values(given, act, record),
        "token": hash_key(key),
        "key_name": name_key(key),
        "rotation_count": record.rotation_count + 1,
        "last_rotation_at": act.now,
    }
    changed = change(transaction, act, record, values)
    _forget_former(transaction, record, act.now)
    transaction.former.insert(
        FormerKeyRecord(
            token=record.token, key_id=record.key_id, works_until=_end_of_grace(asked.grace_period, act.now)
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


def _forget_former(transaction: Transaction, record: KeyRecord, now: datetime) -> None:
    ended = [
        each.token for each in transaction.former.find(key_id=record.key_id) if each.works_until + _REMEMBERED <= now
    ]
    if ended:
        transaction.former.delete(ended)


def reset_spend(transaction: Transaction, act: AuditContext, key: str, reset_to: int) -> tuple[KeyRecord, int]:
    """Set what a key has spent in its budget's present period, and return the key and what that was before.

    Args:
        transaction: where.
        act: who does it.
        key: the key, or its hash.
        reset_to: the new amount, in picodollars.

    Raises:
        NotFound: there is no such key.
        Conflict: it spent less than that.
        RouteNotAllowed: the actor may not change this key.
    """
    record = find(transaction, key, None)
    act.check_may_change(record)
    before = present_spend(record.allowance, transaction.spend.of("key", [record.key_id])[record.key_id], act.now)
    if reset_to > before:
        raise Conflict("`reset_to` must not be more than the key has spent.", param="reset_to")
    start, _ = period_of(record.allowance.budget_duration, act.now.timestamp())
    transaction.spend.set("key", record.key_id, reset_to, start)
    act.note(transaction, "key", record.hash_prefix, {"spend": dollars(before)}, {"spend": dollars(reset_to)})
    return record, before


def delete(transaction: Transaction, act: AuditContext, asked: DeleteRequest) -> list[str]:
    """Delete all keys that were named, or none; return what the caller called them.

    Raises:
        NotFound: one of them is not known; the message counts keys and names none.
        RouteNotAllowed: the actor may not delete one of them.
    """
    named = _named(transaction, asked)
    delete_records(transaction, act, [record for record, _ in named.values()])
    return [name for _, name in named.values()]


def delete_records(transaction: Transaction, act: AuditContext, records: Sequence[KeyRecord]) -> None:
    """Delete keys.

    Raises:
        RouteNotAllowed: the actor may not delete one of them.
    """
    act.check_may_change(*records)
    transaction.delete_keys(list(records))
    for record in records:
        act.note_key(transaction, record, None)


def _named(transaction: Transaction, asked: DeleteRequest) -> dict[str, tuple[KeyRecord, str]]:
    keys = dict.fromkeys(asked.keys or ())
    tokens = {key: token_of(key) for key in keys}
    known = {record.token: record for record in transaction.keys.among("token", tokens.values())}
    unknown = sum(token not in known for token in tokens.values())
    if unknown:
        raise NotFound(f"{unknown} of the {len(keys)} keys are not known. Nothing was deleted.", param="keys")
    named: dict[str, tuple[KeyRecord, str]] = {}
    for key, token in tokens.items():
        named.setdefault(token, (known[token], key))
    for alias in asked.key_aliases or ():
        record = transaction.keys.by_alias(alias)
        if record is None:
            raise NotFound(f"No key has the alias `{shown(alias)}`. Nothing was deleted.", param="key_aliases")
        named.setdefault(record.token, (record, alias))
    return named
