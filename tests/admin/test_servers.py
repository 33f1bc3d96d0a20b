"""The routes of the servers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import NOW, Gateway, value_of
from twisted_vllm.config.drained_servers import MAX_DRAINED, DrainedServer
from twisted_vllm.storage.records import DrainedServerRecord
from twisted_vllm.upstreams.server_report import ServedEntry, ServerRow


class Desk:
    """Servers, as `ServerReports` has them; a drain that was stored shows in their rows."""

    def __init__(self, *rows: ServerRow) -> None:
        self.rows_of = list(rows)

    @property
    def names(self) -> list[str]:
        return [each.server for each in self.rows_of]

    def rows(self, *, refresh: bool = True) -> Deferred[list[ServerRow]]:
        return succeed(self.rows_of)

    def find(self, text: str) -> str | None:
        return next((each.address for each in self.rows_of if text in (each.server, each.address)), None)


def row(name: str = "gpu-1:8000", **values: Any) -> ServerRow:
    fields: dict[str, Any] = {
        "address": f"http://{name}",
        "configured": True,
        "state": "closed",
        "reason": "",
        "since": NOW.timestamp(),
        "gets_requests": True,
        "drained": None,
    }
    return ServerRow(server=name, **{**fields, **values})


def entry(name: str, others: int = 1, fallbacks: tuple[str, ...] = ()) -> ServedEntry:
    return ServedEntry(name, f"own-{name}", f"id-of-{name}", 1, 1, others, fallbacks)


def drained_in(gateway: Gateway) -> list[DrainedServerRecord]:
    found: list[DrainedServerRecord] = value_of(gateway.store.read(lambda each: each.drained_servers.find()))
    return found


def test_the_list_has_each_server_and_is_narrowed_by_name_and_model() -> None:
    desk = Desk(row(entries=(entry("m"),), version="0.11.0", queued=2), row("gpu-2:8000", entries=(entry("n"),)))
    gateway = Gateway(servers=lambda: desk)
    found = gateway.get("/server/list").json
    assert found["count"] == 2
    first = found["servers"][0]
    assert (first["server"], first["version"], first["queued"], first["latency_seconds"]) == (
        *("gpu-1:8000", "0.11.0", 2, None),
    )
    assert first["models"] == [
        {
            "model_name": "m",
            "model": "own-m",
            "model_id": "id-of-m",
            "weight": 1,
            "order": 1,
            "fallbacks": [],
            "other_servers": 1,
        }
    ]
    for query, names in (("server=gpu-2:8000", ["gpu-2:8000"]), ("model=m", ["gpu-1:8000"]), ("model=x", [])):
        assert [each["server"] for each in gateway.get(f"/server/list?{query}").json["servers"]] == names


def test_a_drain_is_stored_and_audited_and_a_second_one_changes_its_reason() -> None:
    gateway = Gateway(servers=lambda: Desk(row()))
    assert gateway.post("/server/drain", {"server": "gpu-1:8000", "reason": "driver"}).json["changed"] is True
    assert gateway.post("/server/drain", {"server": "http://gpu-1:8000"}).json["changed"] is False
    [record] = drained_in(gateway)
    assert (record.url, record.reason, record.drained_by) == ("http://gpu-1:8000", "driver", "master")
    gateway.clock.advance(60)
    gateway.post("/server/drain", {"server": "gpu-1:8000", "reason": "disk"})
    [changed] = drained_in(gateway)
    assert (changed.reason, changed.drained_at) == ("disk", record.drained_at)
    assert gateway.post("/server/undrain", {"server": "gpu-1:8000", "reason": "done"}).json["changed"] is True
    assert gateway.post("/server/undrain", {"server": "gpu-1:8000"}).json["changed"] is False
    assert drained_in(gateway) == []
    logs = gateway.get("/audit/list?object_type=server&sort_order=asc").json["audit_logs"]
    assert [(each["action"], (each["after"] or {}).get("reason")) for each in logs] == [
        ("server/drain", "driver"),
        ("server/drain", "disk"),
        ("server/undrain", "done"),
    ]


def test_the_answer_warns_of_models_without_another_server() -> None:
    drained = DrainedServer("http://gpu-1:8000")
    entries = (entry("m"), entry("n", 0), entry("o", 0, ("m", "n")), entry("", 0))
    gateway = Gateway(servers=lambda: Desk(row(gets_requests=False, state="drained", drained=drained, entries=entries)))
    assert gateway.post("/server/drain", {"server": "gpu-1:8000"}).json["warnings"] == [
        "No other server of `n` gets requests: its requests are refused with 503 until one does.",
        "No other server of `o` gets requests: its fallbacks are asked in its place (m, n).",
        "No other server serves models without an entry: their requests are refused with 503.",
    ]


def test_a_server_that_left_is_undrained_and_nothing_is_known_of_it() -> None:
    gone = row("gone:1", configured=False, state="not_configured", gets_requests=False)
    desk = Desk(gone)
    gateway = Gateway(servers=lambda: desk)
    gateway.post("/server/drain", {"server": "gone:1"})
    desk.rows = lambda *, refresh=True: succeed([])  # type: ignore[method-assign]  # it is in no list any more
    answer = gateway.post("/server/undrain", {"server": "gone:1"}).json
    assert (answer["changed"], answer["server"]["configured"], answer["server"]["drained"]) == (True, False, None)


def test_what_cannot_be_drained_is_refused_in_words() -> None:
    gateway = Gateway(servers=lambda: Desk(row(), row("gpu-2:8000")))
    error = gateway.post("/server/drain", {"server": "gpu-9:8000"}).error
    assert error["message"] == "No server is called `gpu-9:8000`. There are: gpu-1:8000, gpu-2:8000."
    assert gateway.post("/server/drain", {"server": "gpu-1:8000", "reason": "a\nb"}).error["param"] == "reason"
    assert gateway.post("/server/drain", {"server": "gpu-1:8000", "reason": "x" * 501}).status == 400
    long = Desk(row("x" * 600))
    assert Gateway(servers=lambda: long).post("/server/drain", {"server": "x" * 600}).status == 400
    assert drained_in(gateway) == []


def test_so_many_servers_are_drained_at_most() -> None:
    gateway = Gateway(servers=lambda: Desk(row()))

    def fill(transaction: Any) -> None:
        for number in range(MAX_DRAINED):
            transaction.drained_servers.insert(DrainedServerRecord(f"http://gone-{number}:1", "", NOW, "master"))

    value_of(gateway.store.change(fill))
    refused = gateway.post("/server/drain", {"server": "gpu-1:8000"})
    assert (refused.status, refused.error["code"]) == (409, "conflict")
    assert "GET /server/list" in refused.error["message"]
