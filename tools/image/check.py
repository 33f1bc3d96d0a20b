"""Checks an image by running it as it should be run: ``make image-check``.

Containers get a read-only root, no capabilities, no new privileges, and one volume. What is checked is what operators
rely on: clear refusals, the health check, requests, that a stop lets a running answer end, and that neither a kill nor
a new container loses anything.
"""

from __future__ import annotations

import argparse
import http.client
import json
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from tools.image.build import ENGINES, TAG, found_engine

#: seconds in which a gateway starts, and in which an engine ends a command
_START, _COMMAND = 60.0, 120.0
#: how a container of the gateway should be run
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
_USER = "10001"


class CheckFailed(Exception):
    """The image is not what it should be."""


@attrs.frozen
class Image:
    """An image and what runs it.

    Attributes:
        engine: the command line's begin: docker or podman.
        tag: the image.
        options: options for each container, beside those that harden it.
        port: where the gateway is reached.
        network: the options that make it so, and where the gateway listens.
        master_key: the gateway's.
    """

    engine: Sequence[str]
    tag: str
    options: Sequence[str]
    port: int
    network: Sequence[str]
    master_key: str = attrs.field(factory=lambda: f"sk-{secrets.token_urlsafe(24)}", repr=False)

    def ask_engine(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine."""
        return subprocess.run([*self.engine, *arguments], capture_output=True, text=True, timeout=_COMMAND, check=False)

    def once(self, *arguments: str, entrypoint: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        begin = ("run", "--rm", *HARDENED, *self.options)
        return self.ask_engine(*begin, *([f"--entrypoint={entrypoint}"] if entrypoint else ()), self.tag, *arguments)

    @contextmanager
    def gateway(self, name: str, volume: str, *arguments: str) -> Iterator[str]:
        """Run a gateway with the simulator, until it answers and then to the end of the ``with`` block."""
        environment = (f"--env=LITELLM_MASTER_KEY={self.master_key}",)
        storage = f"--volume={volume}:/var/lib/vllm-passthrough"
        begin = ("run", "--detach", "--name", name, *HARDENED, *self.options, *self.network, *environment, storage)
        started = self.ask_engine(*begin, self.tag, "run", "--quickstart", *arguments)
        _require(started.returncode == 0, f"the container does not start: {started.stderr}")
        try:
            _wait(lambda: self._answers(), lambda: f"no gateway answers: {self.logs(name)}")
            yield name
        finally:
            self.ask_engine("rm", "--force", name)

    def logs(self, name: str) -> str:
        """Return what a container wrote."""
        told = self.ask_engine("logs", name)
        return told.stdout + told.stderr

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Send a request to the gateway; return the status and the answer's JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {key or self.master_key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/health/readiness")[0] == 200
        except (OSError, http.client.HTTPException, ValueError):
            return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, and print a line for each; return the exit status."""
    parser = argparse.ArgumentParser(prog="make image-check", description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", help="docker or podman, with options of its own [default: what is found]")
    parser.add_argument("--tag", default=TAG, help=f"the image [default: {TAG}]")
    parser.add_argument("--volume", help="a directory of the user 10001's, in place of a volume of the engine's")
    parser.add_argument("--host-network", action="store_true", help="publish no port: use the host's network")
    parser.add_argument("--run", default="", metavar="OPTIONS", help="more options for each container")
    options = parser.parse_args(arguments)
    engine = shlex.split(options.engine) if options.engine else found_engine()
    if not engine or engine[0] == "buildah":
        print(
            f"make image-check: neither of {', '.join(ENGINES[:2])} is installed: name one with --engine",
            file=sys.stderr,
        )
        return 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    network = [f"--publish=127.0.0.1:{port}:4000"]
    if options.host_network:
        network = ["--network=host", f"--env=VLLM_PASSTHROUGH_LISTEN=tcp:{port}:interface=127.0.0.1"]
    image = Image(engine, options.tag, shlex.split(options.run), port, network)
    name = f"vllm-passthrough-check-{secrets.token_hex(4)}"
    try:
        for check in (_says_its_version, _refuses_what_is_open, _has_few_rights):
            _tell(check.__doc__, check(image))
        for workers in ("1", "2"):
            volume = options.volume or f"{name}-{workers}"
            try:
                for line in _serves(image, f"{name}-{workers}", volume, workers):
                    _tell(f"{line} (workers: {workers})")
            finally:
                if not options.volume:
                    image.ask_engine("volume", "rm", volume)
    except CheckFailed as failed:
        print(f"FAILED  {failed}", file=sys.stderr)
        return 1
    return 0


def _says_its_version(image: Image) -> str:
    """It says its version, which is that of its label."""
    told = image.once("version", "--json")
    _require(told.returncode == 0, told.stderr)
    version = json.loads(told.stdout)["vllm-passthrough"]
    label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    labelled = image.ask_engine("image", "inspect", "--format", label, image.tag).stdout.strip()
    _require(labelled == version, f"the label says {labelled}, the gateway {version}")
    size = image.ask_engine("image", "inspect", "--format", "{{.Size}}", image.tag).stdout.strip()
    return f"{version}, {int(size) / 1e6:.0f} MB"


def _refuses_what_is_open(image: Image) -> str:
    """Without a master key and a server it does not start, and says what to set."""
    refused = image.once()
    _require(refused.returncode == 1, f"it ended with {refused.returncode}")
    for words in ("set LITELLM_MASTER_KEY", "set HOSTED_VLLM_API_BASE"):
        _require(words in refused.stderr + refused.stdout, f"it does not say: {words}")
    return ""


_LOOK = """
import json, os, sys, importlib.util
status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)
writable, setuid = [], []
for top, directories, files in os.walk('/'):
    directories[:] = [name for name in directories if os.path.join(top, name) not in ('/proc', '/sys', '/dev')]
    for path in (os.path.join(top, name) for name in directories + files):
        if os.path.islink(path) or not os.path.lexists(path):
            continue
        mode = os.stat(path).st_mode
        if os.path.isfile(path) and mode & 0o6000:
            setuid.append(path)
        if os.access(path, os.W_OK):
            writable.append(path)
print(json.dumps({'pid': os.getpid(), 'uid': os.getuid(), 'gid': os.getgid(), 'capabilities': status['CapEff'],
 'no_new_privileges': status['NoNewPrivs'], 'writable': writable, 'setuid': setuid, 'cwd': os.getcwd(),
 'pip': importlib.util.find_spec('pip') is not None}))
"""


def _has_few_rights(image: Image) -> str:
    """It runs as a user without rights, who can write one directory alone; there is no pip."""
    looked = image.once("-c", _LOOK, entrypoint="python")
    _require(looked.returncode == 0, looked.stderr)
    found = json.loads(looked.stdout)
    wanted = {"uid": int(_USER), "gid": int(_USER), "capabilities": "0" * 16, "no_new_privileges": "1", "pip": False}
    _require({name: found[name] for name in wanted} == wanted, f"it has {found}")
    data = "/var/lib/vllm-passthrough"
    _require(found["cwd"] == data, f"it runs in {found['cwd']}")
    # what engines mount: the terminal, and files about the host
    mounted = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/run/.containerenv")
    surplus = [path for path in found["writable"] if not path.startswith(data) and path not in mounted]
    _require(not surplus, f"it can write {surplus}")
    _require(not found["setuid"], f"it has programs with the rights of others: {found['setuid']}")
    return ""


def _serves(image: Image, name: str, volume: str, workers: str) -> Iterator[str]:
    more = ("--workers", workers)
    chat = {"model": "simulated-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    with image.gateway(name, volume, *more):
        health = image.ask_engine("exec", name, "vllm-passthrough", "health")
        _require((health.returncode, health.stdout.strip()) == (0, "healthy"), f"health says {health.stderr}")
        yield "It is healthy"
        alias = f"checker-{secrets.token_hex(4)}"
        status, made = image.ask("POST", "/key/generate", {"key_alias": alias})
        _require(status == 200, f"a key cannot be made: {made}")
        key = made["key"]
        for _ in range(20):
            status, answer = image.ask("POST", "/v1/chat/completions", chat, key)
            _require(status == 200 and answer["usage"]["completion_tokens"] == 5, f"a chat gets {answer}")
        yield "20 chats were answered"
        # the ledger's rows are still in the spool
        killed = image.ask_engine("kill", "--signal=KILL", name)
        _require(killed.returncode == 0, killed.stderr)
    with image.gateway(name, volume, *more):
        _wait(lambda: _requests_of(image, key) == 20, lambda: f"the ledger has {_requests_of(image, key)} of 20")
        yield "After SIGKILL and in a new container, the key and all 20 requests are there"
        stream = _Stream(image, {**chat, "stream": True, "max_tokens": 150}, key)
        stream.start()
        _wait(lambda: stream.events > 3, lambda: f"a stream does not begin: {stream.told}")
        began = time.monotonic()
        stopped = image.ask_engine("stop", "--time=45", name)
        took = time.monotonic() - began
        _require(stopped.returncode == 0, stopped.stderr)
        stream.join(10)
        _require(stream.told.endswith("data: [DONE]\n\n"), f"the stream was cut: {stream.told[-200:]!r}")
        status_of = image.ask_engine("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        _require(status_of == "0", f"the exit status is {status_of}: {image.logs(name)[-2000:]}")
        yield f"A stop let a stream of {stream.events} events end, in {took:.1f} s, with status 0"
    with image.gateway(name, volume, *more):
        _wait(lambda: _requests_of(image, key) == 21, lambda: f"the ledger has {_requests_of(image, key)} of 21")
        yield "Its row is in the ledger"


def _requests_of(image: Image, key: str) -> int:
    status, report = image.ask("GET", f"/usage/report?interval=day&api_key={key}")
    _require(status == 200, f"a report fails: {report}")
    return int(report["totals"]["requests"])


class _Stream(threading.Thread):
    """Reads a streamed chat."""

    def __init__(self, image: Image, body: Any, key: str) -> None:
        super().__init__(daemon=True)
        self._image, self._body, self._key = image, body, key
        self.told = ""

    @property
    def events(self) -> int:
        return self.told.count("data: ")

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._image.port, timeout=30)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(self._body), headers)
        answer = connection.getresponse()
        try:
            while piece := answer.read1(65_536):
                self.told += piece.decode()
        except (OSError, http.client.HTTPException) as error:
            self.told += f"\n{error!r}"
        finally:
            connection.close()


def _wait(is_so: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    end = time.monotonic() + _START
    while not is_so():
        if time.monotonic() > end:
            raise CheckFailed(otherwise())
        time.sleep(0.05)


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise CheckFailed(otherwise.strip())


def _tell(what: str | None, more: str = "") -> None:
    print(f"ok      {(what or '').strip().rstrip('.')}{f': {more}' if more else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
