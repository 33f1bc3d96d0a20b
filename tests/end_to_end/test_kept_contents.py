"""Prompts and answers in the gateway's own database, from the request to the API, for who may see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import eventually
from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.test_contents import CHAT, FULL, MESSAGES, answering
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.end_to_end.workers_harness import Workers, started
from twisted_vllm.config.sinks import SinkSettings

KEPT = SinkSettings(name="kept", type="database", events=("requests",))


async def written(reactor: Any, gateway: Any, count: int) -> None:
    """Wait until the database has this many."""
    (sink,) = gateway.service.wiring.telemetry.parts[-1]._running._sinks.values()

    def are_there() -> bool:
        gateway.pass_time(2)
        return bool(sink.queue.delivered == count)

    await eventually(reactor, are_there)


@pytest_twisted.ensureDeferred
async def test_a_request_is_found_with_its_prompt_and_answer(reactor: Any, stand_in: Any, gateway_to: Any) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    gateway = gateway_to(stand_in(answering(usage=usage)).port, log_bodies=FULL, sinks=(KEPT,))
    ada, bob = await gateway.make_key(key_alias="ada"), await gateway.make_key(key_alias="bob")
    body = {"model": "m", "messages": MESSAGES}
    ids = []
    for headers in ({}, {"x-request-id": "mine"}, {"x-litellm-no-log": "true"}):
        answer = await gateway.ask("POST", CHAT, ada, body=body, headers=headers)
        assert answer.status == 200
        ids.append(answer.header("x-request-id"))
    await written(reactor, gateway, 2)

    async def found(id: str, key: str) -> Any:
        answer = await gateway.ask("GET", f"/usage/requests/{id}", key)
        return json.loads(answer.body) if answer.status == 200 else answer.status

    # the ledger's thread writes the rows soon
    while await found(ids[2], ada) == 404:
        await deferLater(reactor, 0.02, lambda: None)
    first, second, third = [await found(id, ada) for id in ids]
    for each in (first, second):
        assert each["contents"]["input"] == MESSAGES
        assert each["contents"]["output"]["text"] == "Much."
        assert each["total_tokens"] == 4
        assert each["timings"]["first_byte_us"] <= each["timings"]["total_us"]
    assert (second["request_id"], second["id"] == "mine") == ("mine", False)
    assert (await found(second["id"], ada))["contents"] == second["contents"]
    # who wants nothing kept has nothing kept
    assert third["contents"] is None
    shown = json.loads((await gateway.ask("GET", f"/spend/logs/ui/{ids[0]}", ada)).body)
    assert shown["messages"] == MESSAGES
    assert shown["response"]["choices"][0]["message"]["content"] == "Much."
    for id in (*ids, second["id"]):
        assert await found(id, bob) == 404


def test_each_worker_keeps_what_it_served(tmp_path: Path) -> None:
    options = "log_bodies: {mode: full}, sinks: [{name: kept, type: database, keep_for: 1h}]"
    with served(serve) as server, started(Workers(tmp_path, server.port, passthrough=options)) as gateway:
        body = json.dumps({"model": "m", "messages": MESSAGES})
        for _ in range(20):
            assert ask(gateway.port, CHAT, MASTER_KEY, "POST", body)[0] == 200

        def kept() -> list[Any]:
            _, text = ask(gateway.port, "/spend/logs", MASTER_KEY)
            ids = [row["metadata"]["usage_id"] for row in json.loads(text)]
            answers = [ask(gateway.port, f"/usage/requests/{id}", MASTER_KEY)[1] for id in ids]
            return [contents for each in answers if (contents := json.loads(each)["contents"]) is not None]

        wait_until(lambda: len(kept()) == 20)
        assert all(each["input"] == MESSAGES for each in kept())
