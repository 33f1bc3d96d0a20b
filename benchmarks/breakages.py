"""What clients notice when one of two servers breaks: ``python -m benchmarks.breakages [--clients 100] [CASE ...]``.

For each case two servers and a gateway are started, so many clients ask all the time, half of them for streams, and
after some seconds one server breaks: killed, frozen, answering 503, or slow. Later it works again. Told are the answers
that were no success, streams that broke after they had begun, and the longest wait for a first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.free_ports import free_port

#: seconds before the fault, with it, and after it
BEFORE, DURING, AFTER = 4.0, 25.0, 8.0
#: seconds after which a client gives up
PATIENCE = 90.0
CASES = ("kill", "freeze", "status 503", "slow 2")


class Tally:
    """What the clients noticed.

    Attributes:
        statuses: the answers by status; 0 stands for none.
        broken: the streams that broke after they had begun.
        firsts: the seconds until the first byte of each answer.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.firsts: list[float] = []

    def same(self) -> Tally:
        """Return itself."""
        return self

    def __str__(self) -> str:
        ordered = sorted(self.firsts) or [0.0]
        bad = {status: count for status, count in sorted(self.statuses.items()) if status != 200}
        at = ordered[int(len(ordered) * 0.99)] if len(ordered) > 1 else ordered[0]
        return (
            f"{self.statuses.total()} answers, failed {bad or 0}, streams broken {self.broken}, "
            f"first byte p99 {at:.2f} s, longest {ordered[-1]:.2f} s"
        )


async def ask(port: int, stream: bool, number: int, current: Callable[[], Tally]) -> None:
    """Send one request, and count what came of it at its end."""
    content = f"client {number}: tell me a story"
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": content}]}).encode()
    began = time.monotonic()
    status, broken, first = 0, False, 0.0
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Authorization: Bearer sk-breakages-key\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status == 200 and stream:
                began_with = await reader.read(65_536)
                first = time.monotonic() - began
                broken = b"data: [DONE]" not in began_with + await reader.read(-1)
            else:
                first = time.monotonic() - began
                await reader.read(-1)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        broken = status == 200
    finally:
        if writer is not None:
            writer.close()
    tally = current()
    tally.statuses[status] += 1
    tally.broken += broken
    tally.firsts.append(first or time.monotonic() - began)


def start_server(port: int) -> subprocess.Popen[bytes]:
    """Start a server that can be broken, and wait until it listens."""
    command = [sys.executable, "-m", "benchmarks.breakable_server", str(port)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def start_gateway(directory: Path, port: int, servers: list[int], settings: str) -> subprocess.Popen[bytes]:
    """Start a gateway in front of two servers of one model."""
    entries = "".join(
        f"  - {{model_name: m, litellm_params: {{model: hosted_vllm/m, api_base: 'http://127.0.0.1:{server}'}}}}\n"
        for server in servers
    )
    config = directory / "config.yaml"
    log = "passthrough: {log: {file: gateway.log}, ledger: {enabled: true}}\n"
    config.write_text(f"model_list:\n{entries}general_settings: {{master_key: sk-breakages-key}}\n{log}{settings}\n")
    command = [str(Path(sys.executable).with_name("twistd")), "-n", "vllm-passthrough", "--config", str(config)]
    command += ["--listen", f"tcp:{port}:interface=127.0.0.1"]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def run(case: str, clients: int, settings: str) -> Tally:
    """Run one case; return what the clients noticed from the fault on."""
    ports, port = [free_port(), free_port()], free_port()
    servers = [start_server(each) for each in ports]
    tally = Tally()
    with tempfile.TemporaryDirectory() as directory:
        gateway = start_gateway(Path(directory), port, ports, settings)
        try:
            await _until_ready(port)
            current = [Tally()]
            stopping = asyncio.Event()

            async def client(number: int) -> None:
                while not stopping.is_set():
                    await ask(port, number % 2 == 0, number, lambda: current[0])

            tasks = [asyncio.create_task(client(number)) for number in range(clients)]
            await asyncio.sleep(BEFORE)
            current[0] = tally
            broken = servers[1]
            _break(broken, case)
            await asyncio.sleep(DURING)
            if case == "kill":
                broken.wait()
                servers[1] = await asyncio.to_thread(start_server, ports[1])
            else:
                _mend(broken, case)
            await asyncio.sleep(AFTER)
            stopping.set()
            await asyncio.gather(*tasks)
        finally:
            for process in (gateway, *servers):
                process.kill()
                process.wait()
    return tally


def _break(server: subprocess.Popen[bytes], case: str) -> None:
    if case == "kill":
        server.kill()
    elif case == "freeze":
        server.send_signal(signal.SIGSTOP)
    else:
        _tell(server, case)


def _mend(server: subprocess.Popen[bytes], case: str) -> None:
    if case == "freeze":
        server.send_signal(signal.SIGCONT)
    else:
        _tell(server, "ok")


def _tell(server: subprocess.Popen[bytes], line: str) -> None:
    assert server.stdin is not None
    server.stdin.write(line.encode() + b"\n")
    server.stdin.flush()


async def _until_ready(port: int) -> None:
    for _ in range(200):
        tally = Tally()
        await ask(port, False, 0, partial(Tally.same, tally))
        if tally.statuses[200]:
            return
        await asyncio.sleep(0.1)
    raise SystemExit("the gateway did not start")


def main() -> None:
    """Run the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--settings", default="", help="further lines of the gateway's file")
    parser.add_argument("cases", nargs="*", default=CASES)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    for case in options.cases:
        tally = asyncio.run(run(case, options.clients, options.settings))
        print(f"{case:12} {tally}", flush=True)


if __name__ == "__main__":
    main()
