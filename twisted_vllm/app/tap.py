"""``twistd vllm-passthrough``: its options and its service."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from secrets import token_bytes
from typing import Any

from twisted.application.service import IService
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.python import usage

from twisted_vllm.app.cores import usable_cores
from twisted_vllm.app.drain import StopSignals
from twisted_vllm.app.openable import unopenable
from twisted_vllm.app.quickstart import Quickstart, prepare, welcome
from twisted_vllm.app.reload import HangUp, has_terminal
from twisted_vllm.app.service_manager import ServiceManager
from twisted_vllm.app.settings_source import SettingsSource
from twisted_vllm.app.start_error import explain_start_errors
from twisted_vllm.app.usage_errors import explain_unknown_option
from twisted_vllm.auth.authenticator import generate_key
from twisted_vllm.config.checks import AUTO
from twisted_vllm.config.describe import describe, describe_environment, describe_refused, summarize
from twisted_vllm.config.listen import has_socket_each
from twisted_vllm.config.problems import ConfigError, Place, Rejected, Report, located
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.net.open_files import open_file_limit
from twisted_vllm.observability.logging.setup import TwistdLog, make_observer

#: twistd's options that are for one process, and why
_ONE_PROCESS = {
    "debug": "runs a debugger in one process",
    "profile": "looks at one process",
    "spew": "looks at one process",
    "logger": "names an observer that cannot be handed to other processes",
    "chroot": "leaves no Python to start the other processes with",
}

_MORE_HELP = f"""
Environment (a value in the file wins, the command line wins over both):
{describe_environment()}

Try it:
  HOSTED_VLLM_API_BASE=http://127.0.0.1:8000 twistd -n vllm-passthrough
  curl http://127.0.0.1:4000/vllm/v1/models
  open http://127.0.0.1:4000/ui in a browser

Daemon, --pidfile, --logfile, --reactor and --uid are twistd's own: see twistd --help.
"""


class Options(usage.Options):
    """The command line of ``twistd vllm-passthrough``.

    Attributes:
        source: reads the settings.
        settings: the settings; set once the command line was parsed.
        quickstart: the defaults of ``--quickstart``, if it was given.
    """

    synopsis = "[options]"

    longdesc = (
        "A gateway for shared vLLM servers: vLLM's inference routes, and everything below /vllm, go to vLLM in its own "
        "format, byte for byte; virtual keys, permissions, limits, a ledger of what was used and a log are added."
    )

    optFlags = [
        ("check", None, "Check the configuration, print what it would do, and start nothing; or check an import."),
        (
            "probe",
            None,
            "With --check: connect to servers, database, Redis, sinks and receivers of traces, and say what was found.",
        ),
        ("quickstart", None, "Decide what is left open: make and keep a master key, use a simulated vLLM."),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.config_file: str | None = None
        self.listen: list[str] = []
        self.workers: str | None = None
        self.source = SettingsSource()
        self.settings: Settings | None = None
        self.quickstart: Quickstart | None = None
        self.litellm_url: str | None = None
        self.migrate: str | None = None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line.

        Raises:
            UsageError: an option does not exist; the message says what to write.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            known = [each.rstrip("=") for each in self.longOpt]
            raise usage.UsageError(explain_unknown_option(str(error), options or sys.argv[1:], known)) from None

    def getUsage(self, width: int | None = None) -> str:
        """Return the text of ``--help``. The text after the options is not wrapped, so that it can be copied."""
        return str(super().getUsage(width)) + _MORE_HELP

    def opt_config(self, file: str) -> None:
        """The configuration file, YAML in LiteLLM's names; docs/configuration.md explains every setting."""
        self.config_file = file

    def opt_listen(self, endpoint: str) -> None:
        """Listen on this Twisted endpoint; may be repeated. [default: tcp:4000:interface=127.0.0.1]"""
        self.listen.append(endpoint)

    def opt_workers(self, number: str) -> None:
        """Serve with this many processes, which count as one; auto is one for each usable core. [default: 1]"""
        self.workers = number

    def opt_version(self) -> None:
        """Print the version of the gateway, and end."""
        print(f"vllm-passthrough {version('twisted-vllm')}")
        raise SystemExit(0)

    def opt_import_litellm(self, url: str) -> None:
        """Copy keys, teams and spend from LiteLLM's database (URL or os.environ/NAME), and end."""
        self.litellm_url = url

    def opt_migrate(self, kind: str) -> None:
        """Bring the database to this version's schema, and end: expand (as a start does), or contract too."""
        if kind not in ("expand", "contract"):
            raise usage.UsageError("--migrate takes expand, or contract once no older gateway runs")
        self.migrate = kind

    def parseArgs(self, *surplus: str) -> None:
        """Refuse what is not an option.

        Raises:
            UsageError: there are arguments, or options that contradict each other.
        """
        if surplus:
            raise usage.UsageError(f"{surplus[0]!r} is not an option; a configuration file is given with --config")
        if self["quickstart"] and self["check"]:
            raise usage.UsageError("--check starts nothing, and --quickstart decides at the start: use one of them")
        if self.litellm_url is not None and (self["quickstart"] or self["probe"]):
            raise usage.UsageError("--import-litellm goes with --config and --check alone")
        if self.migrate is not None and (self["quickstart"] or self["check"] or self.litellm_url is not None):
            raise usage.UsageError("--migrate goes with --config alone")
        if self["probe"] and not self["check"]:
            raise usage.UsageError("--probe goes with --check: a gateway that starts looks at its servers by itself")

    def postOptions(self) -> None:
        """Load the configuration, and report its errors before anything starts.

        Raises:
            SystemExit: the configuration cannot be used, or was only to be checked.
        """
        environ = dict(os.environ)
        try:
            if self["quickstart"]:
                self.quickstart = prepare(
                    environ, has_file=self.config_file is not None, make_key=lambda: generate_key(token_bytes)
                )
            self.source = SettingsSource(
                self.config_file,
                tuple(self.listen),
                self.quickstart,
                workers=self.workers,
                only_checks=bool(self["check"]) or self.migrate is not None,
            )
            self.settings = self.source.read(environ)
        except ConfigError as error:
            told = "\n".join(describe_refused(error)) if self["check"] else str(error)
            raise SystemExit(f"The configuration cannot be used:\n{_indented(told)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"--quickstart cannot keep its files: {error}") from None
        workers = workers_of(self.settings.workers)
        if workers > 1:
            refuse_options(self.parent or {})
        if self.litellm_url is not None:
            raise SystemExit(self._import_litellm(self.litellm_url, self.settings))
        if self.migrate is not None:
            raise SystemExit(self._migrate(self.migrate, self.settings))
        if self["check"]:
            # where a gateway that starts with the same options has its files
            directory = "." if self.parent is None else self.parent["rundir"]
            if problems := unopenable(self.settings, directory):
                told = "\n".join(describe_refused(ConfigError(problems, self.settings.warnings)))
                raise SystemExit(f"The configuration cannot be used:\n{_indented(told)}")
            print(
                "\n".join((*describe(self.settings), *processes(self.settings, workers), "", summarize(self.settings)))
            )
            raise SystemExit(0 if not self["probe"] or self._probe(self.settings) else 1)

    def _migrate(self, kind: str, settings: Settings) -> int:
        # Imported here: a gateway that starts does not need it.
        from twisted_vllm.app.migrate_command import run

        if self.parent is not None:
            os.chdir(self.parent["rundir"])
        return run(settings.database_url, kind)

    def _import_litellm(self, url: str, settings: Settings) -> int:
        # Imported here: a gateway that starts does not need it.
        from twisted_vllm.litellm_import.command import run

        place = Place("--import-litellm", Report(), os.environ)
        try:
            named = str(place.resolve(url))
        except Rejected as error:
            raise SystemExit(located(place.path, error.message or "")) from None
        if self.parent is not None:
            # where a gateway that starts with the same options has its SQLite file
            os.chdir(self.parent["rundir"])
        return run(settings, Secret(named), only_check=bool(self["check"]))

    def _probe(self, settings: Settings) -> bool:
        # imported here: twistd has now installed the reactor that --reactor names
        from twisted.internet import reactor

        from twisted_vllm.app.probe import probe

        return probe(reactor, settings)


def workers_of(setting: int | str) -> int:
    """Return how many workers a setting asks for; ``auto`` is one for each core that the process may use."""
    return usable_cores() if setting == AUTO else int(setting)


def refuse_options(twistd: Mapping[str, Any]) -> None:
    """Refuse twistd's options that have no meaning for several processes.

    Args:
        twistd: twistd's own options.

    Raises:
        SystemExit: one of them was given.
    """
    for name, why in _ONE_PROCESS.items():
        if twistd.get(name):
            raise SystemExit(f"--{name} {why}: use --workers 1 with it.")


def owner_of(twistd: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the user and the group that twistd changes to; None if it stays what it is."""
    user, group = twistd.get("uid"), twistd.get("gid")
    if user is None and group is None:
        return None
    if user is None:
        user = os.getuid()
    return user, pwd.getpwuid(user).pw_gid if group is None else group


def processes(settings: Settings, workers: int) -> Iterator[str]:
    """Return what ``--check`` says of the processes, one line per item."""
    if workers == 1:
        return

    def line(label: str, text: str) -> str:
        return f"{label + ':':16}{text}"

    yield line("processes", f"a supervisor, a housekeeper and {workers} workers")
    for text in settings.listen:
        yield line("sockets", f"{text}: one {'for each worker' if has_socket_each(text) else 'for all workers'}")
    files = open_file_limit()
    yield line("open files", f"{'no limit' if files is None else files} for each process, a connection takes two")
    yield line("memory", "each worker and the housekeeper takes what a gateway takes, with all keys")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())


def makeService(options: Options) -> IService:
    """Make the service that twistd runs."""
    # imported here: twistd has now installed the reactor that --reactor names
    from twisted.internet import reactor

    twistd = TwistdLog.from_options(options.parent)
    # before anything that takes time
    hang_up = HangUp(reactor, has_terminal=(lambda: False) if twistd.is_daemon else has_terminal)
    settings = options.settings
    if settings is None:
        raise ValueError("parse the options first")
    explain_start_errors()
    workers = workers_of(settings.workers)
    try:
        process = "supervisor" if workers > 1 else ""
        observer = make_observer(settings.log, settings.secrets, sys.stdout, twistd, process)
    except OSError as error:
        raise SystemExit(
            f"The log file cannot be opened: {error.strerror}: {error.filename} (the gateway's user must be able to "
            "write there)"
        ) from None
    manager = ServiceManager(os.environ.get("NOTIFY_SOCKET"))
    chosen = options.quickstart
    if workers > 1:
        # imported here: only a gateway with several processes needs it
        from twisted_vllm.app.processes.supervisor import SupervisorService

        if chosen is not None:
            sys.stdout.write(welcome(chosen, settings.listen[0]))
            sys.stdout.flush()
        return SupervisorService(
            reactor,
            settings,
            workers,
            options.source,
            observer,
            twistd,
            "default" if options.parent is None else options.parent.get("reactor") or "default",
            StopSignals(reactor),
            hang_up,
            manager,
            owner_of(options.parent or {}),
        )
    # imported here: a supervisor does not pay for what serves
    from twisted_vllm.app.service import GatewayService

    companions = []
    if chosen is not None:
        sys.stdout.write(welcome(chosen, settings.listen[0]))
        sys.stdout.flush()
        if chosen.simulator is not None:
            # Imported here: only a gateway without servers needs the simulator, and it takes 2 MB.
            from twisted_vllm.simulator.service import SimulatorService
            from twisted_vllm.simulator.settings import SimulatorSettings

            endpoint = AdoptedStreamServerEndpoint(reactor, chosen.simulator.fileno(), chosen.simulator.family)
            companions.append(SimulatorService(reactor, SimulatorSettings(), [endpoint]))
    try:
        return GatewayService(
            reactor,
            settings,
            observer,
            companions,
            StopSignals(reactor),
            hang_up,
            read_again=lambda: options.source.read(dict(os.environ)),
            directory=options.source.directory,
            manager=manager,
        )
    except ConfigError as error:
        # what only the start finds out: a file that cannot be opened, Python that cannot be imported
        raise SystemExit("\n".join(describe_refused(error))) from None
