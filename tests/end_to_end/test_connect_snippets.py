"""What the console gives to copy works: each text is run as it is, against a gateway with the simulator."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import Foreground, ask
from twisted_vllm.admin.web.snippets import CLIENTS, Part, Target, client_named

#: seconds that a text may take
PATIENCE = 60
#: what shells and Python would take apart if it were not quoted
MODEL = 'it\'s a "$(model)" `x`'
MASTER_KEY = "sk-master-of-snippets-0123"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A gateway whose model has a name that is hard to quote, and a new key."""
    directory = tmp_path_factory.mktemp("snippets")
    with Foreground(directory, free_port(), "--quickstart", LITELLM_MASTER_KEY=MASTER_KEY) as gateway:
        base = f"http://127.0.0.1:{gateway.port}"
        status, made = ask(
            gateway.port, "/key/generate", MASTER_KEY, "POST", json.dumps({"aliases": {MODEL: "simulated-model"}})
        )
        assert status == 200, made
        yield Target(base, json.loads(made)["key"], MODEL)


def part_of(client: str, target: Target, label: str) -> Part:
    [found] = [each for each in client_named(client).parts(target) if each.label == label]
    return found


def shell(text: str, directory: Path, **variables: str) -> str:
    """Run a text in a shell without anybody's settings; return what it printed."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **variables}
    done = subprocess.run(
        ["sh", "-ec", text],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(text: str, directory: Path) -> str:
    (directory / "program.py").write_text(text)
    return shell(f"{shlex.quote(sys.executable)} program.py", directory)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed (the extra `live`)")


def test_curl_lists_models(target: Target, tmp_path: Path) -> None:
    found = json.loads(shell(part_of("curl", target, "The models that the key may use").text, tmp_path))
    assert "simulated-model" in [each["id"] for each in found["data"]]


def test_curl_streams_an_answer(target: Target, tmp_path: Path) -> None:
    said = shell(part_of("curl", target, "A streamed answer").text, tmp_path)
    events = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    "client",
    [
        pytest.param("openai", marks=needs("openai")),
        pytest.param("anthropic", marks=needs("anthropic")),
        pytest.param("langchain", marks=needs("langchain_openai")),
    ],
)
def test_a_library_answers(target: Target, tmp_path: Path, client: str) -> None:
    assert "imulat" in python(part_of(client, target, "Python").text, tmp_path)


@needs("anthropic")
def test_claude_code_s_variables_lead_anthropic_s_client_here(target: Target, tmp_path: Path) -> None:
    """Claude Code reads the variables that Anthropic's own client reads, and those of models."""
    text = part_of("claude-code", target, "In the shell").text
    # in place of Claude Code: its client, with its credential and its model
    program = (
        "import os, anthropic\n"
        "model = os.environ['ANTHROPIC_MODEL']\n"
        "assert all(os.environ[f'ANTHROPIC_DEFAULT_{each}_MODEL'] == model for each in ('OPUS', 'SONNET', 'HAIKU'))\n"
        "with anthropic.Anthropic().messages.stream(\n"
        "    model=model, max_tokens=20, messages=[{'role': 'user', 'content': 'Hello'}]\n"
        ") as stream:\n"
        "    print(''.join(stream.text_stream))\n"
    )
    (tmp_path / "claude").write_text(f"#!{sys.executable}\n{program}")
    (tmp_path / "claude").chmod(0o755)
    said = shell(text, tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", ANTHROPIC_API_KEY="of-another-login")
    assert "imulat" in said
    kept = json.loads(part_of("claude-code", target, "Or for good, in ~/.claude/settings.json").text)["env"]
    assert (kept["ANTHROPIC_BASE_URL"], kept["ANTHROPIC_AUTH_TOKEN"]) == (target.base, target.key)


def test_codex_finds_the_responses_api(target: Target, tmp_path: Path) -> None:
    found = tomllib.loads(part_of("codex", target, "In ~/.codex/config.toml").text)
    provider = found["model_providers"][found["model_provider"]]
    assert (found["model"], provider["wire_api"]) == (target.model, "responses")
    # in place of Codex: what it sends, with the key of the variable that the file names
    body = json.dumps({"model": found["model"], "input": "Hello", "stream": True})
    exported = part_of("codex", target, "In the shell").text.removesuffix("\ncodex")
    said = shell(
        f"{exported}\ncurl -sN {shlex.quote(provider['base_url'] + '/responses')} "
        f'-H "Authorization: Bearer ${provider["env_key"]}" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}",
        tmp_path,
    )
    assert "event: response.completed" in said


def test_open_webui_lists_models_and_chats(target: Target, tmp_path: Path) -> None:
    text = part_of("open-webui", target, "Start it").text
    words = shlex.split(text)
    given = dict(words[index + 1].split("=", 1) for index, word in enumerate(words) if word == "-e")
    base, key = given["OPENAI_API_BASE_URL"], given["OPENAI_API_KEY"]
    authorization = shlex.quote(f"Authorization: Bearer {key}")
    models = json.loads(shell(f"curl -s {base}/models -H {authorization}", tmp_path))
    assert models["data"]
    body = shlex.quote(json.dumps({"model": target.model, "messages": [{"role": "user", "content": "Hello"}]}))
    answer = shell(
        f"curl -s {base}/chat/completions -H {authorization} -H 'Content-Type: application/json' -d {body}", tmp_path
    )
    assert json.loads(answer)["choices"]


def test_every_client_is_tried() -> None:
    text = Path(__file__).read_text()
    tried = set(re.findall(r'(?:part_of\(|pytest\.param\()"([\w-]+)"', text))
    assert tried == {each.id for each in CLIENTS}
