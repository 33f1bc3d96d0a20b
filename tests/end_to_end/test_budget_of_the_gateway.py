"""The budget of the gateway as a whole holds for everybody: keys, the master key, and anybody where there is none."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY, server_at
from tests.end_to_end.test_model_budgets_by_any_name import ANSWER, COMPLETIONS, PRICES
from twisted_vllm.config.settings import ModelEntry

#: in open mode, other names may be those of a web page
LOCAL = {"Host": "127.0.0.1"}


@pytest.mark.parametrize("caller", ["key", "master", "anonymous", "any key in open mode", "root", "model in the path"])
@pytest_twisted.ensureDeferred
async def test_it_holds_for(caller: str, stand_in: Any, gateway_to: Any) -> None:
    server = server_at(stand_in(ANSWER).port)
    is_open = caller in ("anonymous", "any key in open mode")
    options = {"master_key": None, "allow_anonymous": True} if is_open else {}
    models = (ModelEntry("qwen", "Qwen", server, prices=PRICES),)
    gateway = gateway_to(None, models=models, max_budget=Decimal(5), **options)
    key = {"key": None, "anonymous": None, "any key in open mode": "sk-anything-at-all"}.get(caller, MASTER_KEY)
    if caller == "key":
        key = await gateway.make_key()
    path = {"root": "/completions", "model in the path": "/engines/qwen/completions"}.get(caller, "/vllm" + COMPLETIONS)
    statuses = [
        (await gateway.ask("POST", path, key, headers=LOCAL, body={"model": "qwen", "prompt": "a"})).status
        for _ in range(3)
    ]
    assert statuses == [200, 429, 429]
