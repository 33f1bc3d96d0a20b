"""``docs/errors.md``: every error of the gateway, by its status and code."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from docs.site.reference.markdown_table import WRITTEN, code, table
from twisted_vllm import errors
from twisted_vllm.errors import GatewayError

_WORDS = Path(__file__).with_name("errors.toml")

_HEAD = f"""\
# Errors

{WRITTEN.format(source="twisted_vllm/errors.py and docs/site/reference/errors.toml")}

The header `x-vllm-passthrough-error` has the code of an error of the gateway's own. If it is absent, the answer is vLLM's.

Errors have OpenAI's shape: `{{"error": {{"message", "type", "param", "code"}}}}`. The message says what is wrong and what to do.
`type` is LiteLLM's: `auth_error`, `token_not_found_in_db`, `expired_key`, `key_model_access_denied` (also `user_`, `team_`, `org_`), `throttling_error`, `budget_exceeded`.
Errors of `/v1/messages` and `/v1/messages/count_tokens` have Anthropic's shape and types, as vLLM's own have there: `{{"type": "error", "error": {{…}}}}`, with the same `code`.
`x-should-retry: false` stands on errors that a retry within a minute does not cure: every 4xx but 408, and a 429 without a `retry-after` or with one above {errors.LONGEST_RETRY} s. OpenAI's and Anthropic's SDKs obey it; some clients would repeat a 401 for minutes.

To find a request in the log, look for its `request_id` (header `x-request-id`). What the log says is in [By log message](operations.md#by-log-message).
"""


def kinds() -> list[type[GatewayError]]:
    """Return one class for each code, by status and in the order of their declaration."""

    def every(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        yield kind
        for narrower in kind.__subclasses__():
            yield from every(narrower)

    order = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, GatewayError)]
    found: dict[str, type[GatewayError]] = {}
    for kind in every(GatewayError):
        found.setdefault(kind.code, kind)
    return sorted(found.values(), key=lambda kind: (kind.status, order.index(kind)))


def page() -> str:
    """Return the page.

    Raises:
        ValueError: a code has no words, or words have no code.
    """
    words = tomllib.loads(_WORDS.read_text("utf-8"))
    found = kinds()
    if odd := {kind.code for kind in found} ^ words.keys():
        raise ValueError(f"docs/site/reference/errors.toml and twisted_vllm/errors.py differ: {sorted(odd)}")
    rows = [
        {
            "status": str(kind.status),
            "code": f"[{code(kind.code)}](#{kind.code})",
            "type": code(kind.litellm_type or kind.type),
            "Anthropic's type": code(kind.type),
        }
        for kind in found
    ]
    parts = [_HEAD, table(rows)]
    for kind in found:
        means, do = words[kind.code]["means"], words[kind.code]["do"]
        parts += [
            f"## {code(kind.code)}\n",
            f"Status {kind.status}: {means}.\n",
            f"**Do:** {do}{'' if do[-1] in '.?' else '.'}\n",
        ]
    return "\n".join(parts).rstrip() + "\n"
