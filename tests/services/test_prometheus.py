"""A bad night: a real Prometheus scrapes three gateways, and each alert fires by the fault that it is for.

The rules are those of `config/prometheus/alerts.yml`, with each minute made a second (`hurried_rules`).
"""

from __future__ import annotations

import http.client
import json
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from benchmarks.free_ports import free_port
from benchmarks.prometheus import Prometheus, find_prometheus, prometheus
from tests.end_to_end.process_harness import (
    Connection,
    MeasuredGateway,
    connected,
    many_descriptors,
    request_head,
    served,
)
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, ask, command, environment, serving, wait_until
from tests.self_signed import self_signed_pem
from tests.services.hurried_rules import HURRY, every_rule, write_hurried_rules
from tests.services.private_postgresql import PrivatePostgresql
from tests.services.private_redis import PrivateRedis

#: between two scrapes, and between two looks at the rules
INTERVAL = "500ms"
#: how long all is well before the faults, and how long the alerts may take after them, in seconds
WELL = 8.0
BAD = 40.0

#: files that the third gateway may have open, and the requests that hang there
OPEN_FILES = 600
HANGING = 199

#: dollars for each token, and tokens of each answer
PRICE = 0.001
TOKENS = 20

#: the shape of an alert: its labels, and texts that its summary or description has
Expected = tuple[dict[str, str], tuple[str, ...]]


class ScriptedServer:
    """A vLLM that answers as a test says, its health checks included.

    Attributes:
        status: of its answers to requests.
        delay: seconds before an answer to a request begins.
        hangs: whether requests get none.
        every: which requests are delayed: 1 for all, 2 for every second one.
    """

    def __init__(self) -> None:
        self.status = 200
        self.delay = 0.0
        self.hangs = False
        self.every = 1
        self._count = 0
        self._ended = threading.Event()

    def end(self) -> None:
        """Answer what waits, now."""
        self._ended.set()

    def serve(self, connection: Connection) -> bool:
        """Answer request after request of one connection."""
        while head := connection.read_head():
            lines = head.decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            body = connection.read(int(fields.get("content-length", 0)))
            if not lines[0].startswith("POST"):
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            if self.hangs:
                return True
            self._count += 1
            if self._count % self.every == 0:
                self._ended.wait(self.delay)
            usage = {"prompt_tokens": TOKENS // 2, "completion_tokens": TOKENS // 2, "total_tokens": TOKENS}
            if self.status != 200 or not json.loads(body).get("stream"):
                answer = json.dumps({"object": "chat.completion", "choices": [], "usage": usage}).encode()
                kind = "application/json"
            else:
                chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
                last = {"choices": [], "usage": usage}
                events = [f"data: {json.dumps(each)}\n\n" for each in (chunk, last)]
                answer = "".join([*events, "data: [DONE]\n\n"]).encode()
                kind = "text/event-stream"
            connection.send(
                b"HTTP/1.1 %d S\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
                % (self.status, kind.encode(), len(answer))
                + answer
            )
        return False


class Simulator:
    """``twistd vllm-simulator`` in a process that can be killed and stopped."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        options = ("--token-interval=0", "--first-token=0")
        self.process = subprocess.Popen(
            command("-n", "--pidfile=", "vllm-simulator", listen, *options),
            cwd=directory,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ready(self) -> bool:
        with suppress(OSError):
            return ask(self.port, "/health")[0] == 200
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@attrs.frozen
class Fired:
    """An alert that fires.

    Attributes:
        labels: its labels.
        texts: its summary and description.
        seconds: how long after the faults it was seen.
    """

    labels: Mapping[str, str]
    texts: str
    seconds: float


class Alerts:
    """What Prometheus fires, from the faults on."""

    def __init__(self, made: Prometheus) -> None:
        self._port = made.port
        self.fired: dict[str, list[Fired]] = {}
        self.began = time.monotonic()

    def firing(self) -> list[dict[str, Any]]:
        status, body = ask(self._port, "/api/v1/alerts")
        assert status == 200, body
        return [alert for alert in json.loads(body)["data"]["alerts"] if alert["state"] == "firing"]

    def look(self) -> None:
        """Note what fires and did not before."""
        seconds = time.monotonic() - self.began
        for alert in self.firing():
            labels = alert["labels"]
            seen = self.fired.setdefault(labels["alertname"], [])
            if all(each.labels != labels for each in seen):
                texts = "\n".join(alert["annotations"][name] for name in ("summary", "description"))
                seen.append(Fired(labels, texts, seconds))

    def wait_for(self, wanted: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not wanted() and time.monotonic() < end:
            self.look()
            time.sleep(0.1)

    def find(self, name: str, labels: Mapping[str, str]) -> Fired | None:
        return next(
            (each for each in self.fired.get(name, ()) if labels.items() <= each.labels.items()),
            None,
        )


def send(port: int, model: str, key: str = MASTER_KEY, *, stream: bool = False) -> int:
    """Send one request and read its answer; return the status."""
    body = json.dumps({"model": model, "stream": stream, "max_tokens": 9, "messages": []})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/vllm/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Clients:
    """Threads that send requests until they are stopped."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, port: int, model: str, pause: float, *, stream: bool = False) -> None:
        def run() -> None:
            while not self._stopping.wait(pause):
                # a gateway that ends, or a server that never answers
                with suppress(OSError, http.client.HTTPException):
                    send(port, model, stream=stream)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def models(**servers: int) -> str:
    """Return a ``model_list``: a model for each server."""
    entries = [
        {
            "model_name": name,
            "litellm_params": {"model": "hosted_vllm/simulated-model", "api_base": f"http://127.0.0.1:{port}"},
            "model_info": {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE},
        }
        for name, port in servers.items()
    ]
    return yaml.safe_dump({"model_list": entries})


def make_spent_key(port: int, model: str) -> None:
    """Make a key, and spend 92 % of its budget."""
    wanted = {"max_budget": 100 * TOKENS * PRICE, "key_alias": "nearly-spent"}
    status, body = ask(port, "/key/generate", MASTER_KEY, "POST", json.dumps(wanted))
    assert status == 200, body
    key = json.loads(body)["key"]
    assert {send(port, model, key) for _ in range(92)} == {200}


@attrs.frozen
class Night:
    """What became of the night.

    Attributes:
        alerts: what fired.
        before: the names of alerts that fired while all was well.
        expected: the alerts that each fault must cause, by their names.
        servers: the names of servers, by what was done to them.
        reasons: servers at which requests failed, each with a reason, as the metric says.
    """

    alerts: Alerts
    before: frozenset[str]
    expected: Mapping[str, Expected]
    servers: Mapping[str, str]
    reasons: frozenset[tuple[str, str]]


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PrivatePostgresql, redis_server: PrivateRedis
) -> Iterator[Night]:
    """Start everything, break everything at once, and wait for the alerts."""
    if find_prometheus() is None:
        pytest.skip("Prometheus (prometheus) is not installed")
    directory = tmp_path_factory.mktemp("night")
    places = {name: directory / name for name in ("servers", "storage", "process", "prometheus")}
    for place in places.values():
        place.mkdir()
    clients = Clients()
    scripted = {name: ScriptedServer() for name in ("errors", "slow", "late", "overloaded", "fine", "hanging")}
    with ExitStack() as stack:
        # both ends of what hangs are partly here
        stack.enter_context(many_descriptors(4 * HANGING))
        ports = {name: stack.enter_context(served(server.serve)).port for name, server in scripted.items()}
        for server in scripted.values():
            stack.callback(server.end)
        dead, frozen = Simulator(directory), Simulator(directory)
        stack.callback(dead.stop)
        stack.callback(frozen.stop)
        servers = MeasuredGateway(
            places["servers"],
            ports["fine"],
            settings=models(
                dead=dead.port,
                frozen=frozen.port,
                **{name: ports[name] for name in ("errors", "slow", "late", "overloaded")},
            ),
            passthrough="health: {interval: 1, timeout: 1, fall: 2}, "
            f'servers: {{"http://127.0.0.1:{ports["overloaded"]}": {{timeouts: {{response_head: 1}}}}}}',
        )
        storage = MeasuredGateway(
            places["storage"],
            ports["fine"],
            settings=models(fine=ports["fine"]),
            passthrough=f"redis_url: {json.dumps(redis_server.url)}",
            DATABASE_URL=postgresql.make_database(),
        )
        pem = places["process"] / "server.pem"
        pem.write_bytes(self_signed_pem())
        tls = free_port()
        process = MeasuredGateway(
            places["process"],
            ports["fine"],
            f"--listen=ssl:{tls}:privateKey={pem}:certKey={pem}:interface=127.0.0.1",
            settings=models(fine=ports["fine"], hanging=ports["hanging"]),
        )
        # while it loads its modules: it reads the limit after that
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
        stack.enter_context(serving(servers, storage, process))
        wait_until(lambda: dead.ready() and frozen.ready())
        make_spent_key(process.port, "fine")

        key_file = places["prometheus"] / "key"
        key_file.write_text(MASTER_KEY)
        rules = places["prometheus"] / "alerts.yml"
        write_hurried_rules(rules)
        scrape = {
            "job_name": "vllm-passthrough",
            "authorization": {"credentials_file": str(key_file)},
            "scrape_timeout": INTERVAL,
            "static_configs": [{"targets": [f"127.0.0.1:{each.port}" for each in (servers, storage, process)]}],
        }
        made = stack.enter_context(prometheus(places["prometheus"], [scrape], interval=INTERVAL, rules=[rules]))
        stack.callback(clients.stop)
        wait_until(lambda: len(made.instant("up == 1", time.time())) == 3)
        for model in ("dead", "errors"):
            clients.add(servers.port, model, 0.15)
        for _ in range(4):
            clients.add(servers.port, "slow", 0.5, stream=True)
            clients.add(servers.port, "frozen", 1.0)
        for number in range(24):
            # spread, or their answers would all begin in the same second
            clients.add(servers.port, "late", 0.5 * number, stream=True)
        for _ in range(4):
            clients.add(servers.port, "overloaded", 0.1)
        clients.add(storage.port, "fine", 0.1)

        # before the first scrape, all gateways are absent
        time.sleep(2.0)
        alerts = Alerts(made)
        alerts.wait_for(lambda: False, WELL)
        before = frozenset(alerts.fired)
        alerts.began, alerts.fired = time.monotonic(), {}

        # the faults
        dead.process.kill()
        frozen.process.send_signal(signal.SIGSTOP)
        scripted["errors"].status = 500
        scripted["slow"].delay = 2.6
        scripted["late"].delay = 10.5
        scripted["overloaded"].delay, scripted["overloaded"].every = 2.0, 2
        postgresql.stop()
        stack.callback(postgresql.start)
        redis_server.stop()
        stack.callback(redis_server.start)
        # no file may grow: neither the spool's nor the log's
        resource.prlimit(storage.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        process.signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.signal(signal.SIGCONT)
        (places["process"] / "gateway.yaml").write_text("passthrough: {limits: {max_conections: 3}}")
        process.signal(signal.SIGHUP)
        scripted["hanging"].hangs = True
        body = json.dumps({"model": "hanging", "messages": []}).encode()
        for _ in range(HANGING):
            hanging = stack.enter_context(connected(process.port))
            lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
            hanging.send(request_head("POST", "/v1/chat/completions", *lines) + body)

        def at(port: int) -> dict[str, str]:
            return {"instance": f"127.0.0.1:{port}"}

        def of(name: str) -> str:
            return f"127.0.0.1:{ports[name]}"

        expected: dict[str, Expected] = {
            "ServerDead": ({"server": dead.name, "reason": "connection_refused"}, (dead.name, "is down")),
            "ServerFrozen": ({"server": frozen.name, "reason": "timeout"}, (frozen.name, "frozen")),
            "ServerErrors": ({"server": of("errors"), "reason": "status_500"}, (of("errors"), "status_500")),
            "ServerSlow": ({"server": of("slow")}, (of("slow"), "is slow")),
            "ServerTimesOut": ({"server": of("overloaded")}, (of("overloaded"), "requests time out")),
            "ErrorRate": ({"model": "errors"}, ("errors", "completed with status 500", of("errors"))),
            "FirstByteLate": ({"model": "late"}, ("late",)),
            "LedgerCannotBeWritten": (at(storage.port), ("spool's disk",)),
            "LogLinesDropped": (at(storage.port), ("log's disk",)),
            "LedgerDatabaseAway": (at(storage.port), ("database takes no ledger rows",)),
            "DatabaseAway": (at(storage.port), ("database", "does not answer")),
            "RedisAway": (at(storage.port), ("does not reach Redis",)),
            "CertificateAboutToEnd": (
                {"use": "listener", "listener": f"127.0.0.1:{tls}"},
                (f"127.0.0.1:{tls} ends in", "h"),
            ),
            "OpenFilesNearlyUsed": (at(process.port), ("of its open files in use",)),
            "EventLoopStalled": (at(process.port), ("stood still for a second or more",)),
            "BudgetNearlySpent": ({"kind": "key"}, ("kind key that are used to 90 % or more: 1",)),
            "ReloadFailed": (at(process.port), ("former configuration",)),
        }
        alerts.wait_for(
            lambda: all(alerts.find(name, labels) is not None for name, (labels, _) in expected.items()), BAD
        )
        failures = made.instant("vllm_passthrough_upstream_failures_total > 0", time.time())
        reasons = frozenset((each.labels["server"], each.labels["reason"]) for each in failures)
        killed = time.monotonic() - alerts.began
        process.signal(signal.SIGKILL)
        process.wait()
        expected["GatewayAbsent"] = (at(process.port), (f"127.0.0.1:{process.port} does not answer",))
        alerts.wait_for(lambda: "GatewayAbsent" in alerts.fired, PATIENCE)
        absent = alerts.fired.get("GatewayAbsent", [])
        alerts.fired["GatewayAbsent"] = [attrs.evolve(each, seconds=each.seconds - killed) for each in absent]
        servers_of_night = {"dead": dead.name, "frozen": frozen.name, **{name: of(name) for name in scripted}}
        yield Night(alerts, before, expected, servers_of_night, reasons)


def test_while_all_is_well_none_fires_but_of_the_certificate(night: Night) -> None:
    # the budget was spent before the first look; a machine that does much else lets a process stand still
    allowed = {"CertificateAboutToEnd", "BudgetNearlySpent", "EventLoopStalled", "EventLoopLate"}
    assert night.before <= allowed


@pytest.mark.parametrize(
    "name",
    [
        *("ServerDead", "ServerFrozen", "ServerErrors", "ServerSlow", "ServerTimesOut", "ErrorRate", "FirstByteLate"),
        *("LedgerCannotBeWritten", "LogLinesDropped", "LedgerDatabaseAway", "DatabaseAway", "RedisAway"),
        *("CertificateAboutToEnd", "OpenFilesNearlyUsed", "EventLoopStalled", "BudgetNearlySpent", "ReloadFailed"),
        "GatewayAbsent",
    ],
)
def test_each_alert_fires_by_its_fault_and_names_the_cause(night: Night, name: str) -> None:
    labels, texts = night.expected[name]
    fired = night.alerts.find(name, labels)
    assert fired is not None, str(night.alerts.fired.get(name, night.alerts.fired.keys()))
    assert [text for text in texts if text not in fired.texts] == []
    assert "error expanding template" not in fired.texts
    waits = next(rule.get("for", "0s") for rule in every_rule() if rule["alert"] == name)
    print(f"{name}: {fired.seconds:.1f} s after the fault; times are divided by {HURRY}, its `for` is {waits}")


def test_a_fault_of_one_gateway_is_not_told_of_another(night: Night) -> None:
    for name in ("DatabaseAway", "RedisAway", "LedgerCannotBeWritten", "OpenFilesNearlyUsed", "ReloadFailed"):
        wanted = night.expected[name][0]["instance"]
        assert {fired.labels["instance"] for fired in night.alerts.fired[name]} == {wanted}, name


def test_each_server_at_which_requests_failed_has_its_own_reason(night: Night) -> None:
    wanted = {
        "dead": "connection_refused",
        "frozen": "timeout",
        "errors": "status_500",
        "overloaded": "slow",
    }
    assert {(night.servers[name], reason) for name, reason in wanted.items()} <= night.reasons
    well = {night.servers[name] for name in ("slow", "late", "fine")}
    assert not well & {server for server, _ in night.reasons}
