"""The simulator on real sockets, and on twistd's command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.application.service import IServiceMaker
from twisted.internet.error import CannotListenError
from twisted.plugin import IPlugin
from twisted.python.usage import UsageError
from twisted.web.client import Agent, ResponseFailed
from zope.interface.verify import verifyObject

from twisted_vllm.config.secret import Secret
from twisted_vllm.simulator import tap
from twisted_vllm.simulator.service import SimulatorService, simulator_service
from twisted_vllm.simulator.settings import SimulatorSettings

FAST = SimulatorSettings(token_interval=0, first_token=0)


@pytest.fixture
def service(reactor: Any) -> Iterator[SimulatorService]:
    made = simulator_service(reactor, FAST)
    made.startService()
    yield made
    pytest_twisted.blockon(made.stopService())


async def ask(reactor: Any, service: SimulatorService, **options: Any) -> Any:
    url = f"http://127.0.0.1:{service.port}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, **options.pop("body", {})}
    return await treq.post(url, json=body, agent=Agent(reactor), unbuffered=True, **options)


@pytest_twisted.ensureDeferred
async def test_it_answers_on_the_port_that_it_tells(reactor: Any, service: SimulatorService) -> None:
    response = await ask(reactor, service, body={"max_tokens": 4})
    assert (await response.json())["choices"][0]["message"]["content"] == "This text is simulated:"
    assert response.headers.getRawHeaders("server") == ["twisted-vllm-simulator"]


@pytest_twisted.ensureDeferred
async def test_a_long_stream_at_full_speed_arrives_whole(reactor: Any, service: SimulatorService) -> None:
    response = await ask(reactor, service, body={"max_tokens": 5000, "stream": True})
    body = await response.content()
    assert body.count(b"data: ") == 5002
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("fault", ["truncate", "close-mid-body", "bad-chunk"])
@pytest_twisted.ensureDeferred
async def test_a_broken_answer_breaks_on_a_real_connection(reactor: Any, service: SimulatorService, fault: str) -> None:
    response = await ask(reactor, service, body={"max_tokens": 10, "stream": True}, headers={"x-simulate": fault})
    assert response.code == 200
    pieces: list[bytes] = []
    with pytest.raises(ResponseFailed):
        await treq.collect(response, pieces.append)
    assert b"".join(pieces).count(b"data: ") == 6


@pytest_twisted.ensureDeferred
async def test_stopping_ends_the_connections_and_what_runs_on_them(reactor: Any) -> None:
    service = simulator_service(reactor, SimulatorSettings(token_interval=60, first_token=0))
    service.startService()
    response = await ask(reactor, service, body={"max_tokens": 10, "stream": True})
    await service.stopService()
    with pytest.raises(ResponseFailed):
        await response.content()
    with pytest.raises(RuntimeError, match="start the service first"):
        _ = service.port


def test_a_taken_address_stops_the_start(reactor: Any, service: SimulatorService) -> None:
    listen = ["tcp:0:interface=127.0.0.1", f"tcp:{service.port}:interface=127.0.0.1"]
    second = simulator_service(reactor, FAST, listen)
    with pytest.raises(CannotListenError):
        second.privilegedStartService()
    assert second.ports == []


def parsed(*arguments: str) -> tap.Options:
    options = tap.Options()
    options.parseOptions(list(arguments))
    return options


def test_without_options_it_is_one_model_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    options = parsed()
    assert options.listen == ["tcp:8000:interface=127.0.0.1"]
    assert options.settings() == SimulatorSettings()


def test_options_say_what_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    options = parsed(
        *("--listen", "tcp:1", "--listen", "unix:/tmp/x", "--model", "a", "--model", "b", "--model", "a"),
        *("--token-interval", "0", "--first-token", "1.5"),
    )
    assert options.listen == ["tcp:1", "unix:/tmp/x"]
    assert options.settings() == SimulatorSettings(("a", "b"), 0, 1.5, Secret("from-environment"))
    assert parsed("--api-key", "mine").settings().api_key == Secret("mine")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--listen", "8000"], "write a Twisted endpoint, such as tcp:8000"),
        (["--listen", "tcp:port"], "write a Twisted endpoint"),
        (["--listen", "tcp"], "write a Twisted endpoint"),
        (["--listen", "ssl:443:privateKey=/nowhere"], "write a Twisted endpoint"),
        (["--token-interval", "fast"], "'fast' is not a number of seconds"),
        (["--first-token", "-1"], "'-1' is not a number of seconds"),
        (["--model", ""], "the name is empty"),
        (["--api-key", ""], "the key is empty"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(arguments: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parsed(*arguments)


def test_the_help_tells_of_the_key_and_the_faults() -> None:
    text = tap.Options().getUsage(100)
    for word in ("VLLM_API_KEY", "x-simulate", "hang-mid-body", "--token-interval"):
        assert word in text


def test_twistd_makes_the_service(reactor: Any) -> None:
    assert isinstance(tap.makeService(parsed("--listen", "tcp:0:interface=127.0.0.1")), SimulatorService)


def test_twistd_finds_the_plugin() -> None:
    from twisted.plugins import vllm_simulator

    maker = vllm_simulator.vllm_simulator
    assert verifyObject(IServiceMaker, maker)
    assert verifyObject(IPlugin, maker)
    assert (maker.tapname, maker.module) == ("vllm-simulator", "twisted_vllm.simulator.tap")
