"""Asks an admin app over a real database, whose threads answer."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.admin.admin_harness import Recorded, StoreReports
from twisted_vllm.admin.app import AdminApp
from twisted_vllm.admin.context import ModelSource, Readiness
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.sealing import Sealer
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.store import Store

MASTER_KEY = "sk-master-secret-0123"

#: after this long without an answer a test fails; it never waits that long for anything
PATIENCE_SECONDS = 10.0


class Client:
    """Asks an AdminApp whose store answers from other threads."""

    def __init__(self, reactor: Any, database: Database) -> None:
        self.store = Store(database)
        self.index = KeyIndex()
        self.sealer = Sealer(Secret(MASTER_KEY), secrets.token_bytes)
        self._reactor = reactor
        app = AdminApp(
            authenticator=Authenticator(Secret(MASTER_KEY), self.index),
            registry=Registry(self.store, self.index),
            reports=StoreReports(self.store),
            clock=reactor,
            now=lambda: datetime.now(UTC),
            randbytes=secrets.token_bytes,
            readiness=lambda: Readiness(draining=False, database=True),
            metrics=Metrics(),
            metrics_of_servers=lambda: succeed(b""),
            model_source=lambda: ModelSource(Settings(), self.sealer),
        )
        # it has treq's functions as attributes, which it does not declare
        self._treq: Any = StubTreq(Recorded(app.resource()))

    async def ask(self, method: str, path: str, body: object = None, key: str = MASTER_KEY) -> tuple[int, Any]:
        """Return the status and the JSON of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}"}
        sent = self._treq.request(method, f"http://gateway{path}", headers=headers, data=data)
        response = await self._settle(sent)
        return response.code, json.loads(await self._settle(response.content()))

    async def _settle(self, waiting: Deferred[Any]) -> Any:
        """Return what comes out: it is written in a later turn of the reactor, and StubTreq passes it on if flushed."""
        # Not `waiting.called`, which is true as well while a callback of its own is still being waited for.
        results: list[Any] = []
        waiting.addBoth(results.append)
        deadline = self._reactor.seconds() + PATIENCE_SECONDS
        while not results:
            assert self._reactor.seconds() < deadline, "no answer came"
            self._treq.flush()
            await deferLater(self._reactor, 0, lambda: None)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]
