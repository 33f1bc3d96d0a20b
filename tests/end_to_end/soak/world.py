"""The gateway of the soak, what is beside it, and what it must not have left at the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.ledger_harness import rows_in
from tests.end_to_end.process_harness import MeasuredGateway
from tests.end_to_end.soak.abuse import CHAT, HONEST_BODY, KINDS, PATIENCE, Abuser
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, command, environment, wait_until

#: honest requests a second, their connections, and where they come from: no abuse comes from there
RATE, CONNECTIONS, SOURCE = 10.0, 6, "127.0.0.2"
#: people who abuse at a time, and seconds that each rests between two acts: the machine is shared with other tests
ABUSERS, REST = 6, 0.5
#: requests that an abuser may have in flight, and US dollars that each may spend
PARALLEL, BUDGET = 8, 1_000.0
#: US dollars for a token
PRICE = 1e-6
#: tokens by which the gateway may estimate a short prompt
SHORT = 1_000

#: gauges that say what is held, waits or is not done yet
_HOLDS = r"ledger_spool_rows|ledger_unsaved_rows|background_responses|\w*(?:held|holding|waiting|queued)\w*(?<!_total)"
HOLDING = re.compile(rf"^vllm_passthrough_({_HOLDS})(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", re.MULTILINE)


@contextmanager
def simulated(directory: Path) -> Iterator[int]:
    """Run vLLM's stand-in in a process of its own; give its port."""
    port = free_port()
    listen = f"--listen=tcp:{port}:interface={HOST}"
    options = ("--model=good", "--first-token=0.01", "--token-interval=0.002")
    with (directory / "simulator.log").open("wb") as log:
        process = subprocess.Popen(
            command("-n", "--pidfile=", "vllm-simulator", listen, *options),
            cwd=directory,
            env=environment(),
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: _answers(port))
            yield port
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        return ask(port, "/health")[0] == 200
    except OSError:
        return False


class SoakedGateway(MeasuredGateway):
    """The gateway, impatient, with a price on every token."""

    def __init__(self, directory: Path, good: int, broken: int) -> None:
        self.directory = directory
        entries = "".join(
            f"- {{model_name: {name}, litellm_params: {{model: hosted_vllm/{name}, api_base: 'http://{HOST}:{port}'}}}}\n"
            for name, port in (("good", good), ("broken", broken))
        )
        patience = (
            f"client_head: {PATIENCE}, client_body: {PATIENCE}, keep_alive: {PATIENCE}, idle: 4, response_head: 5"
        )
        prices = f"input_cost_per_token: {PRICE:f}, output_cost_per_token: {PRICE:f}"
        super().__init__(
            directory,
            broken,
            settings=f"model_list:\n{entries}",
            passthrough=f"timeouts: {{{patience}}}, default_prices: {{{prices}}}",
        )

    def administer(self, path: str, **body: object) -> Any:
        status, text = ask(self.port, path, MASTER_KEY, "POST", json.dumps(body))
        assert status == 200, text
        return json.loads(text)

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "gateway.log").read_text().splitlines()]

    def holding(self) -> dict[str, float]:
        """Return what the metrics say is held, waits or is not done yet."""
        found = HOLDING.findall(ask(self.port, "/metrics")[1])
        return {name: float(value) for name, value in found if float(value)}

    def places(self, key: str) -> int:
        """Return how many requests a key may have in flight now, by trying one more than it may ever have."""
        abuser = Abuser(self.port, key, 0)
        body = json.dumps({**HONEST_BODY, "max_tokens": 200, "min_tokens": 200, "ignore_eos": True}).encode()
        raw = abuser.head("POST", CHAT, "Content-Type: application/json", length=len(body)) + body
        held = [abuser.send(raw) for _ in range(PARALLEL + 1)]
        statuses = [abuser.status_of(each) for each in held]
        abuser.let_go()
        return statuses.count(200)

    def has_whole_budget(self, key: str) -> bool:
        """Return whether a request may reserve all that a key has not spent, and none more than that.

        What others reserved ends with their requests, a moment after they went.
        """
        with suppress(AssertionError):
            wait_until(lambda: self._may_reserve_all(key))
            return True
        return False

    def _may_reserve_all(self, key: str) -> bool:
        wait_until(lambda: not self.holding())
        spent = json.loads(ask(self.port, f"/key/info?key={key}", MASTER_KEY)[1])["info"]["spend"]
        left = int((BUDGET - spent) / PRICE)

        def may_use(tokens: int) -> bool:
            body = json.dumps({**HONEST_BODY, "model": "broken", "max_tokens": tokens})
            return ask(self.port, CHAT, key, "POST", body)[0] == 200

        return not may_use(left + SHORT) and may_use(left - SHORT)

    def spool_files(self) -> list[Path]:
        spool = self.directory / "twisted_vllm.sqlite3.spool"
        return [path for path in spool.rglob("*") if path.is_file()]

    def rows(self) -> list[dict[str, Any]]:
        return [row for found in rows_in(self.directory / "twisted_vllm.sqlite3").values() for row in found]


@attrs.frozen
class Honest:
    """What honest clients saw; times in seconds."""

    answers: int
    wrong: list[str]
    p50: float
    p99: float
    worst: float
    slowest: list[tuple[float, float]]


class HonestClient:
    """A handful of honest clients in a process of their own."""

    def __init__(self, port: int, key: str, seconds: float) -> None:
        requests = []
        for stream in (False, True):
            body = json.dumps({**HONEST_BODY, "stream": stream}).encode()
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            requests.append(head.encode() + body)
        script = Path(__file__).with_name("honest_client.py")
        arguments = [str(each) for each in (port, RATE, seconds, CONNECTIONS, SOURCE)]
        self.sent = int(RATE * seconds)
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )
        assert self._process.stdin is not None
        self._process.stdin.write(b"\0".join(requests))
        self._process.stdin.close()
        self._process.stdin = None

    @property
    def is_busy(self) -> bool:
        return self._process.poll() is None

    def result(self) -> Honest:
        """Wait for the end."""
        return Honest(**json.loads(self._process.communicate()[0]))

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.communicate()


class Crowd:
    """Abusers in threads. Each takes one kind after the other; together they begin with one round of all.

    Attributes:
        acts: how often each kind was done.
        failures: what each kind got that it should not get.
        times: when each act began and ended, in Unix seconds.
    """

    def __init__(self, port: int, keys: list[str], kinds: list[str], seed: int = 1) -> None:
        self.acts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.times: list[tuple[float, float, str]] = []
        self._stopping = threading.Event()
        self._abusers = [Abuser(port, key, seed + number) for number, key in enumerate(keys)]
        self._kinds = kinds
        self._first = kinds.copy()
        self._abusers[0].chance.shuffle(self._first)
        self._threads = [threading.Thread(target=self._run, args=(abuser,)) for abuser in self._abusers]
        for thread in self._threads:
            thread.start()

    def _run(self, abuser: Abuser) -> None:
        while not self._stopping.is_set():
            try:
                name = self._first.pop()
            except IndexError:
                name = abuser.chance.choice(self._kinds)
            began = time.time()
            try:
                KINDS[name](abuser)
            except Exception as error:
                self.failures.setdefault(name, f"{type(error).__name__}: {error}"[:300])
            abuser.let_go()
            self.acts[name] += 1
            self.times.append((began, time.time(), name))
            self._stopping.wait(REST)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def during(self, moment: float, seconds: float) -> list[str]:
        """Return what was begun in the seconds before a moment, or a little earlier."""
        return [name for began, _, name in self.times if moment - seconds - 1.0 <= began <= moment]
