"""``vllm-passthrough usage``: what was used and what it cost, from a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from twisted_vllm.cli.client.gateway import Gateway
from twisted_vllm.cli.client.options import ClientCommand, client_options
from twisted_vllm.cli.client.output import CSV, JSON, dollars, show, show_record
from twisted_vllm.cli.client.sections import Section

_BY = ("key", "user", "team", "end_user", "tag", "model", "route", "server")
_MEASURES = ("spend", "requests", "failed", "total_tokens", "prompt_tokens", "cached_tokens", "completion_tokens")
_SINCE = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
#: what stands for a group in a table: names before ids
_NAMES = {
    "key": ("key_alias", "api_key"),
    "user": ("user_id",),
    "team": ("team_alias", "team_id"),
    "end_user": ("end_user",),
    "tag": ("tag",),
    "model": ("model",),
    "route": ("route",),
    "server": ("server",),
}
_COUNTED = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")


class _Names(click.ParamType[str]):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Check them."""
        for name in str(value).split(","):
            if name not in _BY:
                self.fail(f"{name!r} is none of {', '.join(_BY)}", parameter, context)
        return str(value)


def period_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a period, and of whose usage is meant."""
    for option in reversed(
        (
            click.option("--since", metavar="TIME", help="From this long ago on, as in 12h, 7d or 4w."),
            click.option("--start", metavar="DATE", help="The first day, or moment in UTC, as in 2026-03-01."),
            click.option("--end", metavar="DATE", help="The last day or moment; it is included."),
            click.option("--key-id", "api_key", metavar="ID", help="Only this key: its hash or its key id."),
            click.option("--user", "user_id", metavar="ID", help="Only this user."),
            click.option("--team", "team_id", metavar="ID", help="Only this team."),
            click.option("--end-user", metavar="ID", help="Only this end user."),
            click.option("--model", metavar="NAME", help="Only this model."),
            click.option("--tag", metavar="TAG", help="Only this tag."),
        )
    ):
        command = option(command)
    return command


def _query(since: str | None, start: str | None, **filters: Any) -> dict[str, Any]:
    if since is not None:
        found = _SINCE.fullmatch(since)
        if found is None or start is not None:
            raise click.UsageError("--since takes a number and h, d or w, as in 7d, and goes without --start")
        begin = datetime.now(UTC) - int(found[1]) * _UNITS[found[2]]
        start = f"{begin:%Y-%m-%dT%H:00:00Z}" if found[2] == "h" else f"{begin:%Y-%m-%d}"
    return {"start": start, **filters}


@click.group("usage", cls=Section)
def command() -> None:
    """Report usage and cost: by key, team, model and others, and single requests."""


@command.command("report", cls=ClientCommand)
@click.option("--by", "group_by", type=_Names(), default="model", show_default=True, help=f"Of {', '.join(_BY)}.")
@click.option("--interval", type=click.Choice(["hour", "day", "month"]), help="One row for each.  [default: day]")
@period_options
@client_options
def report(gateway: Gateway, group_by: str, interval: str | None, output: str, **period: Any) -> None:
    """Report what was used, a row for each group and interval. The default period is 30 days."""
    query = {**_query(**period), "group_by": group_by, "interval": interval}
    if output == CSV:
        # as the gateway writes it, with every column
        click.echo(gateway.text("GET", "/usage/report", {**query, "format": "csv"}).decode(), nl=False)
        return
    answer = gateway.get("/usage/report", **query)
    _show_groups(answer, answer["results"], group_by.split(","), output, [("Start", lambda row: row["start"])])


@command.command("top", cls=ClientCommand)
@click.option("--by", "group_by", type=_Names(), default="key", show_default=True, help=f"Of {', '.join(_BY)}.")
@click.option("--measure", type=click.Choice(_MEASURES), help="What the order is by.  [default: spend]")
@click.option("--most", "top", type=click.IntRange(1, 50), help="How many.  [default: 8]")
@period_options
@client_options
def top(gateway: Gateway, group_by: str, measure: str | None, top: int | None, output: str, **period: Any) -> None:
    """Show who or what used most, with the others as one row and the sum of all."""
    answer = gateway.get("/usage/top", **_query(**period), group_by=group_by, measure=measure, top=top)
    rows = list(answer["groups"])
    if answer["others"]:
        rows.append({**answer["others"], _NAMES[group_by.split(",")[0]][0]: "(others)"})
    _show_groups(answer, rows, group_by.split(","), output, [])


def _show_groups(
    answer: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    output: str,
    before: Sequence[tuple[str, Callable[[Mapping[str, Any]], Any]]],
) -> None:
    heads = [head for head, _ in before]
    heads += [each.replace("_", " ").capitalize() for each in by]
    numbers = frozenset(range(len(heads), len(heads) + len(_COUNTED) + 1))
    heads += ["Requests", "Failed", "Prompt", "Cached", "Completion", "Spend"]
    cells = [[*(of(row) for _, of in before), *(_name(row, each) for each in by), *_sums(row)] for row in rows]
    if rows and output != CSV:
        blank = [""] * (len(before) + len(by) - 1)
        cells.append(["all", *blank, *_sums(answer["totals"])])
    show(output, answer, cells, heads, numbers)


def _name(row: Mapping[str, Any], by: str) -> str:
    return next((str(row[name]) for name in _NAMES[by] if row.get(name)), "(none)")


def _sums(row: Mapping[str, Any]) -> list[str]:
    return [*(f"{row[name]:,}" for name in _COUNTED), dollars(row["spend"])]


@command.command("requests", cls=ClientCommand)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, the latest first."
)
@period_options
@client_options
def requests(gateway: Gateway, limit: int, output: str, **period: Any) -> None:
    """List requests, the latest first. The default period is the present day."""
    query = _query(**period)
    query["start_date"], query["end_date"] = query.pop("start"), query.pop("end")
    answer = gateway.get("/spend/logs/v2", **query, page_size=limit)
    rows = [
        (
            row["startTime"],
            row["request_id"],
            (row["metadata"].get("user_api_key_alias") or row["api_key"])[:16],
            row["model"],
            row["metadata"].get("status_code"),
            row["total_tokens"],
            f"{row['request_duration_ms']} ms",
            dollars(row["spend"]),
        )
        for row in answer["data"]
    ]
    heads = ("Start", "Request", "Key", "Model", "Status", "Tokens", "Time", "Spend")
    show(output, answer, rows, heads, right=frozenset((4, 5, 6, 7)))


@command.command("request", cls=ClientCommand)
@click.argument("request_id")
@client_options
def request(gateway: Gateway, request_id: str, output: str) -> None:
    """Show all that is known of one request: its times, tokens, cost, attempts."""
    show_record(output, gateway.get(f"/usage/requests/{request_id}"), ("request_id", "start", "model", "status"))


@command.command("spend", cls=ClientCommand)
@client_options
def spend(gateway: Gateway, output: str) -> None:
    """Show what was spent today and this month, and which budgets are used most."""
    answer = gateway.get("/spend/overview")
    if output == JSON:
        show(JSON, answer, (), ())
        return
    rows = []
    for title, of in (("today", answer["today"]), ("this month", answer["month"])):
        tokens = of["input_tokens"] + of["output_tokens"]
        rows.append((title, f"{of['requests']:,}", f"{of['failed']:,}", f"{tokens:,}", dollars(of["spend"])))
    show(output, answer, rows, ("Period", "Requests", "Failed", "Tokens", "Spend"), right=frozenset((1, 2, 3, 4)))
