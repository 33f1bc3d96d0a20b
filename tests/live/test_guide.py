"""The commands of LiteLLM's guide to its vLLM pass-through, as they are written there, against real servers.

https://docs.litellm.ai/docs/pass_through/vllm: its trailing backslashes and its trailing comma are kept. Only the
address and the keys are put in.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.live.live_gateway import PATIENCE, LiveGateway, ask, json_request

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's commands need curl")

METRICS_WITH_A_KEY = r"""curl -L -X GET 'http://0.0.0.0:4000/vllm/metrics' \
-H 'Content-Type: application/json' \
-H 'Authorization: Bearer sk-1234' \
"""

SCORE = r"""curl -X 'POST' \
  'http://0.0.0.0:4000/vllm/score' \
  -H 'accept: application/json' \
  -H 'Content-Type: application/json' \
  -d '{
  "model": "my-vllm-model",
  "encoding_format": "float",
  "text_1": "What is the capital of France?",
  "text_2": "The capital of France is Paris."
}'
"""

METRICS = r"""curl -L -X GET 'http://0.0.0.0:4000/vllm/metrics' \
-H 'Content-Type: application/json' \
-H 'Authorization: Bearer $LITELLM_VIRTUAL_KEY' \
"""

METRICS_DIRECTLY = r"""curl -L -X GET 'https://my-vllm-server.com/metrics' \
-H 'Content-Type: application/json' \
"""

CHAT = r"""curl -L -X POST 'http://0.0.0.0:4000/vllm/chat/completions' \
-H 'Content-Type: application/json' \
-H 'Authorization: Bearer $LITELLM_VIRTUAL_KEY' \
-d '{
    "messages": [
        {
            "role": "user",
            "content": "I am going to Paris, what should I see?"
        }
    ],
    "max_tokens": 2048,
    "temperature": 0.8,
    "top_p": 0.1,
    "model": "qwen2.5-7b-instruct",
}'
"""

CHAT_DIRECTLY = r"""curl -L -X POST 'https://my-vllm-server.com/chat/completions' \
-H 'Content-Type: application/json' \
-d '{
    "messages": [
        {
            "role": "user",
            "content": "I am going to Paris, what should I see?"
        }
    ],
    "max_tokens": 2048,
    "temperature": 0.8,
    "top_p": 0.1,
    "model": "qwen2.5-7b-instruct",
}'
"""

GENERATE_A_KEY = r"""curl -X POST 'http://0.0.0.0:4000/key/generate' \
-H 'Authorization: Bearer sk-1234' \
-H 'Content-Type: application/json' \
-d '{}'
"""

CHAT_WITH_THE_KEY = r"""curl -L -X POST 'http://0.0.0.0:4000/vllm/chat/completions' \
-H 'Content-Type: application/json' \
-H 'Authorization: Bearer sk-1234ewknldferwedojwojw' \
  --data '{
    "messages": [
        {
            "role": "user",
            "content": "I am going to Paris, what should I see?"
        }
    ],
    "max_tokens": 2048,
    "temperature": 0.8,
    "top_p": 0.1,
    "model": "qwen2.5-7b-instruct",
}'
"""

GUIDES_ADDRESS = "http://0.0.0.0:4000"
GUIDES_SERVER = "https://my-vllm-server.com"
GUIDES_MASTER_KEY = "sk-1234"
GUIDES_NEW_KEY = "sk-1234ewknldferwedojwojw"
GUIDES_VARIABLE = "$LITELLM_VIRTUAL_KEY"


@attrs.frozen
class Printed:
    """What a command left: the HTTP status, and standard output byte for byte."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Paste = Callable[..., Printed]


@pytest.fixture
def paste(tmp_path: Path) -> Paste:
    """Pastes a command into a shell, with these texts of the guide replaced; curl is told of its options by a file."""
    (tmp_path / ".curlrc").write_text('silent\nwrite-out = "%{stderr}%{http_code}"\n')
    path = Path(shutil.which("curl") or "").parent

    def run(command: str, *replacements: tuple[str, str | None]) -> Printed:
        for text, value in replacements:
            assert text in command
            assert value is not None
            command = command.replace(text, value)
        done = subprocess.run(
            ["bash", "-c", command],
            env={"PATH": f"{path}:/usr/bin:/bin", "CURL_HOME": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done
        return Printed(int(done.stderr), done.stdout)

    return run


def without_the_comma(command: str) -> str:
    """Return the command with the one comma removed that JSON does not allow."""
    corrected = command.replace('"qwen2.5-7b-instruct",\n}', '"qwen2.5-7b-instruct"\n}')
    assert len(corrected) == len(command) - 1
    return corrected


def names_of_metrics(text: bytes) -> set[bytes]:
    return {line.split(b" ")[2] for line in text.splitlines() if line.startswith(b"# TYPE vllm:")}


@pytest.mark.parametrize("command", [METRICS_WITH_A_KEY, METRICS], ids=["first", "example 1"])
def test_the_metrics_are_the_server_s_own(
    command: str, gateway: LiveGateway, vllm_url: str, virtual_key: str, paste: Paste
) -> None:
    key = (GUIDES_MASTER_KEY, gateway.master_key) if GUIDES_MASTER_KEY in command else (GUIDES_VARIABLE, virtual_key)
    printed = paste(command, (GUIDES_ADDRESS, gateway.url), key)
    directly = paste(METRICS_DIRECTLY, (GUIDES_SERVER, vllm_url))
    assert (printed.status, directly.status) == (200, 200)
    assert b"vllm:num_requests_running" in printed.body
    assert names_of_metrics(printed.body) == names_of_metrics(directly.body)


@pytest.mark.parametrize("command", [METRICS_WITH_A_KEY, METRICS], ids=["first", "example 1"])
def test_an_open_gateway_takes_the_metrics_commands_as_they_are(
    command: str, open_gateway: LiveGateway, paste: Paste
) -> None:
    printed = paste(command, (GUIDES_ADDRESS, open_gateway.url))
    assert printed.status == 200
    assert b"vllm:num_requests_running" in printed.body


@pytest.mark.parametrize("header", ["", "  -H 'Authorization: bearer anything' \\\n"], ids=["as written", "bearer"])
def test_an_open_gateway_scores(header: str, open_score_gateway: LiveGateway, score_url: str, paste: Paste) -> None:
    command = SCORE.replace("  -d '{", header + "  -d '{")
    printed = paste(command, (GUIDES_ADDRESS, open_score_gateway.url))
    assert printed.status == 200
    body = {"text_1": "What is the capital of France?", "text_2": "The capital of France is Paris."}
    directly = ask(score_url, "POST", "/score", **json_request(body))
    assert printed.json["object"] == "list"
    assert printed.json["data"] == directly.json["data"]
    assert printed.json["usage"] == directly.json["usage"]
    assert isinstance(printed.json["data"][0]["score"], float)


@pytest.mark.usefixtures("score_url")
def test_a_gateway_with_keys_scores_for_a_key_and_for_nobody_else(
    gateway: LiveGateway, virtual_key: str, paste: Paste
) -> None:
    refused = paste(SCORE, (GUIDES_ADDRESS, gateway.url))
    assert (refused.status, refused.json["error"]["code"]) == (401, "missing_api_key")
    command = SCORE.replace("  -d '{", f"  -H 'Authorization: bearer {virtual_key}' \\\n  -d '{{")
    printed = paste(command, (GUIDES_ADDRESS, gateway.url))
    assert (printed.status, printed.json["object"]) == (200, "list")


def test_the_guide_s_trailing_comma_is_answered_by_vllm_itself(
    gateway: LiveGateway, vllm_url: str, virtual_key: str, paste: Paste
) -> None:
    printed = paste(CHAT, (GUIDES_ADDRESS, gateway.url), (GUIDES_VARIABLE, virtual_key))
    # vLLM has this route below /v1 only
    directly = paste(CHAT_DIRECTLY, (GUIDES_SERVER, f"{vllm_url}/v1"))
    assert (printed.status, directly.status) == (400, 400)
    assert printed.body == directly.body
    assert b"JSON decode error" in printed.body


def test_the_chat_example_works_once_its_comma_is_gone(gateway: LiveGateway, virtual_key: str, paste: Paste) -> None:
    printed = paste(without_the_comma(CHAT), (GUIDES_ADDRESS, gateway.url), (GUIDES_VARIABLE, virtual_key))
    assert printed.status == 200
    assert printed.json["object"] == "chat.completion"
    assert printed.json["usage"]["completion_tokens"] > 0


def test_a_virtual_key_is_made_and_used(gateway: LiveGateway, vllm_url: str, paste: Paste) -> None:
    made = paste(GENERATE_A_KEY, (GUIDES_ADDRESS, gateway.url), (GUIDES_MASTER_KEY, gateway.master_key))
    assert made.status == 200
    key = made.json["key"]
    gateway.secrets.add(key)
    assert key.startswith("sk-")
    replacements = (GUIDES_ADDRESS, gateway.url), (GUIDES_NEW_KEY, key)
    directly = paste(CHAT_DIRECTLY, (GUIDES_SERVER, f"{vllm_url}/v1"))
    as_written = paste(CHAT_WITH_THE_KEY, *replacements)
    assert (as_written.status, as_written.body) == (400, directly.body)
    corrected = paste(without_the_comma(CHAT_WITH_THE_KEY), *replacements)
    assert (corrected.status, corrected.json["object"]) == (200, "chat.completion")


def test_the_guide_s_own_keys_open_nothing(gateway: LiveGateway, paste: Paste) -> None:
    for command in (METRICS_WITH_A_KEY, METRICS, GENERATE_A_KEY, CHAT_WITH_THE_KEY):
        printed = paste(command, (GUIDES_ADDRESS, gateway.url))
        assert (printed.status, printed.json["error"]["code"]) == (401, "invalid_api_key")
