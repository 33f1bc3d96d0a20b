"""``GET`` and ``PUT /config/log_level``: what they answer, for how long a level holds, and what the audit log has."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from tests.admin.admin_harness import Gateway, HeldStore
from tests.observability.memory_sink import MemorySink
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.observability.logging.lines import TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.writer import LogWriter

PATH = "/config/log_level"


class Logging:
    """A gateway with a log of its own."""

    def __init__(self, store: Any = None) -> None:
        lines = TextLines()
        self.sink = MemorySink()
        self.observer = LineObserver(LogWriter(self.sink, lines.dropped), lines)
        self.clock = Clock()
        self.levels = LogLevels(self.observer, self.clock)
        self.gateway = Gateway(store, log_levels=self.levels)
        self.gateway.clock.advance(self.clock.seconds())

    def put(self, **body: Any) -> Any:
        return self.gateway.call("PUT", PATH, body=body)

    def get(self) -> Any:
        return self.gateway.get(PATH).json


def test_a_change_holds_at_once_and_is_told() -> None:
    logging = Logging()
    assert logging.get() == {"level": "info", "configured_level": "info", "until": None}
    answer = logging.put(level="debug")
    assert (answer.status, answer.json) == (
        200,
        {"status": "success", "level": "debug", "configured_level": "info", "until": None, "warnings": []},
    )
    assert logging.observer.level == "debug"
    assert logging.get() == {"level": "debug", "configured_level": "info", "until": None}


def test_a_change_for_some_seconds_ends_by_itself() -> None:
    logging = Logging()
    assert logging.put(level="debug", seconds=600).json["until"] == "2026-03-01T12:10:00+00:00"
    logging.clock.advance(599)
    assert logging.observer.level == "debug"
    logging.clock.advance(1)
    assert logging.get() == {"level": "info", "configured_level": "info", "until": None}


def test_another_change_replaces_the_end_of_the_one_before() -> None:
    logging = Logging()
    logging.put(level="debug", seconds=10)
    logging.put(level="error")
    logging.clock.advance(1000)
    assert logging.observer.level == "error"
    assert not logging.clock.getDelayedCalls()


def test_a_reload_ends_a_change() -> None:
    logging = Logging()
    logging.put(level="debug", seconds=10)
    logging.levels.reconfigure("warn")
    assert logging.get() == {"level": "warn", "configured_level": "warn", "until": None}
    assert not logging.clock.getDelayedCalls()


@pytest.mark.parametrize(("name", "level"), [("DEBUG", "debug"), ("WARNING", "warn"), ("Error", "error")])
def test_levels_are_also_known_by_litellms_names(name: str, level: str) -> None:
    assert Logging().put(level=name).json["level"] == level


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "level"),
        ({"level": "loud"}, "level"),
        ({"level": 10}, "level"),
        ({"level": "debug", "seconds": 0}, "seconds"),
        ({"level": "debug", "seconds": 1e9}, "seconds"),
        ({"level": "debug", "minutes": 1}, "minutes"),
    ],
)
def test_an_invalid_level_is_refused_and_named(body: dict[str, Any], param: str) -> None:
    logging = Logging()
    answer = logging.put(**body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert logging.observer.level == "info"


def test_a_refusal_names_the_levels() -> None:
    message = Logging().put(level="loud").error["message"]
    assert message == "`level` must be one of debug, info, warn, error, critical."


def test_who_administers_may_change_it_and_nobody_else() -> None:
    logging = Logging()
    key = logging.gateway.make_key()["key"]
    for method in ("PUT", "GET"):
        answer = logging.gateway.call(method, PATH, key=key, body={"level": "debug"} if method == "PUT" else None)
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
    assert logging.observer.level == "info"
    manager = logging.gateway.make_key(allowed_routes=["management"])["key"]
    assert logging.gateway.call("PUT", PATH, key=manager, body={"level": "debug"}).status == 200


def test_a_change_stands_in_the_audit_log() -> None:
    logging = Logging()
    logging.put(level="debug", seconds=5)
    [entry] = logging.gateway.get("/audit/list").json["audit_logs"]
    assert (entry["actor"], entry["action"], entry["object_type"]) == ("master", "config/log_level", "configuration")
    assert (entry["before"], entry["after"]) == ({"level": "info"}, {"level": "debug", "seconds": 5.0})


def test_without_the_database_the_level_changes_and_the_answer_says_what_is_missing() -> None:
    store = HeldStore()
    logging = Logging(store)
    asked = logging.gateway.ask("PUT", PATH, body={"level": "debug"})
    store.refuse(StoreUnavailable("The database does not answer."))
    logging.gateway.deliver()
    found: list[int] = []
    asked.addCallback(lambda response: found.append(response.code))
    assert found == [200]
    assert logging.observer.level == "debug"


def test_a_log_of_another_program_keeps_its_level() -> None:
    answer = Gateway().call("PUT", PATH, body={"level": "debug"})
    assert (answer.status, "--logger" in answer.error["message"]) == (400, True)


def test_lines_below_the_level_are_not_written() -> None:
    logging = Logging()
    logging.observer.writer.start()
    for level in ("error", "debug"):
        logging.put(level=level)
        for each in (LogLevel.debug, LogLevel.info, LogLevel.error):
            logging.observer({"log_format": f"{level}: {each.name}", "log_level": each, "log_namespace": "x"})
    logging.observer.writer.stop()
    text = logging.sink.data.decode()
    assert "error: error" in text and "error: info" not in text and "debug: debug" in text
