"""After an act on servers, their sleep is checked at once and what was known of emptied caches is forgotten."""

from __future__ import annotations

import pytest

from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import MASTER
from twisted_vllm.context import Authorization, Peer, RequestContext
from twisted_vllm.proxy.server_acts import ServerActs


def finished(method: bytes, path: bytes, *, sent: bool = True) -> list[str]:
    called: list[str] = []
    acts = ServerActs(lambda: called.append("acted"), lambda: called.append("emptied"))
    context = RequestContext(Peer("192.0.2.1", False), 0.0)
    context.authorization = Authorization(MASTER, b"", classify(method, path), path, path, False, False)  # type: ignore[arg-type]  # no payer is needed
    context.sent = sent
    acts.finished(context)
    return called


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/sleep", ["acted"]),
        (b"/wake_up", ["acted"]),
        (b"/v1/load_lora_adapter", ["acted"]),
        (b"/reset_prefix_cache", ["acted", "emptied"]),
        (b"/v1/chat/completions", []),
    ],
)
def test_an_act_that_was_sent_is_noticed(path: bytes, expected: list[str]) -> None:
    assert finished(b"POST", path) == expected
    assert finished(b"POST", path, sent=False) == []
