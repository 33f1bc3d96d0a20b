"""Makes the gateway's log, and has twistd use it.

Facts about Twisted 26.10 (``twisted/application/app.py``, ``twisted/scripts/_twistd_unix.py``), and what follows:

- twistd calls ``makeService(options)``, then ``service.setServiceParent(application)``, and then starts logging. It
  uses the application's ``ILogObserver`` component, and makes its own observer only if there is none. So the root
  service sets our observer in ``setServiceParent`` (`give_to_twistd`). Then we write every line, also twistd's own.
- With the component set, twistd ignores ``--logfile`` and ``--syslog``. `TwistdLog.from_options` reads them from
  ``options.parent``, and we write and rotate the file. ``--logger`` takes precedence over the component: the operator's
  observer then gets the request records as events.
- twistd resolves ``--logfile`` before it changes to ``--rundir``, and so do we. It forks after its first lines and
  before ``privilegedStartService``. Threads do not survive a fork, so lines are queued until `install`.
- ``beginLoggingTo`` turns ``sys.stdout``, ``sys.stderr`` and warnings into log events. ``makeService`` is the last
  place that can print to the terminal.
- twistd logs "Server Shut Down." after ``stopService``. Then it kills itself with the signal that stopped it, and
  ``atexit`` does not run. So the root service's ``stopService`` ends with `finish`, after which each line is written
  at once. ``atexit`` serves a start that failed and a reactor that stopped by itself.
- logrotate sends SIGUSR1, which ends a process without a handler. twistd installs one only for its own log file, so
  `install` installs one for ours.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Self

import attrs
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.components import Componentized

from twisted_vllm.config.settings import LogSettings
from twisted_vllm.observability.logging.lines import ILines, JsonLines, TextLines
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.sinks import ISink, RotatedFile, StreamSink, SyslogSink
from twisted_vllm.observability.logging.writer import LogWriter

#: where a daemon logs by default, as in twistd
DAEMON_LOG_FILE = "twistd.log"

#: the settings that say what file is written, and how
_OF_THE_FILE = ("file", "rotate_bytes", "keep_files")


class LogTargetError(Exception):
    """The log cannot be written where the settings say. The message says why."""


@attrs.frozen
class TwistdLog:
    """The log options of twistd's command line.

    Attributes:
        is_daemon: whether the process leaves its terminal.
        logfile: ``--logfile``; ``-`` is standard output.
        syslog_prefix: ``--prefix`` if ``--syslog`` was given, else ``None``.
        has_logger: whether ``--logger`` names the operator's own observer.
        directory: where the names of files begin; None for the working directory of now.
    """

    is_daemon: bool = False
    logfile: str | None = None
    syslog_prefix: str | None = None
    has_logger: bool = False
    directory: str | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Self:
        """Read twistd's options, which are ``options.parent`` of the plugin's."""
        if options is None:
            return cls()
        return cls(
            is_daemon=not (options.get("nodaemon") or options.get("debug")),
            logfile=options.get("logfile") or None,
            syslog_prefix=(options.get("prefix") or "twisted") if options.get("syslog") else None,
            has_logger=bool(options.get("logger")),
        )


def make_observer(
    settings: LogSettings,
    secrets: Iterable[str],
    stdout: IO[str],
    twistd: TwistdLog | None = None,
    process: str = "",
) -> ILogObserver:
    """Make the observer for the gateway's log. Nothing is written before `install`.

    ``--syslog`` and ``--logfile`` win over the setting ``log.file``.

    Args:
        settings: the log's settings.
        secrets: what must never be logged.
        stdout: the process's standard output, before twistd replaces it.
        twistd: the log options of twistd's command line.
        process: the name of this process, if the gateway has several that share the log.

    Raises:
        OSError: the log file cannot be opened.
        SystemExit: a daemon cannot log to standard output.
    """
    twistd = twistd or TwistdLog()
    if twistd.has_logger:
        return globalLogPublisher
    try:
        return GatewayLog(settings, secrets, stdout, twistd, process)
    except LogTargetError as error:
        raise SystemExit(str(error)) from None


class GatewayLog(LineObserver):
    """The gateway's own log, which can be reconfigured.

    Attributes:
        redact: removes secrets from text.
    """

    def __init__(
        self, settings: LogSettings, secrets: Iterable[str], stdout: IO[str], twistd: TwistdLog, process: str = ""
    ) -> None:
        """Make it; the arguments are those of `make_observer`."""
        self.redact = Redactor(secrets)
        self._settings = settings
        self._stdout = stdout
        self._twistd = twistd
        self._process = process
        # twistd changes it later
        self._directory = twistd.directory or os.getcwd()
        sink = self._make_sink(settings)
        lines = self._make_lines(settings)
        super().__init__(LogWriter(sink, lines.dropped), lines, settings.level)
        self.reconfigure(lines, settings.level, settings.slow_request_warning)

    def prepare(self, settings: LogSettings) -> Callable[[], None]:
        """Open what other settings need, in any thread; return what puts them into effect, which cannot fail.

        Raises:
            OSError: the log file cannot be opened.
            LogTargetError: a daemon cannot log to standard output.
        """
        stays = all(getattr(settings, name) == getattr(self._settings, name) for name in _OF_THE_FILE)
        sink = self.writer.sink if stays else self._make_sink(settings)

        def apply() -> None:
            lines = self._make_lines(settings)
            self._settings = settings
            self.reconfigure(lines, settings.level, settings.slow_request_warning)
            self.writer.reconfigure(sink, lines.dropped)

        return apply

    def _make_sink(self, settings: LogSettings) -> ISink:
        twistd = self._twistd
        if twistd.syslog_prefix is not None:
            return SyslogSink(twistd.syslog_prefix)
        path = self._path(settings)
        if path is not None:
            path = os.path.join(self._directory, path)
            return RotatedFile(
                path,
                rotate_bytes=settings.rotate_bytes,
                keep_files=settings.keep_files,
                is_shared=bool(self._process),
            )
        if twistd.is_daemon:
            raise LogTargetError(
                "A daemon cannot log to standard output: name a file with --logfile, or start with twistd -n."
            )
        return StreamSink(self._stdout, is_shared=bool(self._process))

    def _path(self, settings: LogSettings) -> str | None:
        """Return the name of the log's file; None for standard output."""
        path = self._twistd.logfile or settings.file or (DAEMON_LOG_FILE if self._twistd.is_daemon else "-")
        return None if path == "-" else path

    def _make_lines(self, settings: LogSettings) -> ILines:
        to_stream = self._twistd.syslog_prefix is None and self._path(settings) is None
        is_terminal = to_stream and self._stdout.isatty()
        if settings.format == "text" or (settings.format == "auto" and is_terminal):
            return TextLines(self.redact, terminal=is_terminal, process=self._process)
        return JsonLines(self.redact, process=self._process)


def give_to_twistd(observer: ILogObserver, application: object) -> None:
    """Have twistd log to this observer. The root service's ``setServiceParent`` calls it with its argument.

    Does nothing if the parent is not an application, for example a service in a test.
    """
    if isinstance(observer, LineObserver) and isinstance(application, Componentized):
        atexit.register(observer.writer.stop)
        application.setComponent(ILogObserver, observer)


def install(observer: ILogObserver) -> None:
    """Start writing. ``privilegedStartService`` calls it, after twistd forked.

    Adds the observer to the global publisher, if twistd did not, and has SIGUSR1 reopen the log file, if there is one.
    """
    if not isinstance(observer, LineObserver):
        return
    atexit.unregister(observer.writer.stop)
    atexit.register(observer.writer.stop)
    observer.writer.start()
    globalLogPublisher.addObserver(observer)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda _number, _frame: observer.writer.reopen())


def finish(observer: ILogObserver) -> None:
    """Write what is queued, and each later line at once. The root service's ``stopService`` ends with it."""
    if isinstance(observer, LineObserver):
        observer.finish()
        observer.writer.finish()


def uninstall(observer: ILogObserver) -> None:
    """Undo `install` and write what is queued, for an embedding program or a test.

    Under twistd, which logs after its last service stopped, use `finish`.
    """
    if not isinstance(observer, LineObserver):
        return
    globalLogPublisher.removeObserver(observer)
    atexit.unregister(observer.writer.stop)
    observer.finish()
    observer.writer.stop()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
