"""The level of the log: what it is, and its change while the gateway runs."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import Body, Json, NoQuery, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.log import LEVELS
from twisted_vllm.errors import GatewayError, InvalidRequest
from twisted_vllm.observability.logging.level import LevelInEffect, LogLevels
from twisted_vllm.storage.transaction import Transaction

_log = Logger()

#: the names of levels that LiteLLM's ``LITELLM_LOG`` takes, in lower case, and the gateway's own
_NAMES = {**{name: name for name in LEVELS}, "warning": "warn"}

#: seconds: a change for longer belongs in the file
_LONGEST = 604_800


class LogLevelRequest(Body, frozen=True, kw_only=True):
    """The body of ``PUT /config/log_level``."""

    level: Annotated[
        str,
        msgspec.Meta(
            description=f"The lowest level that is written: one of {', '.join(LEVELS)}, in any case; warning is warn.",
            extra_json_schema={"enum": [*LEVELS, "warning", *map(str.upper, LEVELS), "WARNING"]},
        ),
    ]
    seconds: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=_LONGEST)] | None,
        msgspec.Meta(description="For how long; without it, until the next reload."),
    ] = None

    def check(self) -> None:
        """Check that the level exists."""
        if self.level.lower() not in _NAMES:
            raise InvalidRequest(f"`level` must be one of {', '.join(LEVELS)}.", param="level")


class LogLevelReport(Response, kw_only=True):
    """The level of the log."""

    level: Annotated[Literal["debug", "info", "warn", "error", "critical"], msgspec.Meta(description="What holds now.")]
    configured_level: Annotated[
        Literal["debug", "info", "warn", "error", "critical"],
        msgspec.Meta(description="What passthrough.log.level says."),
    ]
    until: Annotated[
        datetime | None,
        msgspec.Meta(description="When the configured level holds again; null if at the next reload, or if it does."),
    ]


class LogLevelChange(LogLevelReport, kw_only=True):
    """A change of the level of the log."""

    status: Literal["success"]
    warnings: Annotated[tuple[str, ...], msgspec.Meta(description="What did not go well.")]


routes = Routes()


@routes.get("/config/log_level", query=NoQuery, response=LogLevelReport, errors=(400,))
async def log_level(call: AdminCall, _query: NoQuery) -> Json:
    """Return the level of the log, and when the configured one holds again."""
    return _report(call, _levels(call).in_effect)


@routes.put("/config/log_level", body=LogLevelRequest, response=LogLevelChange)
async def set_log_level(call: AdminCall, body: LogLevelRequest) -> Json:
    """Change the level of the log at once, until the next reload or for `seconds`. It is not written to the file.

    It holds in all processes of this machine; each machine has its own level.
    """
    return await call.complete(_change(call, body))


@inlineCallbacks
def _change(call: AdminCall, body: LogLevelRequest) -> Generator[Deferred[Any], Any, Json]:
    levels = _levels(call)
    before = levels.in_effect
    change = _NAMES[body.level.lower()], body.seconds, call.audit.actor_name or call.audit.actor
    after = levels.change(*change)
    warnings = []
    if levels.share is not None:
        missing = yield levels.share(*change)
        warnings += [f"{name} did not take the level in time: ask again" for name in missing]

    def work(transaction: Transaction) -> None:
        changed = {"level": after.level, "seconds": body.seconds}
        call.audit.record(transaction, "configuration", "", {"level": before.level}, changed)

    try:
        yield call.change(work)
    except GatewayError as error:
        # who looks for a fault of the database needs the level: it is in effect
        _log.error("A change of the log's level is not in the audit log: {reason}", reason=error.message)
        warnings.append(f"this change is not in the audit log: {error.message}")
    return {"status": "success", **_report(call, after), "warnings": warnings}


def _levels(call: AdminCall) -> LogLevels:
    levels = call.context.log_levels
    if levels is None:
        raise InvalidRequest("Another program's observer (twistd --logger) takes the log: it decides about levels.")
    return levels


def _report(call: AdminCall, found: LevelInEffect) -> Json:
    until = None
    if found.ends is not None:
        left = found.ends - call.context.clock.seconds()
        until = (call.now + timedelta(seconds=left)).isoformat()
    return {"level": found.level, "configured_level": found.configured, "until": until}
