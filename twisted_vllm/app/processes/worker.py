"""One process of a gateway with several: ``python -m twisted_vllm.app.processes.worker ORDER``.

The supervisor starts it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.application import reactors
from twisted.logger import globalLogBeginner

from twisted_vllm.workers.link import tell_failure
from twisted_vllm.workers.messages import VERSION
from twisted_vllm.workers.orders import Opening, Order


def main(arguments: Sequence[str]) -> int:
    """Be what the order says until told to end; return the exit status."""
    opening = msgspec.json.decode(arguments[0], type=Opening)
    # the link closes its own
    control = os.dup(opening.control)
    if opening.version != VERSION:
        return _fail(control, "the supervisor is of another version: restart the whole gateway")
    order = msgspec.json.decode(arguments[0], type=Order)
    # the supervisor answers to the terminal, and tells what it wants
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    names = os.environ.get("LISTEN_FDNAMES")
    if names:
        # systemd's sockets were inherited by the supervisor, where Twisted removed the rest; here their endpoints are
        # only parsed
        os.environ.update(LISTEN_FDS=str(names.count(":") + 1), LISTEN_PID=str(os.getpid()))
    reactors.installReactor(order.reactor)
    from twisted.internet import reactor

    return _run(reactor, order, control)


def _run(reactor: Any, order: Order, control: int) -> int:
    # imported here: the reactor is installed now
    from twisted_vllm.app.drain import StopSignals
    from twisted_vllm.app.processes.handed_over import take_over
    from twisted_vllm.app.processes.member import Member
    from twisted_vllm.app.quickstart import Quickstart
    from twisted_vllm.app.service import GatewayService
    from twisted_vllm.app.settings_source import SettingsSource
    from twisted_vllm.app.start_error import StartError
    from twisted_vllm.config.problems import ConfigError
    from twisted_vllm.observability.logging.setup import TwistdLog, make_observer
    from twisted_vllm.workers.processes import name_of
    from twisted_vllm.workers.siblings import HOUSEKEEPER

    chosen = None
    if order.quickstart is not None:
        defaults = order.quickstart
        simulator = None if defaults.simulator is None else socket.socket(fileno=defaults.simulator)
        chosen = Quickstart(dict(os.environ), None, defaults.database_url, simulator)
    source = SettingsSource(order.file, order.listen, chosen, order.directory, order.asked_workers)
    try:
        settings = take_over(order.settings) or source.read(dict(os.environ))
        log = order.log
        twistd = TwistdLog(log.is_daemon, log.logfile, log.syslog_prefix, directory=order.directory)
        observer = make_observer(settings.log, settings.secrets, sys.stdout, twistd, name_of(order.slot))
        service = GatewayService(
            reactor,
            settings,
            observer,
            [] if chosen is None or order.slot != HOUSEKEEPER else _simulator(reactor, chosen),
            None if order.slot == HOUSEKEEPER else StopSignals(reactor),
            read_again=lambda: source.read(dict(os.environ)),
            directory=order.directory,
            member=Member(order),
        )
        globalLogBeginner.beginLoggingTo([observer], discardBuffer=True)
        service.privilegedStartService()
        service.startService()
    except ConfigError as error:
        return _fail(control, f"the configuration cannot be used: {'; '.join(map(str, error.problems))}")
    except (StartError, SystemExit) as error:
        return _fail(control, str(error))
    except OSError as error:
        return _fail(control, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception:
        return _fail(control, traceback.format_exc())
    os.close(control)
    if order.slot == HOUSEKEEPER:
        # it ends when the workers have ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return 0


def _fail(control: int, reason: str) -> int:
    """Tell the supervisor why this process cannot start; return the exit status."""
    tell_failure(control, reason)
    return 1


def _simulator(reactor: Any, chosen: Any) -> list[Any]:
    """Return the simulated vLLM of ``--quickstart``, which the housekeeper runs."""
    if chosen.simulator is None:
        return []
    from twisted.internet.endpoints import AdoptedStreamServerEndpoint

    from twisted_vllm.simulator.service import SimulatorService
    from twisted_vllm.simulator.settings import SimulatorSettings

    endpoint = AdoptedStreamServerEndpoint(reactor, chosen.simulator.fileno(), chosen.simulator.family)
    return [SimulatorService(reactor, SimulatorSettings(), [endpoint])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
