"""Machines in network namespaces of this one: gateways, each with a line of its own to clients, database and Redis.

One more namespace, the hub, has what they share: PostgreSQL, Redis, a simulated vLLM server, and nginx, which gives
each request to the next gateway. Whoever is outside of the namespaces, as the test is, uses UNIX sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.postgresql import PostgresqlServer, unprivileged
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, command, environment
from tests.services.unix_http import ask

#: the lines of a gateway; each is a network of its own
CLIENTS, DATABASE, REDIS = LINES = ("clients", "database", "redis")
_GATEWAY_PORT, _REDIS_PORT, _SERVER_PORT = 4000, 6379, 8000
#: a dozen processes may start at once, on two busy cores
_START_SECONDS = 90.0
#: how long a slow machine stands still, and how long it runs then, in seconds
_STILL, _RUNS = 0.15, 0.05

#: as an operator would write it: nothing is sent twice unless a gateway could not be reached
_BALANCER = """
user root;
worker_processes 1;
daemon off;
pid balancer.pid;
error_log balancer.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream gateways {{ {gateways} }}
    server {{
        listen unix:{socket};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_connect_timeout 1s;
        }}
    }}
}}
"""


class CannotHave(Exception):
    """This machine does not let the test have what it needs; the text says what."""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotHave(f"{' '.join(words)}: {done.stderr.strip()}")


class Network:
    """The namespaces and the lines between them.

    Args:
        gateways: how many gateways there are.
    """

    def __init__(self, gateways: int) -> None:
        mark = f"t{os.getpid()}-{secrets.token_hex(2)}"
        self.hub = f"{mark}-hub"
        self.gateways = [f"{mark}-{number}" for number in range(gateways)]
        self._made: list[str] = []

    def make(self) -> None:
        """Make them.

        Raises:
            CannotHave: the kernel or the user's rights do not allow it.
        """
        if os.geteuid() != 0:
            raise CannotHave("only root may make network namespaces")
        if shutil.which("ip") is None:
            raise CannotHave("iproute2 (ip) is not installed")
        for name in (self.hub, *self.gateways):
            _run("ip", "netns", "add", name)
            self._made.append(name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for number, name in enumerate(self.gateways):
            for line in LINES:
                here, there = f"{line}{number}", line
                _run("ip", "link", "add", here, "netns", self.hub, "type", "veth", "peer", "name", there, "netns", name)
                for place, device, end in ((self.hub, here, 1), (name, there, 2)):
                    _run("ip", "-n", place, "addr", "add", f"{_network(line, number)}.{end}/24", "dev", device)
                    _run("ip", "-n", place, "link", "set", device, "up")

    def cut(self, number: int, line: str) -> None:
        """Cut a gateway's line: packets vanish, and nobody is told."""
        _run("ip", "-n", self.hub, "link", "set", f"{line}{number}", "down")

    def mend(self, number: int, line: str) -> None:
        """Repair a gateway's line."""
        _run("ip", "-n", self.hub, "link", "set", f"{line}{number}", "up")

    def remove(self) -> None:
        """Remove the namespaces; the lines go with them."""
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _network(line: str, number: int) -> str:
    return f"10.{LINES.index(line)}.{number}"


def within(namespace: str) -> list[str]:
    """Return what stands before a command that runs in a namespace."""
    return ["ip", "netns", "exec", namespace]


class Process:
    """A program in a namespace, with its output in a file."""

    def __init__(
        self, namespace: str, words: Sequence[str], directory: Path, log: str, environ: dict[str, str] | None = None
    ) -> None:
        self.log = directory / log
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*within(namespace), *words],
                cwd=directory,
                env=environment() if environ is None else environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Wait for what the process does at its start."""
        end = time.monotonic() + _START_SECONDS
        while not is_so():
            log = self.log.read_text(errors="replace")[-3000:]
            assert self._popen.poll() is None, log
            assert time.monotonic() < end, f"not ready after {_START_SECONDS:g} seconds: {log}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def terminate(self) -> int:
        """Tell the first process to end, wait, and return its exit status."""
        self._popen.terminate()
        return self._popen.wait(PATIENCE)

    def kill(self) -> None:
        """End everything at once."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._popen.wait()


class HubPostgresql(PostgresqlServer):
    """A PostgreSQL in the hub, on TCP for gateways and on a UNIX socket for the test."""

    def __init__(self, binaries: Path, directory: Path, namespace: str) -> None:
        user = unprivileged()
        before = within(namespace)
        if user:
            before += ["setpriv", f"--reuid={user['user']}", f"--regid={user['group']}", "--clear-groups", "--"]
        settings = ("fsync=off", "max_connections=60", "listen_addresses=*")
        super().__init__(binaries, directory, secrets.token_hex(8), settings, before=before)

    def initialise(self) -> None:
        """Make the server's files, and let other machines in."""
        super().initialise()
        with (self.directory / "data" / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet scram-sha-256\n")

    def url_from(self, number: int, name: str) -> str:
        """Return the URL of a database for a gateway."""
        return f"postgresql://{self.user}:{self.password}@{_network(DATABASE, number)}.1/{name}"


class Gateway:
    """A gateway on a machine of its own.

    Args:
        hub: what is around it.
        number: its number.
        settings: of the configuration, below `passthrough`.
        options: of its command line.
    """

    def __init__(self, hub: Hub, number: int, settings: dict[str, Any], options: Sequence[str]) -> None:
        self._hub = hub
        self._number = number
        self._options = options
        self.directory = hub.directory / f"gateway-{number}"
        self.directory.mkdir()
        self.socket = self.directory / "gateway.sock"
        own: dict[str, Any] = {
            "api_base": f"http://{_network(CLIENTS, number)}.1:{_SERVER_PORT}",
            "log": {"file": "gateway.log", "format": "json"},
        }
        general = {"master_key": MASTER_KEY, "database_url": hub.postgresql.url_from(number, hub.database)}
        redis = f"redis://:{quote(hub.redis_password)}@{_network(REDIS, number)}.1:{_REDIS_PORT}/0"
        config = {"general_settings": general, "passthrough": own | {"redis_url": redis} | settings}
        (self.directory / "gateway.yaml").write_text(json.dumps(config))
        self._process: Process | None = None

    def start(self) -> None:
        """Start it; `wait` waits until it serves."""
        listen = (f"--listen=tcp:{_GATEWAY_PORT}", f"--listen=unix:{self.socket}")
        words = command("-n", "--pidfile=", "vllm-passthrough", "--config=gateway.yaml", *listen, *self._options)
        self._process = Process(self._hub.network.gateways[self._number], words, self.directory, "gateway.out")

    def wait(self) -> None:
        """Wait until it serves."""
        self.process.wait_until(lambda: self.get("/health/readiness") == 200)

    @property
    def process(self) -> Process:
        """Its first process."""
        assert self._process is not None
        return self._process

    def get(self, path: str, key: str | None = None) -> int:
        """Ask it, not the balancer; return the status, or 0 if there is no answer."""
        try:
            return ask(self.socket, "GET", path, key)[0]
        except OSError:
            return 0

    def make_key(self, **fields: Any) -> str:
        """Make a key."""
        status, body = ask(self.socket, "POST", "/key/generate", MASTER_KEY, json.dumps(fields).encode())
        assert status == 200, body
        return str(json.loads(body)["key"])

    def messages(self, words: str) -> list[str]:
        """Return the messages of its log that have these words."""
        lines = [json.loads(line) for line in (self.directory / "gateway.log").read_text().splitlines()]
        return [line["message"] for line in lines if words in line.get("message", "")]

    def cut(self, line: str) -> None:
        """Cut it off from clients, database or Redis."""
        self._hub.network.cut(self._number, line)

    def mend(self, line: str) -> None:
        """Repair a line that was cut."""
        self._hub.network.mend(self._number, line)

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Let its processes run a quarter of the time, in pieces, during a block."""
        ended = threading.Event()

        def hinder() -> None:
            while not ended.is_set():
                self.process.signal(signal.SIGSTOP)
                ended.wait(_STILL)
                self.process.signal(signal.SIGCONT)
                ended.wait(_RUNS)

        thread = threading.Thread(target=hinder)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()


class Hub:
    """All machines.

    Attributes:
        network: the namespaces.
        directory: where everybody's files are.
        postgresql: the database server.
        database: the name of the gateways' database.
        gateways: the gateways, which run.
        balancer: the UNIX socket of nginx.
    """

    def __init__(self, gateways: int, programs: Programs, settings: dict[str, Any], options: Sequence[str]) -> None:
        self.network = Network(gateways)
        # the system's temporary directory: others must reach it, and a socket's path must be short
        self.directory = Path(tempfile.mkdtemp(prefix="machines-"))
        self.directory.chmod(0o755)
        self.database = "postgres"
        self.redis_password = secrets.token_hex(8)
        self.balancer = self.directory / "balancer.sock"
        self.gateways: list[Gateway] = []
        self._count = gateways
        self._programs = programs
        self._settings = settings
        self._options = options
        self._processes: list[Process] = []
        self._server = self.directory / "server.sock"

    def start(self) -> None:
        """Start everything.

        Raises:
            CannotHave: there can be no namespaces here.
        """
        self.network.make()
        place = self.directory / "postgresql"
        place.mkdir()
        self.postgresql = HubPostgresql(self._programs.postgresql, place, self.network.hub)
        self.postgresql.initialise()
        self.postgresql.start()
        redis = self.directory / "redis.sock"
        words = [
            self._programs.redis,
            "--port",
            str(_REDIS_PORT),
            "--bind",
            "0.0.0.0",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._run(*words, "--requirepass", self.redis_password, "--unixsocket", str(redis)).wait_until(redis.exists)
        simulator = command(
            "-n", "--pidfile=", "vllm-simulator", f"--listen=tcp:{_SERVER_PORT}", f"--listen=unix:{self._server}"
        )
        self._run(*simulator, "--first-token=0.01", "--token-interval=0.01").wait_until(self._server.exists)
        self.gateways = [Gateway(self, each, self._settings, self._options) for each in range(self._count)]
        # the first one makes the schema
        for group in (self.gateways[:1], self.gateways[1:]):
            for each in group:
                each.start()
            for each in group:
                each.wait()
        servers = "".join(
            f"server {_network(CLIENTS, each)}.2:{_GATEWAY_PORT} fail_timeout=1s; " for each in range(self._count)
        )
        (self.directory / "balancer.conf").write_text(_BALANCER.format(gateways=servers, socket=self.balancer))
        nginx = [self._programs.nginx, "-e", "balancer.log", "-p", f"{self.directory}/", "-c", "balancer.conf"]
        self._run(*nginx).wait_until(self.balancer.exists)

    def _run(self, *words: str) -> Process:
        process = Process(self.network.hub, words, self.directory, f"{Path(words[0]).name}.out")
        self._processes.append(process)
        return process

    def served(self) -> int:
        """Return how many requests the simulated server has answered to their end."""
        _, body = ask(self._server, "GET", "/metrics", None)
        lines = [line for line in body.decode().splitlines() if line.startswith("vllm:request_success_total{")]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))

    def url(self) -> str:
        """Return the URL of the database for the test."""
        return self.postgresql.url(self.database)

    def remove(self) -> None:
        """End everything."""
        for each in self.gateways:
            each.kill()
        for process in reversed(self._processes):
            process.kill()
        if hasattr(self, "postgresql"):
            self.postgresql.stop()
        self.network.remove()
        shutil.rmtree(self.directory, ignore_errors=True)


class Programs:
    """Where the programs are.

    Raises:
        CannotHave: one is not installed.
    """

    def __init__(self, postgresql: Path | None, redis: str | None) -> None:
        nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        for name, found in (("PostgreSQL", postgresql), ("redis-server", redis), ("nginx", nginx)):
            if found is None:
                raise CannotHave(f"{name} is not installed")
        assert postgresql is not None
        assert redis is not None
        assert nginx is not None
        self.postgresql, self.redis, self.nginx = postgresql, redis, nginx
