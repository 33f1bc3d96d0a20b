"""What the chart has Kubernetes do with a pod, done with processes: start, probe, and stop under load."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import MASTER_KEY, command, environment, wait_until
from tests.packaging.rendered_chart import (
    LEAST,
    Document,
    configuration,
    gateway_container,
    gateway_pod,
    render,
)

#: what the chart's seconds are divided by, so that the test takes seconds
HURRY = 10
#: clients that ask one thing after another, each on a connection that it keeps
CLIENTS = 6
STREAM_SECONDS = 4.0


def ask_probe(port: int, probe: Document) -> bool:
    """Ask as the kubelet does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=probe["timeoutSeconds"])
    try:
        connection.request("GET", probe["httpGet"]["path"])
        return 200 <= connection.getresponse().status < 400
    except OSError:
        return False
    finally:
        connection.close()


class Pod:
    """A process with the command, the variables and the files of a pod; volumes are directories."""

    def __init__(self, directory: Path, port: int, documents: list[Document] | tuple[Document, ...]) -> None:
        container = gateway_container(documents)
        self.port, self.spec, self.container = port, gateway_pod(documents), container
        self.seen: list[int] = []
        (directory / "config").mkdir(parents=True)
        (directory / "config" / "config.yaml").write_text(configuration(documents))
        mounts = {each["mountPath"]: directory / each["name"] for each in container["volumeMounts"]}
        for path in mounts.values():
            path.mkdir(exist_ok=True)
        self.data = mounts["/var/lib/vllm-passthrough"]
        # the volume of the Secrets
        for source in next(each for each in self.spec["volumes"] if each["name"] == "secrets")["projected"]["sources"]:
            [item] = source["secret"]["items"]
            (directory / "secrets" / item["path"]).write_text(f"{MASTER_KEY}\n")
        arguments = [_in(mounts, argument) for argument in container["args"]]
        assert container["command"] == ["vllm-passthrough"]
        variables = {each["name"]: _in(mounts, each["value"]) for each in container["env"]}
        self._log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twisted_vllm", *arguments],
            cwd="/",
            env=environment(**variables),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    def wait_for_start(self) -> None:
        wait_until(lambda: self.probe("startup") or self.process.poll() is not None)

    def probe(self, name: str) -> bool:
        return ask_probe(self.port, self.container[f"{name}Probe"])


def _in(mounts: dict[str, Path], text: str) -> str:
    return re.sub("|".join(map(re.escape, mounts)), lambda found: str(mounts[found[0]]), text)


class Endpoints:
    """The pods that the Service names: each is watched by its readiness probe, as the kubelet and its proxy would."""

    def __init__(self, pods: list[Pod]) -> None:
        self._pods, self._ready, self._lock = pods, list(pods), threading.Lock()
        self._turn = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(pod,)) for pod in pods]
        for thread in self._threads:
            thread.start()

    def _watch(self, pod: Pod) -> None:
        probe, failures = pod.container["readinessProbe"], 0
        while not self._ended.wait(probe["periodSeconds"] / HURRY):
            failures = 0 if pod.probe("readiness") else failures + 1
            with self._lock:
                if failures >= probe["failureThreshold"] and pod in self._ready:
                    self._ready.remove(pod)

    def choose(self) -> Pod:
        with self._lock:
            self._turn += 1
            return self._ready[self._turn % len(self._ready)]

    def count(self) -> int:
        with self._lock:
            return len(self._ready)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


class Client(threading.Thread):
    """Asks one thing after another, and repeats nothing. Opens a new connection once in a while, as pools do."""

    def __init__(self, endpoints: Endpoints, stop: threading.Event, pause: float) -> None:
        super().__init__()
        self._endpoints, self._stopped, self._pause = endpoints, stop, pause
        self.answered, self.failures = 0, list[str]()

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        headers = {"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"}
        body = json.dumps({"model": "qwen", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
        while not self._stopped.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._endpoints.choose().port, timeout=20)
            try:
                connection.request("POST", "/v1/chat/completions", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {text[:200]!r}")
                self.answered += 1
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                if connection is not None:
                    connection.close()
                connection = None
            self._stopped.wait(self._pause)
        if connection is not None:
            connection.close()


def stream(port: int, received: list[str]) -> None:
    """Read a stream of many tokens to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps(
        {"model": "qwen", "stream": True, "max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}
    )
    headers = {"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"}
    with suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/chat/completions", body, headers)
        received.extend(connection.getresponse().read().decode().splitlines())
    connection.close()


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    directory = tmp_path_factory.mktemp("simulator")
    listen = f"--listen=tcp:{port}:interface=127.0.0.1"
    options = ("--model=qwen", "--first-token=0.01", f"--token-interval={STREAM_SECONDS / 40}")
    process = subprocess.Popen(
        command("-n", "--pidfile=", "vllm-simulator", listen, *options),
        cwd=directory,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ask_probe(port, {"timeoutSeconds": 5, "httpGet": {"path": "/health"}}))
        yield port
    finally:
        process.kill()
        process.wait()


def objects(simulator: int, port: int, *options: str) -> list[Document]:
    server = {"model": "hosted_vllm/qwen", "api_base": f"http://127.0.0.1:{simulator}"}
    models = json.dumps([{"model_name": "qwen", "litellm_params": server}])
    return list(
        render(
            *LEAST,
            *("--set-json", f"config.model_list={models}"),
            *("--set", f"service.containerPort={port}"),
            *options,
        )
    )


def test_a_rolling_restart_under_load_fails_no_request(simulator: int, tmp_path: Path) -> None:
    default = configuration(objects(simulator, 4000))
    assert "drain_delay: 15\n" in default
    with ExitStack() as stack:
        pods = [
            stack.enter_context(
                Pod(
                    tmp_path / str(number),
                    port,
                    objects(simulator, port, "--set-json", f"config.passthrough.drain_delay={15 / HURRY}"),
                )
            )
            for number, port in enumerate((free_port(), free_port()))
        ]
        for pod in pods:
            pod.wait_for_start()
            assert pod.probe("liveness")
            assert pod.probe("readiness")
        endpoints, stop = Endpoints(pods), threading.Event()
        stack.callback(endpoints.end)
        # some ask all the time, and some have connections that are idle most of the time
        clients = [Client(endpoints, stop, pause=0.0 if number < CLIENTS / 2 else 0.11) for number in range(CLIENTS)]
        for client in clients:
            client.start()
            stack.callback(client.join)
        stack.callback(stop.set)
        wait_until(lambda: all(client.answered > 2 for client in clients))
        received: list[str] = []
        streaming = threading.Thread(target=stream, args=(pods[0].port, received))
        streaming.start()
        time.sleep(STREAM_SECONDS / 8)
        began = time.monotonic()
        pods[0].process.send_signal(signal.SIGTERM)
        wait_until(lambda: endpoints.count() == 1)
        assert pods[0].process.poll() is None
        assert pods[0].process.wait(timeout=30) == 0
        took = time.monotonic() - began
        streaming.join()
        before = [client.answered for client in clients]
        wait_until(lambda: all(client.answered > had + 2 for client, had in zip(clients, before, strict=True)))
        stop.set()
        for client in clients:
            client.join()
        assert [failure for client in clients for failure in client.failures] == []
        # the stream was longer than the delay, and ended by itself
        assert received[-2:] == ["data: [DONE]", ""]
        assert took > STREAM_SECONDS / 2
        assert took < pods[0].spec["terminationGracePeriodSeconds"]
        # the ledger's rows went to the database: the volume could go as well
        assert [path for path in pods[0].data.glob("*.spool/*.spool") if path.stat().st_size > 100] == []
