"""What a client needs to use this gateway, ready to copy. The console shows it, ``docs/connect.md`` is written from it.

``python -m twisted_vllm.admin.web.snippets`` at the root of the repository writes that page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

#: in place of a key that nobody knows any more
PLACEHOLDER = "YOUR_KEY"
#: in place of a model that is not known
NO_MODEL = "MODEL"

#: the page that is written
PAGE = "docs/connect.md"


@attrs.frozen
class Target:
    """What a client is told.

    Attributes:
        base: where the routes begin: the address of the gateway, and ``/vllm`` where there are none at its root.
        key: the key, or `PLACEHOLDER`.
        model: the model.
    """

    base: str
    key: str = PLACEHOLDER
    model: str = NO_MODEL


@attrs.frozen
class Part:
    """A text to copy.

    Attributes:
        label: where it belongs.
        text: the text.
        language: its language, for the documentation.
    """

    label: str
    text: str
    language: str = "sh"


@attrs.frozen
class Client:
    """A program or a library.

    Attributes:
        id: its name in addresses.
        name: its name for people.
        parts: returns what is copied.
        note: what one should know; empty if that is all.
        link: its own documentation.
    """

    id: str
    name: str
    parts: Callable[[Target], Sequence[Part]]
    note: str = ""
    link: str = ""


def _sh(text: str) -> str:
    """Return a text as one word of a shell, whatever it holds."""
    return shlex.quote(text)


def _text(text: str) -> str:
    """Return a text as a literal that JSON, Python and TOML read alike: they differ in pairs of surrogates and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _curl(at: Target) -> Sequence[Part]:
    body = json.dumps({"model": at.model, "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    return (
        Part(
            "The models that the key may use",
            f"curl {_sh(at.base + '/v1/models')} -H {_sh(f'Authorization: Bearer {at.key}')}",
        ),
        Part(
            "A streamed answer",
            f"curl -N {_sh(at.base + '/v1/chat/completions')} \\\n"
            f"  -H {_sh(f'Authorization: Bearer {at.key}')} \\\n"
            "  -H 'Content-Type: application/json' \\\n"
            f"  -d {_sh(body)}",
        ),
    )


def _openai(at: Target) -> Sequence[Part]:
    return (
        Part("Install it", "pip install openai"),
        Part(
            "Python",
            "from openai import OpenAI\n\n"
            f"client = OpenAI(base_url={_text(at.base + '/v1')}, api_key={_text(at.key)})\n"
            "stream = client.chat.completions.create(\n"
            f"    model={_text(at.model)},\n"
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            "    stream=True,\n"
            ")\n"
            "for chunk in stream:\n"
            "    if chunk.choices and chunk.choices[0].delta.content:\n"
            '        print(chunk.choices[0].delta.content, end="", flush=True)\n'
            "print()",
            "python",
        ),
    )


def _anthropic(at: Target) -> Sequence[Part]:
    return (
        Part("Install it", "pip install anthropic"),
        Part(
            "Python",
            "from anthropic import Anthropic\n\n"
            f"client = Anthropic(base_url={_text(at.base)}, api_key={_text(at.key)})\n"
            "message = client.messages.create(\n"
            f"    model={_text(at.model)},\n"
            "    max_tokens=200,\n"
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\n"
            'print("".join(block.text for block in message.content if block.type == "text"))',
            "python",
        ),
    )


def _claude_code(at: Target) -> Sequence[Part]:
    tiers = ("OPUS", "SONNET", "HAIKU")
    settings = {
        "env": {
            "ANTHROPIC_BASE_URL": at.base,
            "ANTHROPIC_AUTH_TOKEN": at.key,
            "ANTHROPIC_MODEL": at.model,
            **{f"ANTHROPIC_DEFAULT_{tier}_MODEL": at.model for tier in tiers},
        }
    }
    exports = [f"export {name}={_sh(value)}" for name, value in settings["env"].items()]
    return (
        Part("In the shell", "\n".join(["unset ANTHROPIC_API_KEY", *exports, "claude"])),
        Part("Or for good, in ~/.claude/settings.json", json.dumps(settings, indent=2), "json"),
    )


def _codex(at: Target) -> Sequence[Part]:
    return (
        Part(
            "In ~/.codex/config.toml",
            f"model = {_text(at.model)}\n"
            'model_provider = "gateway"\n\n'
            "[model_providers.gateway]\n"
            'name = "Gateway"\n'
            f"base_url = {_text(at.base + '/v1')}\n"
            'env_key = "GATEWAY_API_KEY"\n'
            'wire_api = "responses"',
            "toml",
        ),
        Part("In the shell", f"export GATEWAY_API_KEY={_sh(at.key)}\ncodex"),
    )


def _open_webui(at: Target) -> Sequence[Part]:
    return (
        Part(
            "Start it",
            "docker run -d --name open-webui -p 3000:8080 \\\n"
            f"  -e OPENAI_API_BASE_URL={_sh(at.base + '/v1')} \\\n"
            f"  -e OPENAI_API_KEY={_sh(at.key)} \\\n"
            "  -e ENABLE_OLLAMA_API=false \\\n"
            "  -v open-webui:/app/backend/data \\\n"
            "  ghcr.io/open-webui/open-webui:main",
        ),
    )


def _langchain(at: Target) -> Sequence[Part]:
    return (
        Part("Install it", "pip install langchain-openai"),
        Part(
            "Python",
            "from langchain_openai import ChatOpenAI\n\n"
            "model = ChatOpenAI(\n"
            f"    base_url={_text(at.base + '/v1')},\n"
            f"    api_key={_text(at.key)},\n"
            f"    model={_text(at.model)},\n"
            ")\n"
            'for chunk in model.stream("Hello"):\n'
            '    print(chunk.text, end="", flush=True)\n'
            "print()",
            "python",
        ),
    )


#: the clients, in the order of their tabs
CLIENTS: tuple[Client, ...] = (
    Client("curl", "curl", _curl, "-N shows each token as it comes."),
    Client(
        "openai",
        "OpenAI SDK",
        _openai,
        "Any other client of OpenAI's API takes the same two values: the base URL and the key.",
        "https://github.com/openai/openai-python",
    ),
    Client(
        "anthropic",
        "Anthropic SDK",
        _anthropic,
        "The base URL is without /v1: the SDK adds it.",
        "https://github.com/anthropics/anthropic-sdk-python",
    ),
    Client(
        "claude-code",
        "Claude Code",
        _claude_code,
        "The model needs tool calls (vLLM: --enable-auto-tool-choice and --tool-call-parser) and a long context. "
        "/status in Claude Code shows the address and where the credential comes from. Keep the key out of a project's "
        "own .claude/settings.json, which others get with the repository.",
        "https://code.claude.com/docs/en/llm-gateway",
    ),
    Client(
        "codex",
        "Codex",
        _codex,
        "Codex speaks the Responses API alone. The model needs tool calls (vLLM: --enable-auto-tool-choice and "
        "--tool-call-parser).",
        "https://developers.openai.com/codex/config-reference",
    ),
    Client(
        "open-webui",
        "Open WebUI",
        _open_webui,
        "It reads these variables at its first start, and keeps them: change them later in its admin settings. In a "
        "container, localhost is the container: give the gateway an address that it reaches.",
        "https://docs.openwebui.com/reference/env-configuration",
    ),
    Client(
        "langchain",
        "LangChain",
        _langchain,
        "",
        "https://docs.langchain.com/oss/python/integrations/chat/vllm",
    ),
)


def client_named(name: str) -> Client:
    """Return a client by its id; the first one if there is none."""
    return next((each for each in CLIENTS if each.id == name), CLIENTS[0])


_HEAD = """\
# Connect a client

<!-- Written by `make reference` from twisted_vllm/admin/web/snippets.py: do not edit it here. -->

What each client needs. Replace the address `https://gateway.example.com`, the key and the model.
The console shows the same at `/ui/connect`, with this gateway's own address, its models and a new key:
see [the console](console.md#connect).
"""


def document() -> str:
    """Return the page of the documentation."""
    at = Target("https://gateway.example.com")
    parts = [_HEAD]
    for client in CLIENTS:
        parts.append(f"## {client.name}\n")
        parts += [f"{each.label}:\n\n```{each.language}\n{each.text}\n```\n" for each in client.parts(at)]
        more = f"[Its documentation]({client.link})." if client.link else ""
        if client.note or more:
            parts.append(" ".join(filter(None, (client.note, more))) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(PAGE).write_text(document(), "utf-8")
    print(f"wrote {PAGE}")
