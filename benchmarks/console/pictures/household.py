"""Who uses the gateway in the pictures: organizations, teams, users, customers, budgets and keys."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from benchmarks.dashboards.world import administer
from benchmarks.peers import RunningGateway

Fields = Mapping[str, object]

ORGANIZATIONS: Mapping[str, Fields] = {
    "harbour": {"organization_alias": "Harbour University", "max_budget": 40, "budget_duration": "30d"},
    "lighthouse": {"organization_alias": "Lighthouse Ltd", "max_budget": 15, "budget_duration": "30d"},
}
BUDGETS: Mapping[str, Fields] = {
    "free": {"max_budget": 0.02, "budget_duration": "1d", "rpm_limit": 20},
    "research": {"max_budget": 5, "budget_duration": "30d", "tpm_limit": 400_000},
    "trial": {"max_budget": 0.2, "budget_duration": "7d", "max_parallel_requests": 4},
}
TEAMS: Mapping[str, Fields] = {
    "assistant": {"organization_id": "lighthouse", "max_budget": 6, "budget_duration": "30d"},
    "search": {"organization_id": "lighthouse", "rpm_limit": 600},
    "physics": {"organization_id": "harbour", "max_budget": 0.5, "budget_duration": "1d"},
    "linguistics": {"organization_id": "harbour", "tpm_limit": 200_000},
    "batch": {"organization_id": "harbour", "max_parallel_requests": 8},
}
USERS: Mapping[str, Fields] = {
    "ada": {"user_email": "ada@harbour.example", "teams": ["physics"], "max_budget": 0.3, "budget_duration": "1d"},
    "bob": {"user_email": "bob@harbour.example", "teams": ["linguistics"], "budget_id": "research"},
    "eve": {"user_email": "eve@harbour.example", "teams": ["physics", "linguistics"]},
    "frida": {"user_email": "frida@lighthouse.example", "teams": ["assistant"]},
    "grace": {"user_email": "grace@lighthouse.example", "teams": ["search"], "user_role": "proxy_admin_viewer"},
    "ivan": {"user_email": "ivan@harbour.example", "teams": ["batch"], "rpm_limit": 30},
    "olga": {"user_email": "olga@lighthouse.example", "teams": ["assistant"], "user_role": "proxy_admin"},
}
CUSTOMERS: Mapping[str, Fields] = {
    "acme": {"alias": "Acme Tools", "max_budget": 2, "budget_duration": "30d"},
    "globex": {"alias": "Globex", "budget_id": "trial"},
    "initech": {"alias": "Initech", "budget_id": "free"},
    "umbrella": {"alias": "Umbrella", "blocked": True},
}
#: the key whose page is shown, and the one whose owner looks at the console as a member
SHOWN_KEY, MEMBERS_KEY = "assistant-web", "ada-notebook"
KEYS: Mapping[str, Fields] = {
    SHOWN_KEY: {
        "team_id": "assistant", "user_id": "frida", "max_budget": 3, "budget_duration": "30d", "rpm_limit": 600,
        "max_parallel_requests": 40, "tags": ["production"], "metadata": {"contact": "frida@lighthouse.example"},
    },
    "assistant-app": {"team_id": "assistant", "tags": ["production", "phone"], "priority": 5},
    "assistant-staging": {"team_id": "assistant", "tags": ["staging"], "duration": "30d"},
    "search-answers": {"team_id": "search", "user_id": "grace", "tpm_limit": 100_000},
    "search-index": {"team_id": "search", "tags": ["index"]},
    MEMBERS_KEY: {"team_id": "physics", "user_id": "ada", "max_budget": 0.2, "budget_duration": "1d"},
    "ada-laptop": {"user_id": "ada", "duration": "90d"},
    "bob-notebook": {"team_id": "linguistics", "user_id": "bob", "max_budget": 0.01, "budget_duration": "1d"},
    "eve-notebook": {"team_id": "physics", "user_id": "eve", "budget_id": "research"},
    "nightly-job": {"team_id": "batch", "user_id": "ivan", "rpm_limit": 4, "tags": ["nightly"]},
    "ivan-evaluation": {"team_id": "batch", "user_id": "ivan", "max_parallel_requests": 2},
    "globex-portal": {"organization_id": "lighthouse", "budget_id": "trial", "aliases": {"gpt-4o": "qwen3-32b"}},
    "monitoring": {"key_type": "read_only"},
    "old-portal": {"team_id": "assistant", "blocked": True},
}  # fmt: skip


@attrs.frozen
class Household:
    """Who is there.

    Attributes:
        keys: the keys by their aliases.
        tokens: the hashes of the keys, likewise.
    """

    keys: Mapping[str, str] = attrs.field(repr=False)
    tokens: Mapping[str, str]


def move_in(gateway: RunningGateway) -> Household:
    """Make everybody.

    Raises:
        CannotStart: the gateway refuses one.
    """
    for name, fields in BUDGETS.items():
        administer(gateway, "POST", "/budget/new", {"budget_id": name, **fields})
    for name, fields in ORGANIZATIONS.items():
        administer(gateway, "POST", "/organization/new", {"organization_id": name, **fields})
    for name, fields in TEAMS.items():
        administer(gateway, "POST", "/team/new", {"team_id": name, "team_alias": name, **fields})
    for name, fields in USERS.items():
        alias = name.capitalize()
        administer(
            gateway, "POST", "/user/new", {"user_id": name, "user_alias": alias, "auto_create_key": False, **fields}
        )
    for name, fields in CUSTOMERS.items():
        administer(gateway, "POST", "/customer/new", {"user_id": name, **fields})
    keys, tokens = {}, {}
    for name, fields in KEYS.items():
        answer = msgspec.json.decode(administer(gateway, "POST", "/key/generate", {"key_alias": name, **fields}))
        keys[name], tokens[name] = str(answer["key"]), str(answer["token"])
    return Household(keys, tokens)
