"""The gateway's own options, as ``twistd vllm-passthrough`` declares them, for the commands that take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from twisted.python.usage import UsageError

from twisted_vllm.app.tap import Options
from twisted_vllm.app.usage_errors import explain_unknown_option

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
#: what the value of an option is called, and whether it may be given several times
_VALUES = {
    "config": ("FILE", False),
    "listen": ("ENDPOINT", True),
    "workers": ("NUMBER", False),
}


class GatewayCommand(click.Command):
    """A command that takes options of the gateway: says what to write in place of LiteLLM's, and of misspelt ones."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: an option does not exist, or an argument is none.
        """
        written = list(arguments)
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-")
            known = [
                option.lstrip("-") for each in self.get_params(context) for option in each.opts if option[:2] == "--"
            ]
            message = explain_unknown_option(f"option --{name} not recognized", written, known, of_twistd=False)
            raise click.UsageError(message, context) from None
        except click.UsageError as error:
            surplus = [each for each in written if not each.startswith("-")]
            if "unexpected extra argument" not in error.message or not surplus:
                raise
            hint = "a configuration file is given with --config FILE"
            raise click.UsageError(f"{surplus[-1]!r} is not an option; {hint}", context) from None


def told(name: str) -> str:
    """Return what ``twistd vllm-passthrough --help`` says of an option."""
    for flag, _, text in Options.optFlags:
        if flag == name:
            return str(text)
    return str(getattr(Options, f"opt_{name.replace('-', '_')}").__doc__)


def gateway_option(name: str) -> Callable[[_Decorated], _Decorated]:
    """Return a decorator that gives a command one of the gateway's options."""
    if name not in _VALUES:
        return click.option(f"--{name}", is_flag=True, help=told(name))
    value, several = _VALUES[name]
    return click.option(f"--{name}", metavar=value, multiple=several, help=told(name))


def as_arguments(**given: Any) -> list[str]:
    """Return the arguments of ``twistd vllm-passthrough`` for the values of options."""
    arguments = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            arguments += [f"{option}={each}" for each in value]
        elif value is True:
            arguments.append(option)
        elif value not in (None, False):
            arguments.append(f"{option}={value}")
    return arguments


def obey(arguments: Sequence[str]) -> None:
    """Do what options of the gateway ask for that end at once, such as ``--check``.

    Raises:
        SystemExit: always; with the status, or with what is wrong.
    """
    options = Options()
    try:
        options.parseOptions(list(arguments))
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    raise SystemExit(0)
