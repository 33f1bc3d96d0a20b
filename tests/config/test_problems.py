"""Misspelt and ill-typed settings: the path, what is wrong, what to do, and the nearest name."""

from __future__ import annotations

import pytest

from tests.config.config_harness import Refusal
from twisted_vllm.config.problems import ConfigError, Problem, nearest, shown

KNOWN_SENTENCES = {
    "passthrough: {limits: {max_head_bytes: 0}}": "passthrough.limits.max_head_bytes: must be 1 or more",
    "passthrough: {limits: {max_head_bytes: true}}": (
        "passthrough.limits.max_head_bytes: must be a whole number, 1 or more, not true or false"
    ),
    "passthrough: {limits: {max_head_bytes: 2.5}}": (
        "passthrough.limits.max_head_bytes: must be a whole number, 1 or more, not a fraction"
    ),
    "passthrough: {limits: {max_head_bytes: 64k}}": (
        "passthrough.limits.max_head_bytes: must be a whole number, 1 or more, not text"
    ),
    f"passthrough: {{limits: {{max_body_bytes: {10**30}}}}}": "passthrough.limits.max_body_bytes: is too large",
    "passthrough: {limits: [1]}": "passthrough.limits: must be a mapping, not a list",
    "passthrough: {limits: {max_head_byte: 1}}": (
        "passthrough.limits.max_head_byte: is not a known setting; did you mean 'max_head_bytes'?"
    ),
    "passthrough: {timeouts: {connect: null}}": (
        "passthrough.timeouts.connect: must be a number of seconds above 0, not nothing"
    ),
    "passthrough: {timeouts: {connect: 0}}": "passthrough.timeouts.connect: must be a number of seconds above 0",
    "passthrough: {timeouts: {idle: -1}}": "passthrough.timeouts.idle: must be a number of seconds above 0",
    "passthrough: {timeouts: {idle: .nan}}": "passthrough.timeouts.idle: must be a number of seconds above 0",
    "passthrough: {timeouts: {idle: .inf}}": (
        "passthrough.timeouts.idle: must not be more than 31536000 seconds, a year"
    ),
    "passthrough: {timeouts: {idle: 5m}}": ("passthrough.timeouts.idle: must be a number of seconds above 0, not text"),
    "passthrough: {drain_timeout: -1}": "passthrough.drain_timeout: must be a number of seconds 0 or more",
    "passthrough: {allow_anonymous: 'yes'}": "passthrough.allow_anonymous: must be true or false, not text",
    "passthrough: {allowed_hosts: ['http://x']}": (
        "passthrough.allowed_hosts[0]: must be a host without scheme, port and path, with * as wildcard "
        "(such as *.example.com)"
    ),
    "passthrough: {allowed_origins: [x.example]}": (
        "passthrough.allowed_origins[0]: must be an origin, without a path (such as https://console.example.com)"
    ),
    "passthrough: {allowed_origins: ['https://x/']}": (
        "passthrough.allowed_origins[0]: must be an origin, without a path (such as https://console.example.com)"
    ),
    "passthrough: {allowed_origins: ['null']}": (
        "passthrough.allowed_origins[0]: must be an origin, without a path (such as https://console.example.com)"
    ),
    "passthrough: {path_aliases: }": "passthrough.path_aliases: must be true or false, not nothing",
    "passthrough: {log: {level: warning}}": (
        "passthrough.log.level: must be one of debug, info, warn, error, critical; did you mean 'warn'?"
    ),
    "passthrough: {log: {file: ''}}": (
        "passthrough.log.file: must not be empty (write a value, or leave the setting out)"
    ),
    r'passthrough: {log: {file: "a\nb"}}': (
        "passthrough.log.file: holds a line break or another control character (remove it)"
    ),
    "passthrough: {log: {keep_files: 0}}": "passthrough.log.keep_files: must be 1 or more",
    "passthrough: {tenant_routes: {allow: /sleep}}": (
        "passthrough.tenant_routes.allow: must be a list, not text (write each piece on its own line after '- ')"
    ),
    "passthrough: {tenant_routes: {allow: [priviledged]}}": (
        "passthrough.tenant_routes.allow[0]: must be a path that begins with / or one of inference, read_only, "
        "privileged; did you mean 'privileged'?"
    ),
    "passthrough: {tenant_routes: {deny: [/ok, /a/*/b]}}": (
        "passthrough.tenant_routes.deny[1]: may have a * only at its end, after a slash (/prefix/*)"
    ),
    "passthrough: {tenant_routes: {deny: ['/a?b']}}": (
        "passthrough.tenant_routes.deny[0]: must be a path alone, without spaces, a query or a fragment"
    ),
    "passthrough: {tenant_routes: {deny: [7]}}": (
        "passthrough.tenant_routes.deny[0]: must be text, not a number (put it into quotes)"
    ),
    "passthrough: {tenant_fields: {deny: [background, a..b]}}": (
        "passthrough.tenant_fields.deny[1]: must be the name of a field, or a path such as sampling_params.extra_args "
        "or tools.type=mcp, with at most 8 names"
    ),
    "passthrough: {tenant_fields: {deny: [model]}}": (
        "passthrough.tenant_fields.deny[0]: must not be the model: what a key may use is set in models"
    ),
    "passthrough: {tenant_fields: {deny: ['*']}}": ("passthrough.tenant_fields.deny[0]: must be one field"),
    "passthrough: {tenant_fields: {limits: {n: -1}}}": "passthrough.tenant_fields.limits.n: must be 0 or more",
    "passthrough: {tenant_fields: {limits: {stop=x: 1}}}": (
        "passthrough.tenant_fields.limits.stop…: must be a field without a value, such as stop"
    ),
    "passthrough: {tenant_fields: {limits: {n: many}}}": (
        "passthrough.tenant_fields.limits.n: must be a whole number, 0 or more, not text"
    ),
    "passthrough: {tenant_fields: {limits: [n]}}": "passthrough.tenant_fields.limits: must be a mapping, not a list",
    "passthrough: {tenant_fields: {limits: {'*': 1}}}": ("passthrough.tenant_fields.limits.…: must be one field"),
    "passthrough: {tenant_fields: {media: {schemes: ['http://']}}}": (
        "passthrough.tenant_fields.media.schemes[0]: must be the scheme of a URL alone (such as https)"
    ),
    "passthrough: {tenant_fields: {media: {denied_hosts: ['http://a.example']}}}": (
        "passthrough.tenant_fields.media.denied_hosts[0]: must be a host without scheme, port and path, with * as "
        "wildcard (such as *.example.com)"
    ),
    "passthrough: {trusted_proxies: [10.0.0.0/8, 10.0.0.1/8]}": (
        "passthrough.trusted_proxies[1]: has bits set after its prefix (write 10.0.0.0/8)"
    ),
    "passthrough: {trusted_proxies: [proxy.example]}": (
        "passthrough.trusted_proxies[0]: must be an address or a network (such as 10.0.0.0/8 or fd00::/8)"
    ),
    "passthrough: {trusted_proxies: [5]}": (
        "passthrough.trusted_proxies[0]: must be text, not a number (put it into quotes)"
    ),
    "passthrough: {servers: {'http://gpu:8001': {}}}": (
        "passthrough.servers.http://gpu:8001: is the api_base of no server here (write it as model_list does); "
        "did you mean 'http://gpu:8000'?"
    ),
    "passthrough: {servers: {'http://gpu:8000': {}, 'http://GPU:8000/v1': {}}}": (
        "passthrough.servers.http://gpu:8000: stands twice, in two spellings (keep one)"
    ),
    "passthrough: {servers: {'http://gpu:8000': {timeouts: {keep_alive: 3}}}}": (
        "passthrough.servers.http://gpu:8000.timeouts.keep_alive: does not belong here "
        "(it concerns clients: move it to passthrough.timeouts)"
    ),
    "passthrough: {servers: {'http://gpu:8000': {max_body_bytes: 3}}}": (
        "passthrough.servers.http://gpu:8000.max_body_bytes: does not belong here "
        "(it concerns clients: move it to passthrough.limits)"
    ),
    "passthrough: {servers: {gpu: {}}}": (
        "passthrough.servers[0]: must begin with http://, https:// or unix: (such as http://gpu-1:8000 or "
        "unix:/run/vllm.sock)"
    ),
    "passthrough: {model_list: []}": "passthrough.model_list: does not belong here (move it to the top of the file)",
    "passthrough: [listen]": "passthrough: must be a mapping, not a list",
    "passtrough: {}": "passtrough: is not a known setting; did you mean 'passthrough'?",
    "trusted_proxies: []": "trusted_proxies: does not belong here (move it to passthrough)",
    "lisen: 4000": "lisen: does not belong here (move it to passthrough); did you mean 'listen'?",
    "passthrough: {17: x}": "passthrough.…: is not a known setting",
    "general_settings: {master_key: 1234}": (
        "general_settings.master_key: must be text, not a number (put it into quotes)"
    ),
    "general_settings: {master_key: ''}": (
        "general_settings.master_key: must not be empty (write a value, or leave the setting out)"
    ),
    "general_settings: {master_key: 'sha256:123'}": (
        'general_settings.master_key: must have 64 hex digits after sha256: (printf %s "$KEY" | sha256sum)'
    ),
    "passthrough: {limits: {max_failed_authentications: 0}}": (
        "passthrough.limits.max_failed_authentications: must be 1 or more"
    ),
    "general_settings: {master_key: os.environ/}": (
        "general_settings.master_key: does not name a variable of the environment (write os.environ/NAME)"
    ),
    "environment_variables: [A]": "environment_variables: must be a mapping of names to values, not a list",
    "environment_variables: {A: [b]}": "environment_variables.A: must be text or a number, not a list",
    "environment_variables: {1: b}": "environment_variables.…: must have a name that is text (put it into quotes)",
}


@pytest.mark.parametrize("text", KNOWN_SENTENCES, ids=lambda text: text[:50])
def test_a_wrong_setting_is_refused_in_one_clear_line(problems_of: Refusal, text: str) -> None:
    assert problems_of(text) == [KNOWN_SENTENCES[text]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("passthrough: {api_key: 'hush hush'}", "hush"),
        ("passthrough: {api_base: 'http://user:hush@gpu'}", "hush"),
        ("general_settings: {database_url: 'hush:hush@db/keys'}", "hush"),
        ("general_settings: {database_url: 'postgresql://u:hush@db:port/keys'}", "hush"),
        ("passthrough: {servers: {'http://user:hush@gpu': {}}}", "hush"),
        ("passthrough: {api_key:hush}", "hush"),
        ("passthrough: {sk-hush: x}", "hush"),
        ("environment_variables: {TOKEN: [hush]}", "hush"),
    ],
)
def test_what_may_be_a_secret_is_never_repeated(problems_of: Refusal, text: str, value: str) -> None:
    assert value not in "".join(problems_of(text))


def test_an_error_holds_its_problems_for_programs_and_renders_them_for_people() -> None:
    error = ConfigError([Problem("a.b", "is wrong"), Problem("", "is missing")])
    assert error.problems == (Problem("a.b", "is wrong"), Problem("", "is missing"))
    assert str(error) == "a.b: is wrong\nis missing"


def test_the_nearest_name_disregards_case_and_separators() -> None:
    assert nearest("Max-Head-Bytes", ["max_head_bytes", "max_body_bytes"]) == "max_head_bytes"
    assert nearest("zzz", ["max_head_bytes"]) is None
    assert nearest(7, ["max_head_bytes"]) is None


def test_a_name_with_a_value_stuck_to_it_is_cut() -> None:
    assert (shown("api_key:abc"), shown("a b"), shown("plain"), shown(""), shown(b"x")) == (
        "api_key…",
        "a…",
        "plain",
        "…",
        "…",
    )
