"""Gateways in front of the vLLM servers that the environment names.

``VLLM_BASE_URL``: a vLLM with a chat model; without it every test here is skipped. Some tests need more of it:
``--enable-prompt-tokens-details``, ``--enable-scale-out``, or ``VLLM_ENABLE_COHERE_API=1`` and the package cohere.
``VLLM_INTERVAL_URL``: a vLLM with a chat model, started with ``--stream-interval 10``.
``VLLM_SCORE_URL``: a vLLM with a cross-encoder, for scores.
``VLLM_EMBED_URL``: a vLLM with a model for embeddings: a chat model serves, with ``--runner pooling --convert embed``.
``VLLM_AUDIO_URL``: a vLLM with a Whisper model, such as `make_speech_model` makes, and soundfile and av beside it.
``VLLM_PYTHON``: the Python of a vLLM 0.32, whose readers of bodies are compared with ours; this needs no server.
``VLLM_KEYED_URL``, ``VLLM_KEYED_KEY``: a vLLM with a chat model, started with ``--api-key VLLM_KEYED_KEY``.
``VLLM_EVENTS_URL``: a vLLM with a chat model, started with ``--kv-events-config`` and a ``replay_endpoint`` in it.
``VLLM_STORE_URL``: a vLLM with a chat model and ``VLLM_ENABLE_RESPONSES_API_STORE=1``.
``VLLM_STORE_URL_2``: another of the same model. Then both have ``VLLM_SERVER_DEV_MODE=1``.
``VLLM_TRACED_URL``: a vLLM with a chat model and ``OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf``, started with
``--otlp-traces-endpoint http://127.0.0.1:4318/v1/traces``, or with another port, which ``VLLM_TRACES_PORT`` then names.
``PHOENIX_BIN``, ``MLFLOW_BIN``: the programs of real receivers of traces, which `receivers` installs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.live_gateway import LiveGateway, new_secret
from tests.live.live_servers import (
    ALIAS,
    GUIDE_CHAT_MODEL,
    GUIDE_SCORE_MODEL,
    StartGateway,
    model_list,
    served_model,
    server_from,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all tests of this directory without a vLLM."""
    if os.environ.get("VLLM_BASE_URL"):
        return
    reason = "no vLLM to test against: set VLLM_BASE_URL, as in http://127.0.0.1:8000"
    for item in items:
        # these need vLLM's code, not a server
        if Path(__file__).parent in item.path.parents and "oracle" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """Starts gateways; at the end each must stop well and have written no secret."""
    started: list[LiveGateway] = []

    def start(config: str | None = None, **variables: str) -> LiveGateway:
        started.append(LiveGateway(tmp_path_factory.mktemp("gateway"), config=config, **variables))
        return started[-1]

    yield start
    problems = []
    for gateway in started:
        try:
            gateway.check_after_stop()
        except (AssertionError, subprocess.TimeoutExpired) as problem:
            problems.append(str(problem))
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(scope="session")
def vllm_url() -> str:
    """The vLLM with a chat model."""
    return server_from("VLLM_BASE_URL", "this test needs a vLLM with a chat model")


@pytest.fixture(scope="session")
def chat_model(vllm_url: str) -> str:
    """What the server calls its chat model."""
    return served_model(vllm_url)


@pytest.fixture(scope="session")
def score_url() -> str:
    """The vLLM with a cross-encoder."""
    return server_from("VLLM_SCORE_URL", "this test needs a vLLM with a cross-encoder")


@pytest.fixture(scope="session")
def score_model(score_url: str) -> str:
    """What the server calls its cross-encoder."""
    return served_model(score_url)


@pytest.fixture(scope="session")
def gateway(start_gateway: StartGateway, vllm_url: str, chat_model: str) -> LiveGateway:
    """With a configuration file, a master key, and all servers that the environment names."""
    rows = [(GUIDE_CHAT_MODEL, chat_model, vllm_url), (chat_model, chat_model, vllm_url), (ALIAS, chat_model, vllm_url)]
    if os.environ.get("VLLM_SCORE_URL"):
        url = server_from("VLLM_SCORE_URL", "")
        served = served_model(url)
        rows += [(GUIDE_SCORE_MODEL, served, url), (served, served, url)]
    config = json.loads(model_list(rows))
    config["general_settings"] = {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    config["passthrough"]["log"]["file"] = "gateway.log"
    return start_gateway(json.dumps(config, indent=2), LITELLM_MASTER_KEY=new_secret())


@pytest.fixture(scope="session")
def open_gateway(start_gateway: StartGateway, vllm_url: str) -> LiveGateway:
    """Without a key or a file: it knows the server's address alone."""
    return start_gateway(HOSTED_VLLM_API_BASE=vllm_url)


@pytest.fixture(scope="session")
def open_score_gateway(start_gateway: StartGateway, score_url: str, score_model: str) -> LiveGateway:
    """The guide's quick start: a file with a score model, no key."""
    return start_gateway(model_list([(GUIDE_SCORE_MODEL, score_model, score_url)]))


@pytest.fixture
def virtual_key(gateway: LiveGateway) -> str:
    """A new virtual key without limits."""
    return gateway.make_key()
