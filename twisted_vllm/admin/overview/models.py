"""The queries and responses of the overview."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

import msgspec

from twisted_vllm.admin.models import MOMENT_SCHEMA, MOMENT_WORDS, Query, Response
from twisted_vllm.admin.reports.models import Amount, KeyHash

#: the most models, teams, keys and budgets of each kind in an overview of spend
MAX_TOP = 20


class TrafficQuery(Query, frozen=True, kw_only=True):
    """The period."""

    minutes: Annotated[
        int, msgspec.Meta(ge=1, le=1440, description="So many minutes until now, unless `since` is given.")
    ] = 15
    since: Annotated[
        str,
        msgspec.Meta(
            description=f"When the period begins, a day ago at most: {MOMENT_WORDS}.", extra_json_schema=MOMENT_SCHEMA
        ),
    ] = ""


class SpendQuery(Query, frozen=True, kw_only=True):
    """How much is shown."""

    top: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOP, description="The most models, teams and keys of a period.")] = 5


class PeriodSums(Response, kw_only=True):
    """What was used in a period."""

    spend: Amount
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int


class ModelSpend(PeriodSums, kw_only=True):
    """What was used of a model."""

    model: str


class TeamSpend(PeriodSums, kw_only=True):
    """What a team used."""

    team_id: Annotated[str, msgspec.Meta(description="Empty for keys without a team.")]
    team_alias: str | None


class KeySpend(PeriodSums, kw_only=True):
    """What a key used."""

    key_id: Annotated[str, msgspec.Meta(description="Empty for the master key.")]
    api_key: KeyHash | None
    key_alias: str | None
    key_name: str | None


class PeriodSpend(PeriodSums, kw_only=True):
    """What was used in a period, and by whom: those with the highest spend."""

    start: Annotated[datetime, msgspec.Meta(description="When it began: days and months are those of UTC.")]
    models: list[ModelSpend]
    teams: list[TeamSpend]
    keys: list[KeySpend]


class DaySpend(PeriodSums, kw_only=True):
    """What was used in a day."""

    date: date


class BudgetUse(Response, kw_only=True):
    """How much of a budget is used."""

    kind: Literal["key", "user", "team", "end_user", "member", "organization", "model_budget", "proxy"]
    id: Annotated[
        str,
        msgspec.Meta(
            description="The id of its holder: the key's id, the user's … Parts are separated by `/`: the team and the "
            "user of a member; the kind and id of the holder and the model of a budget for one model."
        ),
    ]
    name: Annotated[str, msgspec.Meta(description="The name of its holder; its id if it has none.")]
    api_key: Annotated[KeyHash | None, msgspec.Meta(description="The key that has it, to administrators.")]
    spend: Amount
    max_budget: Amount
    percent: Annotated[float, msgspec.Meta(description="The share that is used, in percent.")]
    resets_at: Annotated[datetime | None, msgspec.Meta(description="When it begins anew; null if never.")]


class SpendOverview(Response, kw_only=True):
    """What was spent today and this month, and of which budgets."""

    of: Annotated[
        Literal["everybody", "user", "key"],
        msgspec.Meta(description="Whose it is: everybody's, that of all keys of the caller's user, or the key's."),
    ]
    today: PeriodSpend
    month: PeriodSpend
    days: Annotated[list[DaySpend], msgspec.Meta(description="The last 30 days and today; days without use as well.")]
    budgets: Annotated[
        list[BudgetUse],
        msgspec.Meta(description="The budgets that are used most. Others than administrators see those of their own."),
    ]
