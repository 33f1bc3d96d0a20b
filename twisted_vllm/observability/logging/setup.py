"""Makes the gateway's log and puts it in the place of twistd's.

What was found in Twisted 26.10 (``twisted/application/app.py``, ``twisted/scripts/_twistd_unix.py``), and what follows:

- twistd calls the plugin's ``makeService(options)``, then ``service.setServiceParent(application)``, and only then
  starts logging. It looks for an ``ILogObserver`` component of the application first and makes its own observer only
  where there is none. So the root service hands our observer over in ``setServiceParent`` (``give_to_twistd``), and
  every line, twistd's "starting up" too, is ours: nothing is written twice, and standard output holds nothing else.
- With the component set, twistd no longer looks at ``--logfile`` and ``--syslog``. They stay what the operator expects:
  a plugin finds them in ``options.parent`` (``TwistdLog.from_options``). The file is then written and rotated by us.
  ``--logger`` comes before the component; then the operator's own observer sees the request records as events.
- twistd resolves ``--logfile`` before it changes to ``--rundir``, and so do we. It forks after its first lines and
  before ``privilegedStartService``, and a thread does not survive a fork: lines are queued until ``install``.
- ``beginLoggingTo`` turns ``sys.stdout``, ``sys.stderr`` and warnings into log events. What must reach the terminal as
  it is has to be printed in ``makeService``.
- "Server Shut Down." is logged after ``stopService``, and then twistd kills itself with the signal that stopped it, so
  that ``atexit`` does not run. So the root service ends its ``stopService`` with ``finish``, after which every line is
  written before the next one. ``atexit`` is for a start that failed and a reactor that stopped by itself.
- The standard handling of SIGUSR1, which logrotate sends to a daemon, is to die: twistd installs a handler with its own
  log file only, so ``install`` does it for ours.
"""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterable, Mapping
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

#: where a daemon logs that was told nothing; twistd's own default
DAEMON_LOG_FILE = "twistd.log"


@attrs.frozen
class TwistdLog:
    """What twistd's command line says about the log.

    Attributes:
        is_daemon: whether the process leaves its terminal.
        logfile: ``--logfile``; ``-`` is standard output.
        syslog_prefix: ``--prefix`` where ``--syslog`` was given, else ``None``.
        has_logger: whether ``--logger`` names an observer of the operator's own.
    """

    is_daemon: bool = False
    logfile: str | None = None
    syslog_prefix: str | None = None
    has_logger: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Self:
        """Read ``options.parent``, twistd's own options, of the plugin's options."""
        if options is None:
            return cls()
        return cls(
            is_daemon=not (options.get("nodaemon") or options.get("debug")),
            logfile=options.get("logfile") or None,
            syslog_prefix=(options.get("prefix") or "twisted") if options.get("syslog") else None,
            has_logger=bool(options.get("logger")),
        )


def make_observer(
    settings: LogSettings, secrets: Iterable[str], stdout: IO[str], twistd: TwistdLog | None = None
) -> ILogObserver:
    """Make the observer for the gateway's log; nothing is written before ``install``.

    The command line wins over the settings: ``--syslog`` and ``--logfile`` over ``log.file``.

    Args:
        settings: the log's settings.
        secrets: what must never be written.
        stdout: the process's standard output, before twistd replaces it.
        twistd: what twistd's command line says.

    Raises:
        OSError: the log file cannot be opened.
        SystemExit: a daemon was told to log to standard output.
    """
    twistd = twistd or TwistdLog()
    if twistd.has_logger:
        return globalLogPublisher
    sink, is_terminal = _make_sink(settings, stdout, twistd)
    redact = Redactor(secrets)
    lines: ILines
    if settings.format == "text" or (settings.format == "auto" and is_terminal):
        lines = TextLines(redact, terminal=is_terminal)
    else:
        lines = JsonLines(redact)
    return LineObserver(LogWriter(sink, lines.loss), lines, settings.level)


def _make_sink(settings: LogSettings, stdout: IO[str], twistd: TwistdLog) -> tuple[ISink, bool]:
    """Return where the log goes, and whether that is a terminal."""
    if twistd.syslog_prefix is not None:
        return SyslogSink(twistd.syslog_prefix), False
    path = twistd.logfile or settings.file or (DAEMON_LOG_FILE if twistd.is_daemon else "-")
    if path != "-":
        return RotatedFile(path, rotate_bytes=settings.rotate_bytes, keep_files=settings.keep_files), False
    if twistd.is_daemon:
        raise SystemExit("A daemon cannot log to standard output: name a file with --logfile, or start with twistd -n.")
    return StreamSink(stdout), stdout.isatty()


def give_to_twistd(observer: ILogObserver, application: object) -> None:
    """Let twistd log to this observer; for the root service's ``setServiceParent``, with its argument.

    Does nothing for a parent that is not an application, such as another service in a test.
    """
    if isinstance(observer, LineObserver) and isinstance(application, Componentized):
        atexit.register(observer.writer.stop)
        application.setComponent(ILogObserver, observer)


def install(observer: ILogObserver) -> None:
    """Start writing; for ``privilegedStartService``, which runs after twistd forked.

    Adds the observer to the global publisher where twistd did not, and lets SIGUSR1 reopen a log file.
    """
    if not isinstance(observer, LineObserver):
        return
    atexit.unregister(observer.writer.stop)
    atexit.register(observer.writer.stop)
    observer.writer.start()
    globalLogPublisher.addObserver(observer)
    sink = observer.writer.sink
    if (
        isinstance(sink, RotatedFile)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: sink.reopen())


def finish(observer: ILogObserver) -> None:
    """Write what is queued, and every later line at once; for the very end of the root service's ``stopService``."""
    if isinstance(observer, LineObserver):
        observer.writer.finish()


def uninstall(observer: ILogObserver) -> None:
    """Undo ``install`` and write what is queued, for an embedding program or a test.

    Not for a service under twistd, which logs after its last service stopped: see ``finish``.
    """
    if not isinstance(observer, LineObserver):
        return
    globalLogPublisher.removeObserver(observer)
    atexit.unregister(observer.writer.stop)
    observer.writer.stop()
    if isinstance(observer.writer.sink, RotatedFile) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
