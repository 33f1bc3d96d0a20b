"""The dashboard for whoever answers for budgets: who uses what, and who is at a limit?"""

from __future__ import annotations

from functools import partial

from benchmarks.dashboards.panels import RED, YELLOW, Dashboard, Kind, Panel, Query, Row
from benchmarks.dashboards.promql import INSTANCE, MODEL, growth, metric, or_zero, rate, top, total
from benchmarks.dashboards.variables import INSTANCES, MODELS

_stat = partial(Panel, Kind.STAT, width=6, height=4)
_half = partial(Panel, Kind.LINES, width=12, height=8)
_third = partial(Panel, Kind.BARS, width=8, height=9)

#: how many are shown
_MOST = 10
#: refusals that are about a tenant, not about the gateway or its servers
OF_TENANTS = (
    f'{INSTANCE},code=~"rate_limit_exceeded|budget_exceeded|model_not_allowed|route_not_allowed|invalid_api_key|key_blocked'
    '|key_expired"'
)


_OF_A_MODEL = f'{MODEL},model!=""'
#: `cached` and `reasoning` are parts of these
PROMPT_AND_COMPLETION = f'{MODEL},type=~"prompt|completion"'
_SUMMED = 'type=~"prompt|completion"'


def _bars(kind: str, what: str, counter: str, unit: str) -> Panel:
    known = f'{INSTANCE},{kind}!=""'
    used = total(growth(f"{kind}_{counter}", f"{known},{_SUMMED}" if counter == "tokens_total" else known), kind)
    return _third(
        f"{what} by {kind}",
        f"The {_MOST} largest of the time that is shown; `other` are all without a label of their own. Needs "
        f"`passthrough.metrics.{kind}_labels` and a Prometheus that asks with a key that administers "
        "(docs/metrics.md); the reports have the exact figures of all.",
        (Query(top(_MOST, used if unit == "currencyUSD" else f"round({used})"), f"{{{{{kind}}}}}"),),
        unit=unit,
    )


NOW = Row(
    "Now",
    (
        _stat(
            "Cost, of the time that is shown",
            "At the prices of `model_list`. The ledger has the exact figures: `GET /global/spend/report`, "
            "docs/usage-and-cost.md.",
            (Query(total(growth("cost_usd_total", MODEL))),),
            unit="currencyUSD",
            decimals=2,
        ),
        _stat(
            "Tokens",
            "Tokens of prompts and answers in the time that is shown.",
            (Query(total(growth("tokens_total", PROMPT_AND_COMPLETION))),),
        ),
        _stat(
            "Budgets spent to 80 %",
            "Budgets of keys, users, teams, organizations and end users with a fifth left at most. "
            "`POST /budget/update` raises one, docs/limits.md; `alerting` tells people of each (docs/alerting.md).",
            (Query(or_zero(total(metric("budgets", f'{INSTANCE},used="0.8"')))),),
            steps=((1, YELLOW),),
        ),
        _stat(
            "Budgets spent",
            "Their owners get 429 `budget_exceeded` until the period ends or the budget is raised.",
            (Query(or_zero(total(metric("budgets", f'{INSTANCE},used="1"')))),),
            steps=((1, RED),),
        ),
    ),
)

KEYS = Row(
    "Keys",
    (
        _bars("key", "Requests", "requests_total", "short"),
        _bars("key", "Tokens", "tokens_total", "short"),
        _bars("key", "Cost", "cost_usd_total", "currencyUSD"),
    ),
)

TEAMS = Row(
    "Teams",
    (
        _bars("team", "Requests", "requests_total", "short"),
        _bars("team", "Tokens", "tokens_total", "short"),
        _bars("team", "Cost", "cost_usd_total", "currencyUSD"),
    ),
)

LIMITS = Row(
    "Limits",
    (
        _half(
            "Refused because of a limit or a permission",
            "`rate_limit_exceeded`: a client is faster than its key, user or team may be; the message that it gets "
            "says which limit. `budget_exceeded`: see the budgets above. Others: no right to the model or route.",
            (Query(f"{total(rate('refusals_total', OF_TENANTS), 'code')} > 0", "{{code}}"),),
            unit="reqps",
        ),
        _half(
            "Budgets nearly spent, by kind",
            "How many have used 80, 90 and 100 % of a budget; whoever has used 100 % is counted in all three.",
            (Query(f"{total(metric('budgets'), 'kind', 'used')} > 0", "{{kind}}: {{used}}"),),
        ),
    ),
)

MODELS_ROW = Row(
    "Models",
    (
        Panel(
            Kind.TABLE,
            "What each model was used for",
            "Requests, tokens and cost of the time that is shown.",
            (
                Query(f"round({total(growth('requests_total', _OF_A_MODEL), 'model')})", "requests"),
                Query(f"round({total(growth('tokens_total', PROMPT_AND_COMPLETION), 'model')})", "tokens"),
                Query(total(growth("cost_usd_total", MODEL), "model"), "cost", "currencyUSD"),
            ),
            width=12,
            height=8,
            columns={"model": "model"},
        ),
        _half(
            "Cost by model",
            "At the prices of `model_list`, per hour.",
            (Query(f"{total(rate('cost_usd_total', MODEL), 'model')} * 3600", "{{model}}"),),
            unit="currencyUSD",
            stacked=True,
        ),
    ),
)

TENANTS = Dashboard(
    "vllm-passthrough-tenants",
    "Gateway: tenants",
    "Who uses what, and who is at a limit? Figures by key and team need a setting (docs/metrics.md); to charge people, "
    "take the ledger's reports, which are exact.",
    "observability.md",
    (INSTANCES, MODELS),
    (NOW, KEYS, TEAMS, LIMITS, MODELS_ROW),
)
