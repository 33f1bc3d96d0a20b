"""Reload of the configuration, for the holder of the master key."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, Literal

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import Body, Json, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.reload import Reloaded
from twisted_vllm.errors import GatewayError, InvalidConfiguration
from twisted_vllm.storage.transaction import Transaction

#: problems that an answer names
MAX_PROBLEMS = 100

_log = Logger()


class ReloadRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /config/reload``: nothing."""


class ReloadReport(Response, kw_only=True):
    """What a reload did."""

    status: Literal["reloaded"]
    changed: Annotated[tuple[str, ...], msgspec.Meta(description="The settings that changed, by their paths.")]
    restart_needed: Annotated[
        tuple[str, ...], msgspec.Meta(description="The settings that differ and need a restart: they are as before.")
    ]
    warnings: Annotated[tuple[str, ...], msgspec.Meta(description="What is accepted and not used.")]


routes = Routes()


@routes.post("/config/reload", body=ReloadRequest, response=ReloadReport, access=Access.MASTER)
async def reload(call: AdminCall, body: ReloadRequest) -> Json:
    """Read the configuration again, and put it into effect. No request, connection or count is dropped.

    If it is not valid, nothing changes, and the error names all problems. Only the master key may call this, and
    keys of users with the role proxy_admin.
    """
    return await call.complete(_reload(call))


@inlineCallbacks
def _reload(call: AdminCall) -> Generator[Deferred[Any], Any, Json]:
    """Reload, and write it to the audit log, whether the client waits for it or not."""
    try:
        found: Reloaded = yield call.context.reload()
    except ConfigError as error:
        raise _refusal(error) from None
    paths = {"changed": found.changed, "restart_needed": found.restart_needed}
    warnings = found.warnings

    def work(transaction: Transaction) -> None:
        call.audit.record(transaction, "configuration", "", None, paths)

    try:
        yield call.change(work)
    except GatewayError as error:
        # the configuration is in effect: the answer must not say otherwise
        _log.error("A reload of the configuration is not in the audit log: {reason}", reason=error.message)
        warnings = (*warnings, f"this reload is not in the audit log: {error.message}")
    return {"status": "reloaded", **paths, "warnings": warnings}


def _refusal(error: ConfigError) -> InvalidConfiguration:
    problems = [str(problem) for problem in error.problems[:MAX_PROBLEMS]]
    more = len(error.problems) - len(problems)
    if more:
        problems.append(f"and {more} more")
    return InvalidConfiguration("\n".join(["The configuration cannot be used; nothing was changed:", *problems]))
