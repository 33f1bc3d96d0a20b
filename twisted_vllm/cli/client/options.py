"""Options that all commands of the client have, and those that are fields of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import click
import msgspec.inspect

from twisted_vllm.admin.models import Body
from twisted_vllm.admin.web.forms import CHOICE, FLAG, Field, Form, FormError, Group
from twisted_vllm.cli.client.gateway import DEFAULT_URL, Gateway, find_key
from twisted_vllm.cli.client.output import CSV, JSON, TABLE
from twisted_vllm.config.problems import nearest

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class ClientCommand(click.Command):
    """A command of the client: refuses a key among the arguments, and names the option that was meant."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: an option does not exist, or the key stands where everybody sees it.
        """
        if any(each == "--key" or each.startswith("--key=") for each in arguments):
            raise click.UsageError(
                "a key among the arguments is visible to all users of this machine: set VLLM_PASSTHROUGH_KEY, or write "
                "--key-file FILE",
                context,
            )
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            known = [option for each in self.get_params(context) for option in each.opts if option[:2] == "--"]
            close = nearest(error.option_name, known)
            hint = f"; did you mean {close}?" if close else f"; {context.command_path} --help lists them"
            raise click.UsageError(f"{error.option_name} is not an option{hint}", context) from None


def client_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which gateway is asked, and how its answer is printed.

    The command gets the gateway as its first argument, and `output`.
    """

    @click.option("--url", envvar="VLLM_PASSTHROUGH_URL", default=DEFAULT_URL, show_default=True, help="The gateway.")
    @click.option("--key-file", metavar="FILE", help="A file that holds the key; - is standard input.")
    @click.option("--ca-file", metavar="FILE", help="Certificates to trust, in place of the system's.")
    @click.option("--timeout", type=click.FloatRange(0.1, 3600), default=30.0, help="Seconds to wait.  [default: 30]")
    @click.option(
        "--output", "-o", type=click.Choice([TABLE, JSON, CSV]), default=TABLE, help="How to print.  [default: table]"
    )
    @wraps(command)
    def with_gateway(url: str, key_file: str | None, ca_file: str | None, timeout: float, **others: Any) -> Any:
        return command(Gateway(url.rstrip("/"), find_key(key_file), ca_file, timeout), **others)

    return with_gateway


def fields_of(body: type[Body], left_out: Iterable[str] = ()) -> Mapping[str, Field]:
    """Return the fields of a body of the API, by their names."""
    declared = msgspec.inspect.type_info(body).fields  # type: ignore[attr-defined]  # of a struct
    names = tuple(field.encode_name for field in declared if field.encode_name not in frozenset(left_out))
    return Form(body=body, groups=(Group("all", names),)).fields


def field_options(fields: Mapping[str, Field]) -> Callable[[_Decorated], _Decorated]:
    """Return a decorator that gives a command an option for each field."""

    def decorate(command: _Decorated) -> _Decorated:
        for field in reversed(list(fields.values())):
            command = _option(field)(command)
        return command

    return decorate


def _option(field: Field) -> Callable[[_Decorated], _Decorated]:
    name = field.name.replace("_", "-")
    if field.kind == FLAG:
        return click.option(f"--{name}/--no-{name}", field.name, default=None, help=field.help)
    if field.kind == CHOICE:
        return click.option(f"--{name}", field.name, type=click.Choice(field.choices), help=field.help)
    if field.is_long:
        written = field.format.replace("One on each line: ", "As ").replace("One on each line.", "")
        text = f"{field.help} {written} May be repeated.".replace("  ", " ")
        return click.option(f"--{name}", field.name, multiple=True, metavar="TEXT", help=text)
    return click.option(f"--{name}", field.name, metavar="VALUE", help=field.help)


def body_of(fields: Mapping[str, Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that the options ask for.

    Raises:
        UsageError: the text of an option cannot be read.
    """
    body = {}
    for name, field in fields.items():
        value = given.get(name)
        if value is None or value == ():
            continue
        if field.kind == FLAG:
            body[name] = value
            continue
        try:
            body[name] = field.value_of(_text(value))
        except FormError as error:
            raise click.UsageError(f"--{name.replace('_', '-')}: {error}") from None
    return body


def cleared(fields: Mapping[str, Field], names: Sequence[str]) -> dict[str, None]:
    """Return the part of a body that clears fields.

    Raises:
        UsageError: there is no such field.
    """
    for name in names:
        if name.replace("-", "_") not in fields:
            close = nearest(name.replace("-", "_"), fields)
            raise click.UsageError(
                f"--clear {name}: there is no such field" + (f"; did you mean {close}?" if close else "")
            )
    return {name.replace("-", "_"): None for name in names}


def _text(value: Any) -> str:
    return "\n".join(value) if isinstance(value, tuple) else str(value)
