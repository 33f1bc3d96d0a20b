"""The disk takes no rows: requests go on or are refused, as the operator says, and the log tells once."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import deferLater

from tests.ledger_file import open_ledger
from twisted_vllm.config.settings import LedgerSettings
from twisted_vllm.usage.spool.segments import Segment

CHAT = "/vllm/v1/chat/completions"
ASKED: dict[str, Any] = {"body": {"model": "simulated-model", "messages": [{"role": "user", "content": "hi"}]}}


async def ledger_metrics(gateway: Any) -> dict[str, float]:
    """Return what the gateway's metrics say of the ledger."""
    answer = await gateway.ask("GET", "/metrics")
    assert answer.status == 200
    begin = "vllm_passthrough_ledger_"
    return {
        sample.name.removeprefix(begin): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if sample.name.startswith(begin)
    }


@pytest.mark.parametrize("policy", ["continue", "refuse"])
@pytest_twisted.ensureDeferred
async def test_a_full_disk(
    reactor: Any, simulator: Any, gateway_to: Any, monkeypatch: pytest.MonkeyPatch, logged_failures: Any, policy: str
) -> None:
    gateway = gateway_to(simulator.port, ledger=LedgerSettings(on_spool_failure=policy))
    assert (await gateway.ask("POST", CHAT, **ASKED)).status == 200

    def full(segment: Segment, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "write", full)
        # the one that finds it out had been served by then
        statuses = [(await gateway.ask("POST", CHAT, **ASKED)).status for _ in range(3)]
        assert statuses == ([200, 200, 200] if policy == "continue" else [200, 503, 503])
        metrics = await ledger_metrics(gateway)
        assert (metrics["spool_writable"], metrics["spool_write_failures_total"] > 0) == (0, True)
        # the database may have taken them from memory already
        assert metrics["spool_rows"] + metrics["rows_committed_total"] >= 1 + statuses.count(200)
        if policy == "refuse":
            refused = await gateway.ask("POST", CHAT, **ASKED)
            assert (refused.error["code"], refused.header("retry-after")) == ("ledger_unavailable", "5")
    served = 1 + statuses.count(200)
    # nobody but Prometheus asks for anything: it learns of the recovery all the same
    for _ in range(200):
        metrics = await ledger_metrics(gateway)
        if metrics["spool_writable"] == 1 and metrics["rows_committed_total"] == served:
            break
        await deferLater(reactor, 0.05)
    names = ("spool_writable", "rows_committed_total", "spool_rows", "unsaved_rows", "rows_lost_total")
    assert [metrics[name] for name in names] == [1, served, 0, 0, 0]
    with closing(open_ledger(gateway.database_file)) as connection:
        [(rows,)] = connection.execute("SELECT count(*) FROM vllm_passthrough_usage")
    assert rows == served
    assert (await gateway.ask("POST", CHAT, **ASKED)).status == 200
    [told] = logged_failures.take_texts()
    assert "The ledger's spool cannot be written: No space left on device" in told
