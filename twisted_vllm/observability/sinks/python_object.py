"""Hands requests and log lines to an object of the operator's: an ``ILogObserver``, or a logger of LiteLLM's kind.

A logger of LiteLLM's kind has some of ``log_success_event``, ``log_failure_event`` and their ``async_…`` forms, or is a
function of the same four arguments. What else LiteLLM would call may change or refuse requests; this gateway calls
none of it, so an object that has any keeps the gateway from starting.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from zope.interface import implementer

from twisted_vllm.context import RequestContext
from twisted_vllm.observability.delivery.interfaces import IBlockingDestination
from twisted_vllm.observability.logging.lines import JsonLines
from twisted_vllm.observability.request_event import RequestEvent, is_success, read_event
from twisted_vllm.observability.sinks.encoders import encoded
from twisted_vllm.observability.sinks.litellm_payload import payload_of, usage_of

#: the methods that only log
SUCCESS = ("log_success_event", "async_log_success_event")
FAILURE = ("log_failure_event", "async_log_failure_event")
#: how often an object that raises is named in the log, in seconds
REPORT_SECONDS = 60.0
#: how long the coroutines of a batch may take, in seconds: the queue waits no longer either
ASYNC_SECONDS = 25.0

#: the names of methods of LiteLLM's ``CustomLogger`` that may refuse or change a request or an answer
_HOOK = re.compile(
    r"\w+_hook|logging_hook|\w*agentic_loop\w*|translate_completion_\w+|\w*pre_call_check|async_filter_\w+"
    r"|\w*get_chat_completion_prompt"
)
_LITELLM_BASES = frozenset(("litellm.integrations.custom_logger", "litellm.integrations.custom_batch_logger"))
_GUARDRAIL = "CustomGuardrail"


class ObjectError(Exception):
    """An object cannot be a sink. The message says why, and what to do."""


def load_object(path: str, directory: str = "") -> object:
    """Import an object.

    Args:
        path: the module and the attribute.
        directory: where the module is looked for first, as in LiteLLM: the configuration file's.

    Raises:
        ObjectError: it cannot be imported, or does more than to log.
    """
    module_name, _, attribute = path.rpartition(".")
    file = Path(directory, *module_name.split(".")).with_suffix(".py") if directory else None
    try:
        module = _load_file(module_name, file) if file is not None and file.is_file() else _import(module_name)
    except BaseException as error:
        # SystemExit too, so that a reload with such a module is refused as any other
        reason = f"No module named {error.name}" if isinstance(error, ModuleNotFoundError) else type(error).__name__
        where = f"{directory} or " if directory else ""
        raise ObjectError(
            f"{module_name} cannot be imported: {reason} (it is looked for in {where}where Python finds its modules)"
        ) from None
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise ObjectError(f"{module_name} has no {attribute}") from None
    check_object(found)
    return found


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _load_file(name: str, file: Path) -> Any:
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def check_object(found: object) -> None:
    """Check that an object only logs.

    Raises:
        ObjectError: it does not log, or does more.
    """
    if isinstance(found, type):
        raise ObjectError(f"is the class {found.__name__} (name an instance of it, as LiteLLM needs as well)")
    if any(base.__name__ == _GUARDRAIL for base in type(found).__mro__):
        raise ObjectError(
            "is a guardrail, which this gateway does not run (check requests in a proxy before the gateway)"
        )
    names = {*getattr(found, "__dict__", {}), *(name for base in type(found).__mro__ for name in base.__dict__)}
    hooks = sorted(name for name in names if _HOOK.fullmatch(name) and _is_own(found, name))
    if hooks:
        raise ObjectError(
            f"has {', '.join(hooks[:3])}, which may refuse or change requests: this gateway would not call it (take it "
            "out, or check requests in a proxy before the gateway)"
        )
    if ILogObserver.providedBy(found):
        return
    if not any(_is_own(found, name) for name in (*SUCCESS, *FAILURE)) and not callable(found):
        raise ObjectError(f"is no ILogObserver, and has none of {', '.join((*SUCCESS, *FAILURE))}")


def _is_own(found: object, name: str) -> bool:
    """Return whether an object has a method that is not only inherited from LiteLLM's base, where it does nothing."""
    if name in getattr(found, "__dict__", {}):
        return True
    for base in type(found).__mro__:
        if name in base.__dict__:
            return base.__module__ not in _LITELLM_BASES
    return False


class ObjectEncoder:
    """Items of a sink of type ``python``: requests and log lines as JSON, each with its kind before it."""

    REQUEST, LINE = b"R", b"L"

    def __init__(self, redact: Callable[[str], str]) -> None:
        """Set up; `redact` removes secrets from log lines."""
        self._lines = JsonLines(redact)
        self._encode = msgspec.json.Encoder().encode

    def request(self, event: RequestEvent, context: RequestContext) -> bytes:
        """Return the item of a request."""
        return self.REQUEST + encoded(self._encode, event)

    def line(self, event: LogEvent) -> bytes:
        """Return the item of a log line."""
        return self.LINE + self._lines.event(event)[:-1]


@implementer(IBlockingDestination)
class ObjectDestination:
    """Calls an object, in a thread of its own. What it raises is logged and harms nobody."""

    _log = Logger()

    def __init__(self, name: str, target: object, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Set up.

        Args:
            name: the name of the sink.
            target: the object, which `check_object` has checked.
            monotonic: the clock, in seconds.
        """
        self._name = name
        self._target = target
        self._is_observer = ILogObserver.providedBy(target)
        self._monotonic = monotonic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_report = float("-inf")
        self._raised = 0

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Call the object for each item, and wait for its coroutines."""
        waiting: list[Awaitable[object]] = []
        for item in batch:
            try:
                if self._is_observer:
                    self._call(self._target, waiting, _observed(item))
                elif item[:1] == ObjectEncoder.REQUEST:
                    self._tell(read_event(item[1:]), waiting)
            except Exception as error:
                self._report(error)
        if waiting:
            self._run(waiting)

    def close(self) -> None:
        """Close the loop of its coroutines."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _tell(self, event: RequestEvent, waiting: list[Awaitable[object]]) -> None:
        success = is_success(event.status, event.outcome)
        arguments = arguments_of(event, success)
        methods = [
            method
            for name in (SUCCESS if success else FAILURE)
            if _is_own(self._target, name) and callable(method := getattr(self._target, name))
        ]
        if not methods and callable(self._target):
            methods = [self._target]
        for method in methods:
            self._call(method, waiting, *arguments)

    def _call(self, method: Any, waiting: list[Awaitable[object]], *arguments: object) -> None:
        try:
            result = method(*arguments)
        except BaseException as error:
            # SystemExit too: the thread is not the object's to end
            self._report(error)
            return
        if inspect.isawaitable(result):
            waiting.append(result)

    def _run(self, waiting: Sequence[Awaitable[object]]) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def each(awaited: Awaitable[object]) -> None:
            try:
                await asyncio.wait_for(_contained(awaited), ASYNC_SECONDS)
            except (Exception, asyncio.CancelledError) as error:
                self._report(error.__cause__ or error if isinstance(error, _Ended) else error)

        async def all_of_them() -> None:
            await asyncio.gather(*map(each, waiting))

        self._loop.run_until_complete(all_of_them())

    def _report(self, error: BaseException) -> None:
        self._raised += 1
        now = self._monotonic()
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._log.warn(
                "The object of the sink {name} raised {error}: {count} of its calls failed so far",
                name=self._name,
                error=type(error).__name__,
                count=self._raised,
            )


class _Ended(Exception):
    """A coroutine wanted to end the process: asyncio would pass that on to its loop, past the other coroutines."""


async def _contained(awaited: Awaitable[object]) -> None:
    try:
        await awaited
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Ended from error


class Response(dict[str, Any]):
    """An answer whose members are attributes as well, as LiteLLM's are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def arguments_of(event: RequestEvent, success: bool) -> tuple[dict[str, Any], object, datetime, datetime]:
    """Return the arguments of a logger of LiteLLM's kind: kwargs, the answer, and when it began and ended."""
    payload = payload_of(event)
    metadata = payload["metadata"]
    kwargs: dict[str, Any] = {
        "model": event.model,
        "messages": payload["messages"],
        "stream": event.stream,
        "user": event.end_user,
        "call_type": payload["call_type"],
        "litellm_call_id": event.request_id,
        "custom_llm_provider": "hosted_vllm",
        "response_cost": event.cost_usd,
        "optional_params": payload["model_parameters"],
        "litellm_params": {"metadata": metadata, "api_base": event.server, "model": event.model},
        "standard_logging_object": payload,
    }
    answer: Response | None = None
    if success:
        response = payload["response"]
        answer = Response(response if isinstance(response, dict) else {"choices": []})
        answer.update(id=payload["id"], model=event.model, usage=Response(usage_of(event)))
    else:
        kwargs["exception"] = payload["error_str"]
        kwargs["traceback_exception"] = ""
    began, ended = datetime.fromtimestamp(event.started, UTC), datetime.fromtimestamp(event.ended, UTC)
    # LiteLLM's are naive, in local time
    return kwargs, answer, began.astimezone().replace(tzinfo=None), ended.astimezone().replace(tzinfo=None)


def _observed(item: bytes) -> LogEvent:
    """Return an item as an event of ``twisted.logger``."""
    if item[:1] == ObjectEncoder.REQUEST:
        event = read_event(item[1:])
        return {
            "log_level": LogLevel.info,
            "log_namespace": "twisted_vllm.requests",
            "log_time": event.ended,
            "log_format": "{request.status} {request.method} {request.route} {request.outcome}",
            "request": event,
        }
    found = msgspec.json.decode(item[1:])
    return {
        "log_level": LogLevel.levelWithName(found["level"]),
        "log_namespace": found["namespace"],
        "log_time": datetime.fromisoformat(found["time"]).timestamp(),
        "log_format": "{message}",
        "message": "\n".join([found["message"], *([found["failure"]] if found.get("failure") else [])]),
    }
