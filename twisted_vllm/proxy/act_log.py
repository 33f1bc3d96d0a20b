"""Writes acts on servers to the audit log: who had which server sleep, load an adapter or forget its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.storage.records import AuditRecord
from twisted_vllm.storage.transaction import Transaction

#: the kind of the entries' objects
KIND = "server"

#: acts that may wait for the database; of further ones the log alone tells
MOST_WAITING = 100

#: characters of an action, an object's id and a client in the audit log
_ACTION, _OBJECT, _CLIENT = 32, 255, 64


class ActedOn(msgspec.Struct, frozen=True, gc=False):
    """What became of an act at one server.

    Attributes:
        server: the server's name.
        status: the status of its answer; None if it gave none.
        error: the code of the gateway's error; empty if it answered.
    """

    server: str
    status: int | None
    error: str = ""


class ActLog:
    """Writes an entry for each server of an act."""

    _log = Logger()

    def __init__(
        self,
        change: Callable[[Callable[[Transaction], None]], Deferred[Any]],
        text: ClientText,
        client_of: Callable[[RequestContext], str],
        now: Callable[[], float],
    ) -> None:
        """Write nothing yet.

        Args:
            change: runs work in a transaction.
            text: removes secrets from what clients send.
            client_of: returns the address of a request's client.
            now: the time in Unix seconds.
        """
        self._change = change
        self._text = text
        self._client_of = client_of
        self._now = now
        self._waiting = 0

    def record(self, context: RequestContext, acted: Sequence[ActedOn]) -> None:
        """Write what an act did to each server. The request does not wait for it."""
        principal, authorization = context.principal, context.authorization
        if principal is None or authorization is None or not acted:
            return
        at = datetime.fromtimestamp(self._now(), UTC)
        action = f"server/{authorization.route.path.rpartition('/')[2]}"[:_ACTION]
        query = authorization.forwarded.partition(b"?")[2].decode("latin-1")
        parameters = {"query": self._text.text(context, query)} if query else {}
        entries = [
            AuditRecord(
                at=at,
                actor=principal.hash_prefix or principal.kind,
                actor_name=principal.name,
                action=action,
                object_type=KIND,
                object_id=each.server[:_OBJECT],
                # an act changes what is there
                before={},
                after={"status": each.status, **({"error": each.error} if each.error else {}), **parameters},
                request_id=self._text.request_id(context),
                client=self._client_of(context)[:_CLIENT],
            )
            for each in acted
        ]
        if self._waiting >= MOST_WAITING:
            self._missing(entries, "too many acts wait for the database")
            return

        def work(transaction: Transaction) -> None:
            for entry in entries:
                transaction.write_audit(entry)

        self._waiting += 1
        self._change(work).addErrback(self._failed, entries).addBoth(self._done)

    def _failed(self, failure: Failure, entries: Sequence[AuditRecord]) -> None:
        if failure.check(GatewayError):
            self._missing(entries, failure.getErrorMessage())
        else:
            self._log.failure("An act is not in the audit log", failure)

    def _done(self, _: None) -> None:
        self._waiting -= 1

    def _missing(self, entries: Sequence[AuditRecord], reason: str) -> None:
        self._log.error(
            "{action} of {actor} on {servers} is not in the audit log: {reason}",
            action=entries[0].action,
            actor=entries[0].actor_name,
            servers=", ".join(entry.object_id for entry in entries[:10]),
            reason=reason,
            once_a_second="act",
        )
