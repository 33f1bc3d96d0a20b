"""``vllm-passthrough run``: becomes ``twistd -n vllm-passthrough``."""

from __future__ import annotations

import grp
import os
import pwd
import re
import sys
from typing import Any, NoReturn

import click

from twisted_vllm.cli.entry import BEGUN_WITH
from twisted_vllm.cli.gateway_options import GatewayCommand, as_arguments, gateway_option

#: the module that the process becomes, so that nothing of this command stays in its memory
GATEWAY = "twisted_vllm.cli.gateway"
#: Twisted's, of those that serve on Linux
_REACTORS = ("epoll", "poll", "select", "asyncio")


def _user(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Refuse a user that this machine does not have: twistd would show a traceback."""
    if name is not None and not name.isdecimal():
        try:
            pwd.getpwnam(name)
        except KeyError:
            raise click.BadParameter(f"there is no user {name!r} on this machine") from None
    return name


def _group(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name is not None and not name.isdecimal():
        try:
            grp.getgrnam(name)
        except KeyError:
            raise click.BadParameter(f"there is no group {name!r} on this machine") from None
    return name


def _octal(context: click.Context, parameter: click.Parameter, mask: str | None) -> str | None:
    if mask is not None and not re.fullmatch("[0-7]{1,4}", mask):
        raise click.BadParameter(f"{mask!r} is not an octal number, such as 027")
    return mask


def _writable(context: click.Context, parameter: click.Parameter, file: str | None) -> str | None:
    if file:
        directory = os.path.dirname(os.path.abspath(file))
        if not os.path.isdir(directory):
            raise click.BadParameter(f"the directory {directory} does not exist")
        if not os.access(directory, os.W_OK):
            raise click.BadParameter(f"the directory {directory} cannot be written")
    return file


@click.command(
    "run",
    cls=GatewayCommand,
    epilog="twistd -n vllm-passthrough does the same, with twistd's other options before the name.",
)
@gateway_option("config")
@gateway_option("listen")
@gateway_option("workers")
@gateway_option("quickstart")
@click.option("--daemon", is_flag=True, help="Go into the background.")
@click.option(
    "--pidfile", metavar="FILE", callback=_writable, help="Keep the process id in this file.  [default: none]"
)
@click.option("--logfile", metavar="FILE", help="Write the log here, in place of standard output.")
@click.option("--syslog", is_flag=True, help="Write the log to syslog.")
@click.option(
    "--rundir",
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False),
    help="Change to this directory; the names of the database and the spool begin there.",
)
@click.option("--uid", metavar="USER", callback=_user, help="Become this user once the sockets are open.")
@click.option("--gid", metavar="GROUP", callback=_group, help="Become this group.  [default: the group of --uid]")
@click.option("--umask", metavar="OCTAL", callback=_octal, help="Which rights new files lack.")
@click.option("--reactor", type=click.Choice(_REACTORS), help="How Twisted waits for sockets.  [default: epoll]")
def command(
    config: str | None,
    listen: tuple[str, ...],
    workers: str | None,
    quickstart: bool,
    daemon: bool,
    pidfile: str | None,
    syslog: bool,
    **of_twistd: Any,
) -> NoReturn:
    """Start the gateway. It stays in the foreground, and a SIGTERM drains it.

    Settings come from --config and from the environment; without either, HOSTED_VLLM_API_BASE names the vLLM server.
    """
    twistd = as_arguments(nodaemon=not daemon, syslog=syslog, **of_twistd)
    twistd.append(f"--pidfile={pidfile or ''}")
    gateway = as_arguments(config=config, listen=listen, workers=workers, quickstart=quickstart)
    sys.stdout.flush()
    command_line = [sys.executable, "-m", GATEWAY, *twistd, "vllm-passthrough", *gateway]
    os.execve(sys.executable, command_line, BEGUN_WITH)
