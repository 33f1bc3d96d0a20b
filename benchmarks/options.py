"""The command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from benchmarks.client import Target

MAX_OPEN_STREAMS = 5_000
MAX_TRANSFER_MIB = 1_024

_DESCRIPTION = """
Compares the gateway with what you have already: the vLLM server itself, nginx and vLLM's router, all on this machine.
CPU per request and per chunk are the figures to compare: they are those of the proxy's own processes.
"""

_EPILOG = """
Without a server of yours, a small stand-in answers at once, so that what is measured is the proxies.
With one, requests per second and latency are mostly its own, and the memory of open streams and large bodies is not
measured. Nothing but that server and this machine is asked.

variables: VLLM_BASE_URL (--url), VLLM_API_KEY (--key), VLLM_ROUTER (--router)

  make bench
  make bench ARGS="--seconds 10 --open-streams 5000 --transfer-mib 1024 --router ~/router/bin"
  VLLM_BASE_URL=http://127.0.0.1:8000 make bench
"""


@attrs.frozen
class Options:
    """What to measure.

    Attributes:
        server: the user's server; None uses the stand-in.
        model: its model; None asks the server.
        seconds: how long each load takes.
        connections: connections of the load of requests.
        streams: streams at once.
        events: events of each stream.
        interval: seconds between two events of the stand-in's streams.
        open_streams: streams that are held open; 0 leaves it out.
        transfer_mib: MiB of the upload and of the download; 0 leaves them out.
        nginx: where nginx is; None looks on PATH.
        router: where vllm-router is; None looks on PATH.
    """

    server: Target | None
    model: str | None
    seconds: float
    connections: int
    streams: int
    events: int
    interval: float
    open_streams: int
    transfer_mib: int
    nginx: Path | None
    router: Path | None


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the command line; one that cannot be used ends the program with a message and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--url", metavar="URL", help="your vLLM server, as in http://127.0.0.1:8000")
    add("--model", metavar="NAME", help="the model to ask for; default: the first that the server lists")
    add("--key", metavar="KEY", help="your server's own key; VLLM_API_KEY keeps it out of the list of processes")
    add("--seconds", type=number(0.1, 600), default=5.0, metavar="S", help="length of each load [%(default)s]")
    add("--connections", type=whole(1, 1000), default=32, metavar="N", help="requests at once [%(default)s]")
    add("--streams", type=whole(1, 2000), default=100, metavar="N", help="streams at once [%(default)s]")
    add("--events", type=whole(1, 10_000), default=64, metavar="N", help="chunks of a stream [%(default)s]")
    add("--interval", type=number(0, 10), default=0.02, metavar="S", help="seconds between two [%(default)s]")
    add(
        "--open-streams",
        type=whole(0, MAX_OPEN_STREAMS),
        default=1000,
        metavar="N",
        help="streams held open to see their memory; 0: none [%(default)s]",
    )
    add(
        "--transfer-mib",
        type=whole(0, MAX_TRANSFER_MIB),
        default=256,
        metavar="N",
        help="MiB of one upload and one download; 0: none [%(default)s]",
    )
    add("--nginx", type=Path, metavar="PLACE", help="nginx or its directory; default: PATH")
    add("--router", type=Path, metavar="PLACE", help="vllm-router or its directory; default: PATH")
    chosen = parser.parse_args(arguments)
    url = chosen.url or environ.get("VLLM_BASE_URL") or None
    key = chosen.key or environ.get("VLLM_API_KEY") or None
    if url is None and (chosen.key or chosen.model):
        parser.error("--key and --model are about a server of yours: name it with --url or VLLM_BASE_URL")
    try:
        server = None if url is None else server_at(url, key)
    except ValueError as error:
        parser.error(str(error))
    router = chosen.router or (Path(environ["VLLM_ROUTER"]) if environ.get("VLLM_ROUTER") else None)
    return Options(
        server=server,
        model=chosen.model,
        seconds=chosen.seconds,
        connections=chosen.connections,
        streams=chosen.streams,
        events=chosen.events,
        interval=chosen.interval,
        open_streams=chosen.open_streams,
        transfer_mib=chosen.transfer_mib,
        nginx=chosen.nginx,
        router=router,
    )


def server_at(url: str, key: str | None) -> Target:
    """Read a server's address; a last ``/v1`` makes no difference.

    Raises:
        ValueError: it is not one that can be used; the message does not repeat a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        raise ValueError("the server's address cannot be read; write it as in http://127.0.0.1:8000") from None
    if parts.scheme != "http" or not parts.hostname or ":" in parts.hostname:
        raise ValueError("the server's address must be http:// with a name or an IPv4 address, as in http://gpu-1:8000")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("the server's address has parts that are not used; a key goes into --key or VLLM_API_KEY")
    # these end up in a configuration of nginx
    base = parts.path.rstrip("/").removesuffix("/v1")
    if not all(character.isalnum() or character in "/-._~" for character in base):
        raise ValueError("the server's address has a path that cannot be used")
    return Target(parts.hostname, port, base, key)


def number(least: float, most: float) -> Callable[[str], float]:
    """Return a reader of numbers between two limits, for `argparse`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
        return value

    return read


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers between two limits, likewise."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read
