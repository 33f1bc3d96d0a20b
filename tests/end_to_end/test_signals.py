"""SIGTERM, and a second signal, to a gateway with open streams."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.threads import deferToThread

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST, Wire, parse_answer, request_bytes
from tests.end_to_end.messages import STREAM
from tests.end_to_end.twistd_harness import MASTER_KEY, Foreground
from twisted_vllm.simulator.service import simulator_service
from twisted_vllm.simulator.settings import SimulatorSettings

STREAMS = 200
CHAT = {
    "model": "simulated-model",
    "messages": [{"role": "user", "content": "go on"}],
    "stream": True,
    "max_tokens": 20,
    "ignore_eos": True,
}


async def connect(reactor: Any, port: int) -> Wire:
    client = Wire(reactor)
    await connectProtocol(TCP4ClientEndpoint(reactor, HOST, port), client)
    return client


def in_front_of(directory: Path, server_port: int) -> Foreground:
    return Foreground(
        directory, free_port(), LITELLM_MASTER_KEY=MASTER_KEY, HOSTED_VLLM_API_BASE=f"http://{HOST}:{server_port}"
    )


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest_twisted.ensureDeferred
async def test_a_second_signal_cuts_an_endless_stream_and_the_process_ends_well(
    stand_in: Any, reactor: Any, tmp_path: Path, second: signal.Signals
) -> None:
    server = stand_in()
    gateway = in_front_of(tmp_path, server.port)
    await deferToThread(gateway.__enter__)
    try:
        client = await connect(reactor, gateway.port)
        client.send(request_bytes("POST", "/vllm/v1/completions", MASTER_KEY, body={"model": "m"}))
        upstream = await server.connection()
        await upstream.until_received(b'"m"}')
        upstream.send(STREAM)
        await client.until_received(b"abc")
        idle = await connect(reactor, gateway.port)
        gateway.signal()
        # the drain has begun, and the stream goes on in it
        await idle.until_lost()
        upstream.send(b"3\r\ndef\r\n")
        await client.until_received(b"def")
        assert gateway.runs
        gateway.signal(second)
        await client.until_lost()
        await upstream.until_lost()
        assert not client.received.endswith(b"0\r\n\r\n")
        assert await deferToThread(gateway.wait) == 0
    finally:
        await deferToThread(gateway.__exit__)
    assert gateway.stderr == ""
    assert f"Received {second.name} again" in gateway.stdout
    assert "Cut 1 connections" in gateway.stdout


@pytest_twisted.ensureDeferred
async def test_no_stream_is_lost_when_it_ends(reactor: Any, tmp_path: Path) -> None:
    simulator = simulator_service(reactor, SimulatorSettings(first_token=0.05, token_interval=0.1))
    simulator.startService()
    gateway = in_front_of(tmp_path, simulator.port)
    await deferToThread(gateway.__enter__)
    try:
        clients = [await connect(reactor, gateway.port) for _ in range(STREAMS)]
        for client in clients:
            client.send(request_bytes("POST", "/vllm/v1/chat/completions", MASTER_KEY, body=CHAT))
        await all_of(client.until_received(b"data: ") for client in clients)
        running = [client for client in clients if b"[DONE]" not in client.received]
        gateway.signal()
        await all_of(client.until_lost() for client in clients)
        assert await deferToThread(gateway.wait) == 0
    finally:
        await deferToThread(gateway.__exit__)
        await simulator.stopService()
    assert len(running) == STREAMS
    for client in clients:
        assert client.received.endswith(b"\r\n0\r\n\r\n")
        assert parse_answer(client.received).body.endswith(b"data: [DONE]\n\n")
    lines = [line for line in gateway.stdout.splitlines() if '"route":"/v1/chat/completions"' in line]
    assert len(lines) == STREAMS
    assert all('"outcome":"completed"' in line for line in lines)
    assert "Cut " not in gateway.stdout


def all_of(waiting: Any) -> Deferred[Any]:
    return gatherResults(list(waiting), consumeErrors=True)
