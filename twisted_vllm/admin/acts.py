"""Who does what, and the note of it in the audit."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs
import msgspec

from twisted_vllm.admin.allowances import show_limits
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, KeyRecord
from twisted_vllm.errors import RouteNotAllowed
from twisted_vllm.storage.records import AuditRecord
from twisted_vllm.storage.transaction import Transaction

#: what looks like a key or a hash and stands where none belongs, such as in somebody's metadata
_SECRET = re.compile(r"sk-[!-~]{13,}|\b[0-9a-fA-F]{64}\b")


@attrs.frozen
class AuditContext:
    """One administrative request.

    Attributes:
        action: what it does, such as ``key/update``.
        actor: who does it: ``master``, ``anonymous`` or a key's hash prefix.
        actor_name: the alias or name of that key.
        unlimited: whether that is the master key, or anybody where there is none.
        now: when (UTC).
        randbytes: returns that many bytes, fit for secrets.
        request_id: the request that does it.
        client: the address that it comes from.
    """

    action: str
    actor: str
    actor_name: str
    unlimited: bool
    now: datetime
    randbytes: Callable[[int], bytes]
    request_id: str = ""
    client: str = ""

    def check_may_change(self, *records: KeyRecord) -> None:
        """Return if the actor may make these keys what they are, or change what they were.

        Raises:
            RouteNotAllowed: one of them administers, and the actor is such a key itself.
        """
        if not self.unlimited and any(record.manages for record in records):
            raise RouteNotAllowed("Only the master key may make, change or delete a key that administers.")

    def note_key(self, transaction: Transaction, before: KeyRecord | None, after: KeyRecord | None) -> None:
        """Write down what became of a key."""
        record = after or before
        assert record is not None
        self.note(transaction, "key", record.hash_prefix, before, after)

    def note(
        self, transaction: Transaction, object_type: str, object_id: str, before: object | None, after: object | None
    ) -> None:
        """Write down what became of something."""
        transaction.write_audit(
            AuditRecord(
                at=self.now,
                actor=self.actor,
                actor_name=self.actor_name,
                action=self.action,
                object_type=object_type,
                object_id=object_id,
                before=_shown(before),
                after=_shown(after),
                request_id=self.request_id,
                client=self.client,
            )
        )


def _shown(record: object | None) -> dict[str, Any] | None:
    if record is None:
        return None
    values: dict[str, Any] = msgspec.to_builtins(record)
    token = values.pop("token", None)
    # the id of a key that is older than ids is a part of its hash
    values.pop("key_id", None)
    if values.pop("allowance", None) is not None:
        values.update(show_limits(record.allowance))  # type: ignore[attr-defined]  # whoever has one has this
    if "cache_salt" in values:
        values["cache_isolation"] = values.pop("cache_salt") is not None
    found: dict[str, Any] = _without_secrets(values)
    if token is not None:
        found["token_prefix"] = token[:HASH_PREFIX_LENGTH]
    return found


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET.sub("…", value)
    if isinstance(value, dict):
        return {_without_secrets(name): _without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value
