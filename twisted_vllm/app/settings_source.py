"""Where the settings come from: read at the start, and again at each reload."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import attrs
from twisted.internet.endpoints import serverFromString

from twisted_vllm.app.quickstart import Quickstart
from twisted_vllm.app.telemetry.otlp_receivers import trace_receivers
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.config.checks import process_count
from twisted_vllm.config.listen import below, can_be_shared, is_tls
from twisted_vllm.config.load import load
from twisted_vllm.config.origins import Kind, Origin
from twisted_vllm.config.problems import ConfigError, Place, Problem, Report
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import DEFAULT_DATABASE_URL, Settings
from twisted_vllm.errors import GatewayError
from twisted_vllm.http.client.tls import read_all


@attrs.frozen
class SettingsSource:
    """The command line's part in the settings.

    Attributes:
        file: the configuration file, if there is one.
        listen: the endpoints of the command line.
        workers: the number of workers of the command line, as it was written; None if it says nothing.
        only_checks: whether nothing is started: sockets of systemd are not here then.
        quickstart: the defaults of ``--quickstart``, if it was given.
        directory: the working directory of the command line: twistd changes it later.
    """

    file: str | None = None
    listen: tuple[str, ...] = ()
    quickstart: Quickstart | None = None
    directory: str = attrs.field(factory=os.getcwd)
    workers: str | None = None
    only_checks: bool = False

    def read(self, environ: Mapping[str, str]) -> Settings:
        """Read the settings, at the start or in any thread.

        Args:
            environ: the environment; ``--quickstart`` has its own.

        Raises:
            ConfigError: they cannot be used; it contains all problems.
        """
        file, chosen = self.file, self.quickstart
        moved = os.getcwd() != self.directory
        if file is not None and moved:
            file = os.path.join(self.directory, file)
        settings = load(
            file=file,
            environ=environ if chosen is None else chosen.environ,
            listen=self.listen,
            default_database_url=DEFAULT_DATABASE_URL if chosen is None else chosen.database_url,
            default_api_base=None if chosen is None else chosen.api_base,
        )
        if self.workers is not None:
            settings = attrs.evolve(settings, workers=_workers(self.workers, environ))
        settings = attrs.evolve(settings, origins=settings.origins.with_settings(self._origins(settings)))
        problems = _parsing_problems(settings, self.directory if moved else None, self.only_checks)
        if problems:
            raise ConfigError(problems)
        return settings

    def _origins(self, settings: Settings) -> dict[str, Origin]:
        """Return the places of the settings that the command line decides."""
        found = {}
        if self.listen:
            found["passthrough.listen"] = Origin(Kind.COMMAND_LINE, name="--listen")
        if self.workers is not None:
            found["passthrough.workers"] = Origin(Kind.COMMAND_LINE, name="--workers")
        chosen = self.quickstart
        if chosen is not None:
            by_itself = Origin(Kind.QUICKSTART, name="--quickstart")
            if chosen.master_key is not None and settings.master_key == Secret(chosen.master_key):
                found["general_settings.master_key"] = by_itself
            if settings.database_url.reveal() == chosen.database_url:
                found["general_settings.database_url"] = by_itself
            if chosen.simulator is not None and "passthrough.api_base" not in settings.origins.settings:
                found["passthrough.api_base"] = by_itself
        return found


def _parsing_problems(settings: Settings, directory: str | None, only_checks: bool) -> list[Problem]:
    """Return the problems that only Twisted's and the gateway's own parsers find, and those of the files of TLS.

    Args:
        settings: the settings.
        directory: where the names of certificates begin; None for the working directory.
        only_checks: whether nothing is started.
    """
    problems: list[Problem] = []
    readers: tuple[Callable[[str], object], ...] = (
        lambda at: read_all(settings.servers, at),
        lambda at: trace_receivers(settings.tracing, at),
    )
    for read in readers:
        try:
            read(directory or "")
        except ConfigError as error:
            problems.extend(error.problems)
    for text in settings.listen:
        if settings.workers != 1 and not can_be_shared(text):
            what = "cannot be shared by several workers (use tcp:, ssl:, unix: or systemd:, or passthrough.workers: 1)"
            problems.append(Problem("listen", f"{text!r} {what}"))
        try:
            # parsing does not use the reactor, which twistd installs later
            serverFromString(None, text if directory is None or not is_tls(text) else below(text, directory))
        except LookupError as error:
            if not text.startswith("systemd:"):
                problems.append(Problem("listen", f"{text!r} is not an endpoint that can be used: {error}"))
            elif not only_checks:
                what = "names a socket that systemd did not hand over (start the gateway by its .socket unit)"
                problems.append(Problem("listen", f"{text!r} {what}"))
        except Exception as error:  # each endpoint parser raises errors of its own
            problems.append(Problem("listen", f"{text!r} is not an endpoint that can be used: {error}"))
    try:
        RoutePolicy(settings.tenant_routes)
    except GatewayError as error:
        problems.append(Problem("passthrough.tenant_routes", error.message))
    return problems


def _workers(text: str, environ: Mapping[str, str]) -> int | str:
    """Return the number of workers of the command line.

    Raises:
        ConfigError: it is none.
    """
    place = Place("--workers", Report(), environ)
    found = place.attempt(process_count, int(text) if text.isdecimal() else text)
    if found is None:
        raise ConfigError(place.report.problems)
    return found
