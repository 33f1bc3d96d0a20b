"""Where servers publish the events of their prefix caches."""

from __future__ import annotations

import pytest

from tests.config.config_harness import Loader, Refusal

TWO = """
model_list:
  - model_name: qwen
    litellm_params: {model: hosted_vllm/qwen, api_base: http://one:8000}
  - model_name: qwen
    litellm_params: {model: hosted_vllm/qwen, api_base: http://two:8000}
passthrough:
  servers:
    http://one:8000/v1: {SETTINGS}
"""


def test_a_server_may_publish_events(load_text: Loader) -> None:
    own = "{kv_events: tcp://one:5557, kv_events_replay: 'tcp://[fd00::1]:5558'}"
    one, two = load_text(TWO.replace("{SETTINGS}", own)).servers
    assert (one.kv_events, one.kv_events_replay) == ("tcp://one:5557", "tcp://[fd00::1]:5558")
    assert (two.kv_events, two.kv_events_replay) == (None, None)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("{kv_events: 'tcp://*:5557'}", "write the server's name or address in place of *"),
        ("{kv_events: 'http://one:5557'}", "must be tcp://HOST:PORT"),
        ("{kv_events: 'tcp://one'}", "must be tcp://HOST:PORT"),
        ("{kv_events: 'tcp://one:70000'}", "must be tcp://HOST:PORT"),
        ("{kv_events: 'tcp://one:0'}", "must be tcp://HOST:PORT"),
        ("{kv_events: 5557}", "kv_events"),
        ("{kv_events_replay: 'tcp://one:5558'}", "needs kv_events"),
    ],
)
def test_an_endpoint_that_cannot_be_followed_is_refused(problems_of: Refusal, own: str, told: str) -> None:
    assert told in "\n".join(problems_of(TWO.replace("{SETTINGS}", own)))


def test_without_pyzmq_events_are_refused(problems_of: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_vllm.config.servers.find_spec", lambda name: None)
    told = problems_of(TWO.replace("{SETTINGS}", "{kv_events: 'tcp://one:5557'}"))
    assert "pip install 'twisted-vllm[kv-events]'" in "\n".join(told)
