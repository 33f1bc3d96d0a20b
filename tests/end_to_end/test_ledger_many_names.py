"""A key that names another end user and other tags each time: the ledger's sums stay few, and whole."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.growth.population import Population
from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.storage.usage_contract import stored_sums
from tests.whole_ledger import check_totals, opened
from twisted_vllm.storage.usage.tables import KINDS, OTHER, name_id, usage_marks

#: names with sums of their own
TOP = 50
SECONDS = 30.0 if FULL else 3.0


class Strangers(Callers):
    """Callers most of whose requests are of one key, which makes names up."""

    def request(self, number: int) -> bytes:
        if number % 5 == 0:
            return super().request(number)
        body = {"model": "m0", "messages": [], "user": f"{number:09d}" + "\u6f22\u2028'\"\\"[number % 5] * 246}
        data = json.dumps(body).encode()
        lines = [
            "POST /vllm/v1/chat/completions HTTP/1.1",
            "Host: g",
            f"Authorization: Bearer {Population.key(7)}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            "x-litellm-tags: " + ", ".join(f"{number}-{tag}-" + "t" * 100 for tag in range(6)),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + data


def test_a_key_that_makes_names_up_leaves_few_sums_and_loses_none_at_the_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/twisted_vllm.sqlite3"
    make_keys(url)
    callers = Strangers()
    settings = f"{PRICED}, ledger: {{top_end_users: {TOP}, top_tags: {TOP}}}"
    with (
        served(serve) as server,
        MeasuredGateway(tmp_path, server.port, passthrough=settings) as gateway,
        callers.calling([gateway.port], 3),
    ):
        time.sleep(SECONDS)
        # under load: what is gathered is written at the end
        began = time.monotonic()
        assert gateway.terminate() == 0
        took = time.monotonic() - began
    assert callers.refused == []
    rows = check_totals(url)
    assert set(callers.seen) <= {row.id for row in rows}
    with opened(url) as ledger:
        sums = stored_sums(ledger)
        assert ledger.read(usage_marks) == []
    strangers = len({row.end_user for row in rows if row.end_user})
    assert strangers > 4 * TOP
    for dimension in ("end_user", "tag"):
        for period in ("day", "month"):
            values = {key[2] for key in sums if key[0] == KINDS[dimension, period]} - {0, name_id(OTHER)}
            # those of keys count besides
            assert len(values) <= TOP + 50
            assert any(key[2] == name_id(OTHER) for key in sums if key[0] == KINDS[dimension, period])
    print(f"{len(rows)} rows of {strangers} end users, {len(sums)} sums, stopped in {took:.1f} s")
