"""Makes what counts in the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from twisted_vllm.auth.change_limits import DAY, MOST_USERS
from twisted_vllm.auth.uncounted_requests import MOST_KEYS
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.memory.reconciliation import BudgetReconciliation
from twisted_vllm.ratelimit.minute_counts import MinuteCounts
from twisted_vllm.ratelimit.supervised.messages import Table
from twisted_vllm.ratelimit.supervised.server import Hears, LimitServer


def limit_server(
    hub: Hears, limiter: LocalLimiter, reconciliation: BudgetReconciliation, now: Callable[[], float] = time
) -> LimitServer:
    """Return the server of limits, with the counts that the processes of a gateway share."""
    counts = {
        Table.FAILURES: MinuteCounts(),
        Table.READS: MinuteCounts(MOST_KEYS),
        Table.PREFLIGHTS: MinuteCounts(MOST_KEYS),
        Table.CHANGES_OF_MINUTE: MinuteCounts(MOST_USERS),
        Table.CHANGES_OF_DAY: MinuteCounts(MOST_USERS, DAY),
    }
    return LimitServer(hub, limiter, reconciliation, counts, now)
