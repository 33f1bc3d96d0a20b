"""The teams and keys of the mixed load."""

from __future__ import annotations

from collections.abc import Mapping

Settings = Mapping[str, object]

#: the teams and their limits
TEAMS: Mapping[str, Settings] = {"assistant": {}, "search": {}, "research": {}, "batch": {}}

#: the keys by their aliases: the team, and limits of their own
KEYS: Mapping[str, tuple[str, Settings]] = {
    "assistant-web": ("assistant", {}),
    "assistant-app": ("assistant", {}),
    "search-index": ("search", {}),
    "search-answers": ("search", {}),
    "notebook-ada": ("research", {"max_budget": 0.25}),
    "notebook-bob": ("research", {"max_budget": 0.05}),
    "notebook-eve": ("research", {}),
    "nightly-job": ("batch", {"rpm_limit": 6}),
}
