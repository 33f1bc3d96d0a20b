"""What a sink is told, in each format."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from twisted.logger import LogEvent, LogLevel

from tests.observability.sinks.requests import made, told
from twisted_vllm.config.litellm import names
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.sinks.encoders import (
    Encoder,
    JournalEncoder,
    SyslogEncoder,
    field,
    make_encoder,
)
from twisted_vllm.proxy.forwarded import ClientAddresses

LINE: LogEvent = {
    "log_time": 1_700_000_000.5,
    "log_level": LogLevel.warn,
    "log_namespace": "a.b",
    "log_format": "Lost {what}: sk-abcdefgh12345",
    "what": "it",
}
CONTENTS = (
    b'{"mode":"full","input":[{"role":"user","content":"hi"}],"output":{"text":"ho","finish_reasons":["stop"],'
    b'"tool_calls":[{"id":"c1","type":"function","name":"f","arguments":"{}"}]},"truncated":false}'
)


def encoder(format: str) -> Encoder:
    log = RequestLog(lambda event: None, ClientText(Redactor()), ClientAddresses(()).of)  # type: ignore[arg-type]  # an observer is a function
    return make_encoder(format, Redactor(), log.record)


@pytest.mark.parametrize("format", ["json", "event", "litellm", "text"])
def test_every_item_is_one_line_without_its_end(format: str) -> None:
    context, event = made(), told(contents=CONTENTS)
    for item in (encoder(format).request(event, context), encoder(format).line(LINE)):
        assert b"\n" not in item
        if format != "text":
            json.loads(item)
        assert b"sk-abcdefgh12345" not in item


def test_json_is_what_the_log_has() -> None:
    found = json.loads(encoder("json").request(told(), made(outcome="upstream_failed")))
    assert (found["model"], found["level"], found["namespace"]) == ("qwen", "info", "twisted_vllm.requests")
    assert json.loads(encoder("json").line(LINE)) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "warn",
        "namespace": "a.b",
        "message": "Lost it: ***",
    }


def test_an_event_has_all_that_is_known() -> None:
    found = json.loads(encoder("event").request(told(contents=CONTENTS), made()))
    assert (found["total_tokens"], found["cost_usd"], found["contents"]["output"]["text"]) == (12, 0.003, "ho")


#: the fields of LiteLLM 1.108's `StandardLoggingPayload`, and of its `metadata`
LITELLMS = names(
    """
    api_base autorouter_baseline_observation autorouter_savings autorouter_savings_estimate cache_hit
    cache_key call_type classifier_input completionStartTime completion_tokens cost_breakdown
    custom_llm_provider endTime end_user error_information error_str guardrail_information hidden_params id
    litellm_call_id messages metadata model model_group model_id model_map_information model_parameters
    originating_request_masked prompt_tokens request_model_access_groups request_tags requester_ip_address
    response response_cost response_cost_failure_debug_info response_time saved_cache_cost session_id
    standard_built_in_tools_params startTime status status_fields stream total_tokens trace_id user_agent
    zero_cost_diagnostic
    """
)
LITELLMS_METADATA = names(
    """
    applied_guardrails cold_storage_object_key mcp_tool_call_metadata prompt_management_metadata
    requester_custom_headers requester_ip_address requester_metadata routing_decision spend_logs_metadata
    team_alias team_id usage_object used_client_oauth_token user_agent user_api_key_alias
    user_api_key_auth_metadata user_api_key_budget_reset_at user_api_key_end_user_id user_api_key_hash
    user_api_key_max_budget user_api_key_org_alias user_api_key_org_id user_api_key_project_alias
    user_api_key_project_id user_api_key_request_route user_api_key_spend user_api_key_team_alias
    user_api_key_team_id user_api_key_team_max_budget user_api_key_team_spend user_api_key_user_email
    user_api_key_user_id user_api_key_user_max_budget user_api_key_user_spend vector_store_request_metadata
    """
)


@pytest.mark.parametrize("status", [200, 502])
def test_litellms_payload_has_each_field_of_litellms(status: int) -> None:
    found = json.loads(encoder("litellm").request(told(status=status, contents=CONTENTS), made()))
    assert set(found) == LITELLMS
    assert set(found["metadata"]) == LITELLMS_METADATA


def test_litellms_payload_has_the_session_and_the_parameters_that_are_known() -> None:
    kept = b'{"mode":"full","input":"hi","parameters":{"temperature":0.5},"truncated":false}'
    event = msgspec.structs.replace(told(contents=kept), session_id="s-1", max_tokens=9)
    found = json.loads(encoder("litellm").request(event, made()))
    assert (found["session_id"], found["model_parameters"]) == ("s-1", {"temperature": 0.5, "max_tokens": 9})
    unknown = json.loads(encoder("litellm").request(told(), made()))
    assert (unknown["session_id"], unknown["model_parameters"]) == (None, {})


def test_litellms_payload_has_its_fields() -> None:
    found = json.loads(encoder("litellm").request(told(contents=CONTENTS), made()))
    assert (found["status"], found["call_type"], found["model"]) == ("success", "acompletion", "qwen")
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (7, 5, 12)
    assert found["response_cost"] == 0.003
    assert found["metadata"]["user_api_key_alias"] == "team-a"
    assert found["messages"] == [{"role": "user", "content": "hi"}]
    choice = found["response"]["choices"][0]
    assert choice["message"]["content"] == "ho"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == "stop"
    assert found["response"]["usage"]["total_tokens"] == 12


def test_litellms_payload_of_a_failure_says_why() -> None:
    found = json.loads(encoder("litellm").request(told(status=502, error_code="upstream_unreachable"), made()))
    assert found["status"] == "failure"
    assert found["error_information"]["error_code"] == "502"
    assert found["error_information"]["error_class"] == "upstream_unreachable"
    assert found["messages"] is None
    assert found["response"] is None


def test_syslog_messages_are_those_of_rfc_5424() -> None:
    syslog = SyslogEncoder(encoder("text"), 3, "gateway", lambda: 0.0, host="h")
    line = syslog.line(LINE)
    assert re.fullmatch(rb"<28>1 2023-11-14T22:13:20\.500Z h gateway \d+ log - .*Lost it: \*\*\*", line)
    request = syslog.request(told(status=500), made())
    assert request.startswith(b"<28>1 ")
    assert b" request - " in request
    assert syslog.request(told(), made()).startswith(b"<30>1 ")


def test_the_journal_has_fields_to_search_for() -> None:
    entry = JournalEncoder(encoder("json"), "gateway").request(told(), made())
    lines = entry.split(b"\n")
    assert lines[0].startswith(b'MESSAGE={"time"')
    for expected in (b"SYSLOG_IDENTIFIER=gateway", b"PRIORITY=6", b"VLLM_MODEL=qwen", b"VLLM_TOTAL_TOKENS=12"):
        assert expected in lines
    assert not any(line.startswith(b"VLLM_TEAM_ID") for line in lines)


def test_a_field_with_a_newline_has_its_length() -> None:
    assert field("MESSAGE", b"a\nb") == b"MESSAGE\n" + (3).to_bytes(8, "little") + b"a\nb\n"
    assert field("A", b"b") == b"A=b\n"


def test_half_a_surrogate_pair_of_a_client_is_escaped() -> None:
    found = json.loads(encoder("event").request(told(end_user="\ud800x"), made()))
    assert found["end_user"] == "\\ud800x"
