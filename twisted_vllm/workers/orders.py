"""What a process of a gateway with several is to be: the supervisor's order, the only argument of its command line."""

from __future__ import annotations

import msgspec

from twisted_vllm.workers.messages import VERSION


class Sockets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The listening sockets of one endpoint, as `twisted_vllm.http.net.inherited.OpenSockets`.

    Attributes:
        text: the endpoint's string.
        family: the family of the addresses.
        descriptors: a socket for each slot in their order, or one for all.
    """

    text: str
    family: int
    descriptors: tuple[int, ...]

    def of_slot(self, slot: int) -> int:
        """Return the socket of a slot."""
        return self.descriptors[slot - 1 if len(self.descriptors) > 1 else 0]


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``--quickstart`` chose; the master key is in the environment.

    Attributes:
        database_url: the database.
        simulator: the listening socket of the simulated vLLM; None if servers are configured.
    """

    database_url: str
    simulator: int | None


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What twistd's command line says of the log, as `twisted_vllm.observability.logging.setup.TwistdLog`."""

    is_daemon: bool
    logfile: str | None
    syslog_prefix: str | None


class Opening(msgspec.Struct, frozen=True):
    """The part of an order that every version of the gateway understands.

    Attributes:
        control: the socket to the supervisor.
        version: of the messages that the supervisor speaks.
    """

    control: int
    version: int


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process is to be. It has no secret: those who may list processes read it.

    Attributes:
        number: its number, which no other process had.
        slot: its slot: `HOUSEKEEPER`, or 1 and up for a worker.
        workers: how many workers there are.
        control: the socket to the supervisor.
        sockets: where clients come from.
        file: the configuration file.
        listen: the endpoints of the command line.
        asked_workers: the number of workers of the command line, as it was written.
        directory: the working directory of the command line.
        reactor: the name of Twisted's reactor.
        log: what twistd says of the log.
        quickstart: what ``--quickstart`` chose, if it was given.
        settings: the supervisor's settings, in a file that is inherited; None to read the file.
        version: of the messages that the supervisor speaks.
    """

    number: int
    slot: int
    workers: int
    control: int
    sockets: tuple[Sockets, ...]
    file: str | None
    listen: tuple[str, ...]
    asked_workers: str | None
    directory: str
    reactor: str
    log: Log
    quickstart: Defaults | None = None
    settings: int | None = None
    version: int = VERSION
