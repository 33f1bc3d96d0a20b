"""Notices what acts that passed change at servers: their sleep, and their prefix caches. Has them audited."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.proxy.act_log import ActedOn

#: the act that empties a prefix cache
_RESET = "/reset_prefix_cache"


class ServerActs(RequestObserver):
    """Observes requests to routes that act on servers as a whole."""

    def __init__(
        self,
        acted: Callable[[], object],
        emptied: Callable[[], object],
        record: Callable[[RequestContext, Sequence[ActedOn]], None] = lambda context, acted: None,
    ) -> None:
        """Observe.

        Args:
            acted: called after an act that a server may have done: servers may have been told to sleep or to wake.
            emptied: called after an act that empties prefix caches.
            record: writes an act to the audit log that went to one server; of others `FanOutWork` tells.
        """
        self._acted = acted
        self._emptied = emptied
        self._record = record

    def finished(self, context: RequestContext) -> None:
        """Call what is to be called after an act."""
        authorization = context.authorization
        if authorization is None or not context.sent or not authorization.route.row.fan_out:
            return
        self._acted()
        if authorization.route.path == _RESET:
            self._emptied()
        if context.server is not None and authorization.route.fans_out:
            self._record(context, [ActedOn(context.server.name, context.status or None, context.error_code)])
