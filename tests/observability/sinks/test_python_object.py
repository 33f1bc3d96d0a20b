"""Objects of the operator's: what is called, and what keeps the gateway from starting."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, LogLevel, capturedLogs, formatEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.observability.sinks.requests import made, told
from tests.observability.sinks.test_encoders import CONTENTS
from twisted_vllm.observability.delivery.interfaces import IBlockingDestination
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.sinks.python_object import (
    ObjectDestination,
    ObjectEncoder,
    ObjectError,
    check_object,
    load_object,
)

ENCODER = ObjectEncoder(Redactor())
SUCCESS = ENCODER.request(told(), made())
FAILURE = ENCODER.request(told(status=502, error_code="upstream_unreachable"), made())
LINE = ENCODER.line({"log_level": LogLevel.warn, "log_namespace": "a.b", "log_format": "Lost it", "log_time": 5.0})


class Calls:
    """A logger of LiteLLM's kind."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], Any]] = []

    def log_success_event(self, kwargs: dict[str, Any], response: Any, start: datetime, end: datetime) -> None:
        self.calls.append(("success", kwargs, response))
        assert (end - start).total_seconds() == 1.5

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response: Any, start: datetime, end: datetime
    ) -> None:
        await asyncio.sleep(0)
        self.calls.append(("async success", kwargs, response))

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response: Any, start: datetime, end: datetime
    ) -> None:
        self.calls.append(("async failure", kwargs, response))


@implementer(ILogObserver)
class Observer:
    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


def deliver(target: object, *items: bytes) -> ObjectDestination:
    destination = ObjectDestination("a", target, lambda: 0.0)
    verifyObject(IBlockingDestination, destination)
    destination.deliver(items)
    destination.close()
    return destination


def test_a_logger_of_litellms_kind_gets_kwargs_the_answer_and_both_times() -> None:
    target = Calls()
    check_object(target)
    deliver(target, SUCCESS, FAILURE, LINE)
    # the coroutines of a batch run side by side
    assert [name for name, _, _ in target.calls] == ["success", "async failure", "async success"]
    _, kwargs, response = target.calls[0]
    assert (kwargs["model"], kwargs["response_cost"]) == ("qwen", 0.003)
    assert kwargs["standard_logging_object"]["total_tokens"] == 12
    assert kwargs["litellm_params"]["metadata"]["user_api_key_alias"] == "team-a"
    assert response.usage.total_tokens == response["usage"]["total_tokens"] == 12
    _, kwargs, response = target.calls[1]
    assert "upstream_unreachable" in kwargs["exception"]
    assert response is None


def test_an_object_gets_prompt_and_answer_where_they_are_kept() -> None:
    item = ENCODER.request(told(contents=CONTENTS), made())
    calls, observer = Calls(), Observer()
    deliver(calls, item)
    deliver(observer, item)
    _, kwargs, response = calls.calls[0]
    assert kwargs["messages"] == [{"role": "user", "content": "hi"}]
    assert response["choices"][0]["message"]["content"] == "ho"
    assert json.loads(bytes(observer.events[0]["request"].contents)) == json.loads(CONTENTS)


def test_a_function_gets_both() -> None:
    calls: list[str] = []

    def log(kwargs: dict[str, Any], response: Any, start: datetime, end: datetime) -> None:
        calls.append(kwargs["standard_logging_object"]["status"])

    check_object(log)
    deliver(log, SUCCESS, FAILURE)
    assert calls == ["success", "failure"]


def test_an_observer_gets_requests_and_lines_as_events() -> None:
    target = Observer()
    check_object(target)
    deliver(target, SUCCESS, LINE)
    request, line = target.events
    assert formatEvent(request) == "200 POST /v1/chat/completions completed"
    assert request["request"].model == "qwen"
    assert (formatEvent(line), line["log_level"], line["log_namespace"]) == ("Lost it", LogLevel.warn, "a.b")


def test_what_an_object_raises_is_logged_once_a_minute_and_harms_nobody() -> None:
    class Raises(Calls):
        def log_success_event(self, *arguments: Any) -> None:
            raise ValueError("sk-secret-in-an-error")

        async def async_log_success_event(self, *arguments: Any) -> None:
            raise KeyError

    with capturedLogs() as events:
        target = Raises()
        deliver(target, SUCCESS, SUCCESS, FAILURE)
    assert [name for name, _, _ in target.calls] == ["async failure"]
    (line,) = [formatEvent(event) for event in events]
    assert line == "The object of the sink a raised ValueError: 1 of its calls failed so far"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_an_object_that_wants_to_end_the_process_ends_nothing(error: type[BaseException]) -> None:
    class Ends(Calls):
        def log_success_event(self, *arguments: Any) -> None:
            raise error

        async def async_log_success_event(self, *arguments: Any) -> None:
            raise error

    with capturedLogs() as events:
        target = Ends()
        deliver(target, SUCCESS, FAILURE)
    assert [name for name, _, _ in target.calls] == ["async failure"]
    assert error.__name__ in formatEvent(events[0])


def test_a_module_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ends_at_once.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ObjectError, match="SystemExit"):
        load_object("ends_at_once.log", str(tmp_path))


class CustomGuardrail:
    """Named as LiteLLM's base of guardrails."""

    async def async_log_success_event(self, *arguments: Any) -> None: ...


class MyGuardrail(CustomGuardrail): ...


class Checks(Calls):
    async def async_pre_call_hook(self, *arguments: Any) -> None: ...


def having(name: str) -> object:
    """Return a logger with one more method."""
    return type("Has", (Calls,), {name: lambda *arguments: None})()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (MyGuardrail(), "is a guardrail"),
        (Checks(), "has async_pre_call_hook, which may refuse or change requests"),
        (having("async_moderation_hook"), "has async_moderation_hook"),
        (having("async_post_call_streaming_iterator_hook"), "has async_post_call_streaming_iterator_hook"),
        (having("async_should_run_agentic_loop"), "has async_should_run_agentic_loop"),
        (having("async_filter_deployments"), "has async_filter_deployments"),
        (having("translate_completion_input_params"), "has translate_completion_input_params"),
        (having("async_get_chat_completion_prompt"), "has async_get_chat_completion_prompt"),
        (having("async_pre_call_check"), "has async_pre_call_check"),
        (Calls, "is the class Calls"),
        (object(), "is no ILogObserver, and has none of log_success_event"),
        ("text", "is no ILogObserver"),
    ],
)
def test_what_does_more_than_log_keeps_the_gateway_from_starting(target: object, says: str) -> None:
    with pytest.raises(ObjectError, match=says):
        check_object(target)


def test_methods_that_are_only_inherited_from_litellms_base_do_not_count() -> None:
    async def hook(self: object, *arguments: Any) -> None: ...

    base = type("CustomLogger", (), {"async_pre_call_hook": hook, "log_success_event": lambda *arguments: None})
    base.__module__ = "litellm.integrations.custom_logger"
    own = type("Own", (base,), {"log_failure_event": lambda *arguments: None})
    check_object(own())
    with pytest.raises(ObjectError, match="has none of"):
        check_object(type("Nothing", (base,), {})())


def test_a_module_is_looked_for_beside_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "my_loggers_beside.py").write_text(
        "class Logger:\n    def log_success_event(self, *a): pass\naudit = Logger()\n"
    )
    assert type(load_object("my_loggers_beside.audit", str(tmp_path))).__name__ == "Logger"
    assert load_object("my_loggers_beside.audit", str(tmp_path)) is load_object(
        "my_loggers_beside.audit", str(tmp_path)
    )


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("", "my_broken_a.audit", "my_broken_a has no audit"),
        (
            "raise ValueError('sk-secret')",
            "my_broken_b.audit",
            "my_broken_b cannot be imported: ValueError (it is looked for in ",
        ),
        ("import no_such_module_x", "my_broken_c.audit", "cannot be imported: No module named no_such_module_x ("),
        ("def (", "my_broken_d.audit", "cannot be imported: SyntaxError ("),
    ],
)
def test_a_module_that_cannot_be_used_is_named(tmp_path: Path, text: str, path: str, says: str) -> None:
    (tmp_path / f"{path.partition('.')[0]}.py").write_text(text)
    with pytest.raises(ObjectError) as caught:
        load_object(path, str(tmp_path))
    assert says in str(caught.value)


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(ObjectError, match="No module named no_such_module_y"):
        load_object("no_such_module_y.logger")
