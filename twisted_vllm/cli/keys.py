"""``vllm-passthrough keys``: virtual keys, from a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from twisted_vllm.admin.keys.models import GenerateRequest, UpdateRequest
from twisted_vllm.cli.client.gateway import REFUSED, Failed, Gateway, read_key
from twisted_vllm.cli.client.options import (
    ClientCommand,
    body_of,
    cleared,
    client_options,
    field_options,
    fields_of,
)
from twisted_vllm.cli.client.output import JSON, TABLE, dollars, printable, show, show_record
from twisted_vllm.cli.client.sections import Section

_NEW = fields_of(GenerateRequest, left_out=("key", "key_alias"))
_CHANGED = fields_of(UpdateRequest, left_out=("key", "key_alias", "blocked"))
#: keys that a page of a list has
_PAGE = 100
#: keys that a list prints unless somebody asks for more
_MOST = 1_000

_HASH = re.compile(r"[0-9a-f]{64}")
_HEADS = ("Alias", "Key", "Status", "Spent", "Budget", "Team", "User", "Models", "Expires")
#: fields that a record shows first
_FIRST = ("key", "key_alias", "key_name", "status", "spend", "max_budget", "budget_reset_at", "models", "rpm_limit")


class _Keys(Section):
    """The commands of ``keys``."""


@click.group("keys", cls=_Keys)
def command() -> None:
    """List, make, change and delete virtual keys.

    A key is named by its alias, its hash, or itself in a variable or file: NAME is an alias or a hash.
    """


@command.command("list", cls=ClientCommand)
@click.option("--search", metavar="TEXT", help="Text that the alias, the user's id or the end of the key contains.")
@click.option("--status", type=click.Choice(["active", "blocked", "expired", "deleted"]), help="Only these.")
@click.option("--team", metavar="ID", help="Only keys of this team.")
@click.option("--user", metavar="ID", help="Only keys of this user.")
@click.option("--organization", metavar="ID", help="Only keys of this organization.")
@click.option(
    "--sort",
    type=click.Choice(["created_at", "expires", "key_alias", "spend", "updated_at", "user_id", "team_id"]),
    help="The order.  [default: created_at, the latest first]",
)
@click.option("--ascending", is_flag=True, help="The least first.")
@click.option("--limit", type=click.IntRange(1), default=_MOST, show_default=True, help="The most keys to print.")
@client_options
def list_keys(
    gateway: Gateway,
    search: str | None,
    status: str | None,
    team: str | None,
    user: str | None,
    organization: str | None,
    sort: str | None,
    ascending: bool,
    limit: int,
    output: str,
) -> None:
    """List keys."""
    query = {"search": search, "status": status, "team_id": team, "user_id": user, "organization_id": organization}
    order = {"sort_by": sort, "sort_order": "asc" if ascending else None}
    found, total = _fetch(gateway, {**query, **order}, limit)
    rows = [
        (
            key["key_alias"],
            key["key_name"],
            key["status"],
            dollars(key["spend"]),
            dollars(key["max_budget"]),
            key["team_id"],
            key["user_id"],
            key["models"] or "all",
            key["expires"],
        )
        for key in found
    ]
    show(output, found, rows, _HEADS, right=frozenset((3, 4)))
    if len(found) < total:
        click.echo(f"{len(found)} of {total} keys: --limit shows more", err=True)


def _fetch(gateway: Gateway, query: Mapping[str, object], limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return at most `limit` keys, and how many there are."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        size = min(_PAGE, limit - len(found))
        page = gateway.get("/key/list", **query, return_full_object=True, size=size, after=after)
        found += page["keys"]
        after = page["next"]
        if after is None or len(found) >= limit:
            return found, page["total_count"]


@command.command("show", cls=ClientCommand)
@click.argument("name")
@client_options
def show_key(gateway: Gateway, name: str, output: str) -> None:
    """Show all that a key may do and has used."""
    show_record(output, _find(gateway, name), _FIRST)


@command.command("create", cls=ClientCommand)
@click.argument("alias", required=False)
@field_options(_NEW)
@click.option("--value-file", metavar="FILE", help="A file with the key's value, in place of a random one.")
@click.option("--if-missing", is_flag=True, help="Do nothing if there is a key with this alias.")
@click.option("--quiet", "-q", is_flag=True, help="Print the key alone, for scripts.")
@client_options
def create(
    gateway: Gateway,
    alias: str | None,
    value_file: str | None,
    if_missing: bool,
    quiet: bool,
    output: str,
    **given: Any,
) -> None:
    """Make a key, and print it. It is shown this once, and not at all if its value came from a file.

    \b
    vllm-passthrough keys create ada --models 'qwen*' --rpm-limit 60 --max-budget 50 --budget-duration 30d
    """
    body = body_of(_NEW, given)
    if if_missing:
        if alias is None:
            raise click.UsageError("--if-missing needs the alias of the key")
        if _found(gateway, alias) is not None:
            click.echo(f"there is a key {printable(alias)!r} already", err=True)
            return
    if alias is not None:
        body["key_alias"] = alias
    if value_file is None:
        _show_new(gateway.post("/key/generate", body), output, quiet)
        return
    made = gateway.post("/key/generate", {**body, "key": read_key(value_file, "--value-file")})
    # whoever has the file knows the value, and a log is no place for it
    _show_new({**made, "key": made["key_name"]}, output, quiet)


@command.command("update", cls=ClientCommand)
@click.argument("name")
@field_options(_CHANGED)
@click.option("--clear", metavar="FIELD", multiple=True, help="Take a field away, such as rpm-limit. May be repeated.")
@client_options
def update(gateway: Gateway, name: str, clear: tuple[str, ...], output: str, **given: Any) -> None:
    """Change what is named, and nothing else."""
    changes = {**body_of(_CHANGED, given), **cleared(_CHANGED, clear)}
    if not changes:
        raise click.UsageError("nothing to change: name a field, as in --rpm-limit 60, or --clear FIELD")
    show_record(output, gateway.post("/key/update", {**_naming(name), **changes}), _FIRST)


@command.command("regenerate", cls=ClientCommand)
@click.argument("name")
@click.option(
    "--grace-period", metavar="TIME", help="How long the old value works on, as in 1h.  [default: not at all]"
)
@click.option("--quiet", "-q", is_flag=True, help="Print the key alone, for scripts.")
@client_options
def regenerate(gateway: Gateway, name: str, grace_period: str | None, quiet: bool, output: str) -> None:
    """Give a key another value, and print it. It is shown this once."""
    body: dict[str, Any] = _naming(name)
    if grace_period is not None:
        body["grace_period"] = grace_period
    _show_new(gateway.post("/key/regenerate", body), output, quiet)


def _show_new(key: dict[str, Any], output: str, quiet: bool) -> None:
    if quiet:
        click.echo(key["key"])
        return
    show_record(output, key if output == JSON else _what_matters(key), _FIRST)


def _what_matters(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new key without what nobody set: a reader wants the value first."""
    return {name: value for name, value in key.items() if name not in ("token", "key_name")}


@command.command("block", cls=ClientCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@client_options
def block(gateway: Gateway, names: tuple[str, ...], output: str) -> None:
    """Refuse keys from their next request on."""
    _each(gateway, names, "/key/block", "blocked", output)


@command.command("unblock", cls=ClientCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@client_options
def unblock(gateway: Gateway, names: tuple[str, ...], output: str) -> None:
    """Let keys in again."""
    _each(gateway, names, "/key/unblock", "unblocked", output)


def _each(gateway: Gateway, names: Sequence[str], path: str, done: str, output: str) -> None:
    """Do one thing to several keys; those that fail are named, and the others are done."""
    answers, failed = [], 0
    for name in names:
        try:
            answers.append(gateway.post(path, _naming(name)))
        except Failed as error:
            if error.exit_code != REFUSED:
                raise
            failed += 1
            click.echo(f"Error: {printable(name)}: {error.message}", err=True)
        else:
            if output != JSON:
                click.echo(f"{done} {printable(name)}")
    if output == JSON:
        show_json(answers)
    if failed:
        raise SystemExit(REFUSED)


def show_json(answers: Sequence[Any]) -> None:
    """Print the answers of several requests as one array."""
    show(JSON, answers, (), ())


@command.command("delete", cls=ClientCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@client_options
def delete(gateway: Gateway, names: tuple[str, ...], yes: bool, output: str) -> None:
    """Delete keys, all or none. Says first what that breaks, and asks."""
    found = [_find(gateway, name) for name in names]
    if not yes:
        for name, key in zip(names, found, strict=True):
            for line in _impact(gateway, key):
                click.echo(f"{printable(name)}: {line}", err=True)
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask at: write --yes to delete")
        click.confirm(f"Delete {len(found)} key{'s' if len(found) > 1 else ''}?", abort=True, err=True)
    answer = gateway.post("/key/delete", {"keys": [key["token"] for key in found]})
    if output == JSON:
        show(JSON, answer, (), ())
    else:
        for name in names:
            click.echo(f"deleted {printable(name)}")


def _impact(gateway: Gateway, key: Mapping[str, Any]) -> Iterator[str]:
    told = gateway.get("/key/impact", key=key["token"])
    breaks = told["breaks"]
    yield from [breaks] if isinstance(breaks, str) else breaks


@command.command("may-call", cls=ClientCommand)
@click.argument("name")
@click.argument("model")
@click.option("--route", metavar="PATH", help="The route.  [default: /v1/chat/completions]")
@click.option("--end-user", metavar="ID", help="For whom it would ask.")
@click.option("--max-tokens", type=click.IntRange(1), help="How many tokens it would ask for.")
@client_options
def may_call(
    gateway: Gateway,
    name: str,
    model: str,
    route: str | None,
    end_user: str | None,
    max_tokens: int | None,
    output: str,
) -> None:
    """Say whether a key may call a model now, and why not. The exit status is 1 if it may not."""
    key = _find(gateway, name)["token"]
    told = gateway.get("/key/may_call", key=key, model=model, route=route, user=end_user, max_tokens=max_tokens)
    if output == TABLE:
        click.echo(f"{'yes' if told['allowed'] else 'no'}: {printable(name)} and {printable(model)} on {told['route']}")
        for each in told["checks"]:
            click.echo(f"  {'ok' if each['passed'] else 'NO':4}{each['check']:10}{printable(each['why'])}")
            if each["opens"] and not each["passed"]:
                click.echo(f"{'':16}{printable(each['opens'])}")
    else:
        show_record(output, told)
    if told.get("allowed") is False:
        raise SystemExit(REFUSED)


def _naming(name: str) -> dict[str, Any]:
    """Return the part of a body that names a key."""
    return {"key": name} if _is_key(name) else {"key_alias": name}


def _is_key(name: str) -> bool:
    if name.startswith("sk-"):
        raise click.UsageError(
            "a key among the arguments is visible to all users of this machine: name its alias, or its hash (token in "
            "keys list -o json)"
        )
    return _HASH.fullmatch(name) is not None


def _find(gateway: Gateway, name: str) -> dict[str, Any]:
    """Return the key that an alias or a hash names.

    Raises:
        Failed: there is none.
    """
    found = _found(gateway, name)
    if found is None:
        raise Failed(f"there is no key {printable(name)!r}: keys list --search {printable(name)} looks for it", REFUSED)
    return found


def _found(gateway: Gateway, name: str) -> dict[str, Any] | None:
    """Return the key that an alias or a hash names; None if there is none."""
    which = {"key_hash": name} if _is_key(name) else {"key_alias": name}
    found: list[dict[str, Any]] = gateway.get("/key/list", **which, return_full_object=True, size=2)["keys"]
    return next((key for key in found if name in (key["key_alias"], key["token"])), None)
