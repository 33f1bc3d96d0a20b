"""The programs that are compared: the gateway, nginx, vLLM's router, and the server itself."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import msgspec

from benchmarks.client import Target
from benchmarks.free_ports import free_port
from benchmarks.measure import ProcessTree
from benchmarks.processes import CannotStart, answers, ask, environment, running, wait_until_ready

REPOSITORY = Path(__file__).parents[1]

GATEWAY, NGINX, ROUTER, DIRECT = "gateway", "nginx", "vllm-router", "direct"

_NGINX_CONF = """
{user}worker_processes 1;
daemon off;
pid nginx.pid;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    keepalive_requests 1000000000;
    upstream server {{ server {host}:{port}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        location /vllm/ {{
            proxy_pass http://server/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


@attrs.frozen
class Peer:
    """A program that is measured, while it runs.

    Attributes:
        target: where it takes requests.
        processes: its processes; None where they cannot be measured.
    """

    target: Target
    processes: ProcessTree | None


Start = Callable[[Path], AbstractContextManager[Peer]]


def find_program(name: str, place: Path | None, extra: tuple[str, ...] = ()) -> Path | None:
    """Find a program.

    Args:
        name: its name.
        place: the file itself or its directory; None looks on PATH.
        extra: directories to look in after PATH.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *extra])
    if place is not None:
        path = str(place.parent if place.is_file() else place)
        name = place.name if place.is_file() else name
    found = shutil.which(name, path=path)
    return None if found is None else Path(found).absolute()


@contextmanager
def direct(server: Target, _: Path) -> Iterator[Peer]:
    """The server itself."""
    yield Peer(server, None)


@contextmanager
def gateway(server: Target, directory: Path) -> Iterator[Peer]:
    """Run the gateway as a user would: a virtual key, and a JSON log in a file.

    Raises:
        CannotStart: it does not start.
    """
    variables = {} if server.key is None else {"HOSTED_VLLM_API_KEY": server.key}
    config: dict[str, object] = {"passthrough": {"api_base": f"http://{server.host}:{server.port}{server.base}"}}
    with run_gateway(config, variables, directory) as (target, process):
        yield Peer(target, ProcessTree(process))


@contextmanager
def run_gateway(
    config: Mapping[str, object], variables: Mapping[str, str], directory: Path
) -> Iterator[tuple[Target, int]]:
    """Run a gateway with a virtual key; as `run_gateway_of`, whose arguments it takes.

    Yields:
        Where it takes requests, and its process.
    """
    with run_gateway_of(config, variables, directory) as running_one:
        key = _virtual_key(running_one.port, running_one.master_key)
        yield Target("127.0.0.1", running_one.port, "/vllm", key), running_one.process


@attrs.frozen
class RunningGateway:
    """A gateway that runs.

    Attributes:
        port: where it listens, on the loopback.
        master_key: its master key.
        process: its process id.
    """

    port: int
    master_key: str = attrs.field(repr=False)
    process: int


@contextmanager
def run_gateway_of(
    config: Mapping[str, object], variables: Mapping[str, str], directory: Path, *options: str
) -> Iterator[RunningGateway]:
    """Run a gateway with a JSON log in a file.

    Args:
        config: its settings, but those of the master key and the log.
        variables: of its environment.
        directory: where it runs.
        options: more options of its command line.

    Raises:
        CannotStart: it does not start.
    """
    port, master_key = free_port(), f"sk-{secrets.token_urlsafe(24)}"
    own, general = config.get("passthrough"), config.get("general_settings")
    whole = dict(config) | {
        "general_settings": (dict(general) if isinstance(general, Mapping) else {})
        | {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "passthrough": {"log": {"format": "json", "file": "requests.log"}}
        | (dict(own) if isinstance(own, Mapping) else {}),
    }
    # JSON is YAML
    (directory / "gateway.yaml").write_text(json.dumps(whole))
    environ = environment(**variables, LITELLM_MASTER_KEY=master_key, PYTHONPATH=str(REPOSITORY))
    twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
    arguments = ["vllm-passthrough", "--config=gateway.yaml", f"--listen=tcp:{port}:interface=127.0.0.1", *options]
    log = directory / "gateway.out"
    with running([*twistd, *arguments], log, environ=environ, directory=directory) as process:
        wait_until_ready(process, log, lambda: answers(port, "/health/readiness"))
        yield RunningGateway(port, master_key, process.pid)


def _virtual_key(port: int, master_key: str) -> str:
    status, body = ask("127.0.0.1", port, "POST", "/key/generate", key=master_key, body=b'{"key_alias": "benchmark"}')
    if status != 200:
        raise CannotStart(f"/key/generate answered {status}")
    return str(msgspec.json.decode(body)["key"])


@contextmanager
def nginx(program: Path, files: int, server: Target, directory: Path) -> Iterator[Peer]:
    """Run nginx with one worker, no buffering, kept connections, and its access log.

    Raises:
        CannotStart: it does not start.
    """
    listen = free_port()
    # started by root, its worker would run as nobody, who cannot write to this directory
    user = "user root;\n" if os.geteuid() == 0 else ""
    conf = _NGINX_CONF.format(user=user, files=files, host=server.host, port=server.port, listen=listen)
    conf = conf.replace("proxy_pass http://server/;", f"proxy_pass http://server{server.base}/;")
    (directory / "nginx.conf").write_text(conf)
    log = directory / "nginx.out"
    command = [str(program), "-e", "stderr", "-p", f"{directory}/", "-c", "nginx.conf"]
    with running(command, log, environ=environment(), directory=directory) as process:
        wait_until_ready(process, log, lambda: answers(listen, "/vllm/health", server.key))
        yield Peer(Target("127.0.0.1", listen, "/vllm", server.key), ProcessTree(process.pid))


@contextmanager
def router(program: Path, server: Target, directory: Path) -> Iterator[Peer]:
    """Run vLLM's Rust router in front of one worker.

    Raises:
        CannotStart: it does not start.
    """
    port, metrics_port = free_port(), free_port()
    address = f"http://{server.host}:{server.port}{server.base}"
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", address]
    command += ["--policy", "round_robin", "--log-level", "warning", "--max-payload-size", str(4 << 30)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    log = directory / "router.out"
    with running(command, log, environ=environment(), directory=directory) as process:
        wait_until_ready(process, log, lambda: answers(port, "/health"))
        yield Peer(Target("127.0.0.1", port, "", server.key), ProcessTree(process.pid))


@attrs.frozen
class Peers:
    """The peers that can be measured, and why the others cannot."""

    starts: dict[str, Start]
    missing: list[str]


def find_peers(server: Target, *, nginx_place: Path | None, router_place: Path | None, files: int) -> Peers:
    """Find what is installed.

    Args:
        server: the server that all stand in front of.
        nginx_place: where nginx is; None looks on PATH.
        router_place: where vllm-router is; None looks on PATH.
        files: how many files a proxy may open.
    """
    starts: dict[str, Start] = {DIRECT: partial(direct, server)}
    missing = []
    found = find_program("nginx", nginx_place, ("/usr/sbin", "/usr/local/sbin"))
    if found is None:
        where = "PATH" if nginx_place is None else str(nginx_place)
        missing.append(f"{NGINX} was not measured: there is none in {where} (Debian: apt-get install nginx-light).")
    else:
        starts[NGINX] = partial(nginx, found, files, server)
    found = find_program("vllm-router", router_place)
    if found is None:
        where = "PATH" if router_place is None else str(router_place)
        missing.append(
            f"{ROUTER} was not measured: there is none in {where} "
            "(pip install vllm-router, in an environment of its own; then --router ENVIRONMENT/bin)."
        )
    else:
        starts[ROUTER] = partial(router, found, server)
    starts[GATEWAY] = partial(gateway, server)
    return Peers(starts, missing)


@contextmanager
def own_upstream(directory: Path) -> Iterator[Target]:
    """Run the stand-in of `benchmarks.upstream`.

    Raises:
        CannotStart: it does not start.
    """
    log, port_file = directory / "upstream.out", directory / "upstream.port"
    command = [sys.executable, "-m", "benchmarks.upstream", str(port_file)]
    with running(command, log, environ=environment(), directory=REPOSITORY) as process:
        wait_until_ready(process, log, port_file.exists)
        yield Target("127.0.0.1", int(port_file.read_text()))


def first_model(server: Target) -> str | None:
    """Return what a server calls its first model; None where it does not say."""
    with suppress(OSError, msgspec.MsgspecError, LookupError, TypeError):
        status, body = ask(server.host, server.port, "GET", f"{server.base}/v1/models", key=server.key)
        if status == 200:
            return str(msgspec.json.decode(body)["data"][0]["id"])
    return None
