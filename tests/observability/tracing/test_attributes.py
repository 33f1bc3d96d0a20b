"""What the spans of a request say, by convention."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observability.request_events import STARTED, contents, request_event
from twisted_vllm.api_routes import ROUTES, RouteClass
from twisted_vllm.observability.request_event import Attempt, RequestEvent
from twisted_vllm.observability.tracing.attributes import CONVENTIONS, attempt_attributes, request_attributes
from twisted_vllm.observability.tracing.facts import Attributes, attempt_name, operation, request_name

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Capital of France?"}]
ANSWER = {"text": "Paris.", "finish_reasons": ["stop"]}
TOLD = contents(MESSAGES, ANSWER)
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
RETRIED = (
    Attempt("gpu-0:8000", STARTED + 0.1, STARTED + 0.2, 503, "status_503"),
    Attempt("gpu-1:8000", STARTED + 0.2, STARTED + 0.9, 200),
)
ALL = tuple(CONVENTIONS)


def last(event: RequestEvent, *conventions: str) -> Attributes:
    return attempt_attributes(event, len(event.attempts) - 1, conventions)


def test_the_conventions_give_the_present_names_of_what_the_model_did() -> None:
    said = last(request_event(contents=TOLD, metadata='{"session_id":"s-1"}'), "gen_ai")
    assert {name: value for name, value in said.items() if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "llama",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "llama",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.15,
        "gen_ai.usage.input_tokens": 23,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.conversation.id": "s-1",
        "gen_ai.input.messages": said["gen_ai.input.messages"],
        "gen_ai.output.messages": said["gen_ai.output.messages"],
    }
    assert json.loads(str(said["gen_ai.input.messages"])) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be short."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Capital of France?"}]},
    ]
    assert json.loads(str(said["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Paris."}], "finish_reason": "stop"}
    ]


def test_the_names_are_those_of_the_published_conventions() -> None:
    published = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    event = request_event(contents=TOLD, metadata='{"session_id":"s-1"}')
    known = {value for name, value in vars(published).items() if name.startswith("GEN_AI_")}
    assert {name for name in last(event, "gen_ai") if name.startswith("gen_ai.")} <= known
    assert {name for name in last(event, "gen_ai_legacy") if name.startswith("gen_ai.")} - known == {
        # OpenLLMetry's and LiteLLM's alone
        "gen_ai.usage.total_tokens"
    }


def test_the_older_names_come_by_setting() -> None:
    said = last(request_event(contents=TOLD), "gen_ai_legacy")
    assert said["gen_ai.system"] == "vllm"
    assert said["gen_ai.usage.prompt_tokens"] == 23
    assert said["gen_ai.usage.completion_tokens"] == 7
    assert said["gen_ai.completion"] == "Paris."
    assert "gen_ai.provider.name" not in said


def test_nothing_of_prompt_and_answer_is_said_where_they_are_not_kept() -> None:
    event = request_event(attempts=RETRIED)
    everything = {**request_attributes(event, ALL), **last(event, *ALL)}
    assert [name for name in everything if "input.messages" in name or "input.value" in name or "Inputs" in name] == []


def test_tokens_cost_and_answer_are_on_the_last_attempt_alone() -> None:
    event = request_event(contents=TOLD, attempts=RETRIED)
    spans = [request_attributes(event, ALL), *(attempt_attributes(event, number, ALL) for number in (0, 1))]
    once = (
        *("gen_ai.usage.input_tokens", "gen_ai.output.messages", "llm.token_count.total", "llm.cost.total"),
        *("mlflow.chat.tokenUsage", "langfuse.observation.usage_details", "litellm.cost.total"),
    )
    for name in once:
        assert [name in said for said in spans] == [False, False, True], name


def test_a_request_that_reached_no_server_says_it_all_on_its_own_span() -> None:
    event = request_event(
        attempts=(), server="", status=429, outcome="refused", error="rate_limit_exceeded", contents=TOLD
    )
    said = request_attributes(event, ("gen_ai",))
    assert said["error.type"] == "rate_limit_exceeded"
    assert said["http.response.status_code"] == 429
    assert said["gen_ai.operation.name"] == "chat"
    assert "gen_ai.input.messages" in said
    assert "gen_ai.response.model" not in said


def test_the_span_of_an_attempt_names_its_server_and_why_it_failed() -> None:
    event = request_event(attempts=RETRIED)
    failed, answered = (attempt_attributes(event, number, ()) for number in (0, 1))
    assert failed["server.address"] == "gpu-0"
    assert failed["server.port"] == 8000
    assert failed["error.type"] == "503"
    assert failed["http.response.status_code"] == 503
    assert "http.request.resend_count" not in failed
    assert answered["http.request.resend_count"] == 1
    assert "error.type" not in answered


@pytest.mark.parametrize(
    ("server", "address", "port"),
    [
        ("gpu-1:8000", "gpu-1", 8000),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("blue", "blue", None),
        ("a:b", "a:b", None),
    ],
)
def test_the_name_of_a_server_is_read_as_an_address(server: str, address: str, port: int | None) -> None:
    said = last(request_event(attempts=(Attempt(server, STARTED, STARTED + 1, 200),)))
    assert said["server.address"] == address
    assert said.get("server.port") == port


def test_a_client_that_left_is_no_error_of_the_server() -> None:
    event = request_event(
        outcome="client_disconnected",
        attempts=(Attempt("gpu-1:8000", STARTED, STARTED + 1, 200, "client_disconnected"),),
    )
    assert "error.type" not in last(event)
    assert "error.type" not in request_attributes(event, ())


def test_a_server_s_failure_is_the_request_s() -> None:
    event = request_event(status=502, outcome="upstream_failed", error="upstream_unreachable")
    assert request_attributes(event, ())["error.type"] == "upstream_unreachable"
    assert request_attributes(request_event(outcome="upstream_error"), ())["error.type"] == "upstream_error"


def test_the_user_is_the_end_user_or_else_the_key_s() -> None:
    assert request_attributes(request_event(user_id="u"), ())["user.id"] == "u"
    assert request_attributes(request_event(user_id="u", end_user="anna"), ())["user.id"] == "anna"


def test_a_session_is_named_by_a_header_by_metadata_or_by_the_body() -> None:
    body = contents(MESSAGES, ANSWER, parameters={"metadata": {"session_id": "s-3"}})
    for event, session in (
        (request_event(session_id="s-1", metadata='{"session_id":"s-2"}', contents=body), "s-1"),
        (request_event(metadata='{"session_id":"s-2"}', contents=body), "s-2"),
        (request_event(metadata='{"other":1}', contents=body), "s-3"),
        (request_event(session_id="x" * 500), "x" * 200),
    ):
        assert request_attributes(event, ())["session.id"] == session


@pytest.mark.parametrize("metadata", ["", '{"session_id":7}', '{"a":{"session_id":"s"}}'])
def test_other_metadata_names_no_session(metadata: str) -> None:
    event = request_event(metadata=metadata, contents=contents(MESSAGES, ANSWER, parameters={"metadata": "x"}))
    assert "session.id" not in request_attributes(event, ALL)


def test_openinference_spreads_the_messages_out() -> None:
    asked = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]
    event = request_event(
        contents=contents(asked, {"text": "", "tool_calls": [CALL], "finish_reasons": ["tool_calls"]})
    )
    said = last(event, "openinference")
    assert said["openinference.span.kind"] == "LLM"
    assert said["llm.model_name"] == "llama"
    assert said["llm.token_count.prompt"] == 23
    assert said["llm.token_count.prompt_details.cache_read"] == 16
    assert said["llm.cost.total"] == 0.00123
    assert said["llm.input_messages.1.message.content"] == "Capital of France?"
    assert said["llm.input_messages.2.message.tool_calls.0.tool_call.function.name"] == "look"
    assert said["llm.input_messages.3.message.tool_call_id"] == "c"
    assert said["llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments"] == '{"q":1}'
    assert said["llm.finish_reason"] == "tool_calls"
    assert json.loads(str(said["input.value"])) == asked
    assert request_attributes(event, ("openinference",))["openinference.span.kind"] == "CHAIN"


def test_openinference_gives_many_messages_few_attributes() -> None:
    many = [{"role": "user", "content": str(number)} for number in range(5_000)]
    said = last(request_event(contents=contents(many, ANSWER)), "openinference")
    told = [name for name in said if name.startswith("llm.input_messages.")]
    assert len(told) == 64
    assert "llm.input_messages.0.message.content" in said
    assert "llm.input_messages.4999.message.content" in said
    assert json.loads(str(said["input.value"])) == many


def test_langfuse_gets_a_generation_below_a_trace() -> None:
    event = request_event(contents=TOLD, end_user="anna", tags=("blue",), metadata='{"session_id":"s-1"}')
    root = request_attributes(event, ("langfuse",))
    assert root["langfuse.observation.type"] == "span"
    assert root["langfuse.trace.name"] == "chat llama"
    assert root["langfuse.user.id"] == "anna"
    assert root["langfuse.session.id"] == "s-1"
    assert root["langfuse.trace.tags"] == ["blue"]
    assert json.loads(str(root["langfuse.trace.input"])) == MESSAGES
    assert root["langfuse.trace.output"] == "Paris."
    said = last(event, "langfuse")
    assert said["langfuse.observation.type"] == "generation"
    assert said["langfuse.observation.model.name"] == "llama"
    assert json.loads(str(said["langfuse.observation.input"])) == MESSAGES
    assert said["langfuse.observation.output"] == "Paris."
    assert json.loads(str(said["langfuse.observation.cost_details"])) == {"total": 0.00123}
    # it adds the entries up
    usage = json.loads(str(said["langfuse.observation.usage_details"]))
    assert sum(tokens for name, tokens in usage.items() if name != "total") == usage["total"] == 30


def test_langfuse_finds_trace_and_caller_on_each_span() -> None:
    """Langfuse filters and adds up by the attributes of single spans (its page on OpenTelemetry says so)."""
    event = request_event(
        contents=TOLD,
        end_user="anna",
        tags=("blue",),
        metadata='{"session_id":"s-1"}',
        team_id="red",
        key_name="batch",
        attempts=(
            Attempt("gpu-1:8000", STARTED, STARTED + 1, 503),
            Attempt("gpu-2:8000", STARTED + 1, STARTED + 2, 200),
        ),
    )
    spans = [request_attributes(event, ("langfuse",)), *(attempt_attributes(event, at, ("langfuse",)) for at in (0, 1))]
    for said in spans:
        assert said["langfuse.trace.name"] == "chat llama"
        assert said["langfuse.user.id"] == "anna"
        assert said["langfuse.session.id"] == "s-1"
        assert said["langfuse.trace.tags"] == ["blue"]
        assert said["langfuse.trace.metadata.request_id"] == "req-1"
        assert said["langfuse.trace.metadata.key"] == "batch"
        assert said["langfuse.trace.metadata.team_id"] == "red"
    # prompt and answer of the trace are the root's
    assert ["langfuse.trace.input" in said for said in spans] == [True, False, False]


@pytest.mark.parametrize(
    ("form", "said"),
    [("text", "text"), ("json_object", "json"), ("json_schema", "json"), ("structural_tag", None), (None, None)],
)
def test_the_form_that_a_chat_asks_for_has_its_name(form: str | None, said: str | None) -> None:
    parameters: dict[str, object] = {} if form is None else {"response_format": {"type": form}}
    asked = msgspec.Raw(msgspec.json.encode({"mode": "full", "input": MESSAGES, "parameters": parameters}))
    assert last(request_event(contents=asked), "gen_ai").get("gen_ai.output.type") == said


def test_embeddings_say_which_dimensions_and_encoding_were_asked_for() -> None:
    parameters = {"dimensions": 256, "encoding_format": "base64"}
    asked = msgspec.Raw(msgspec.json.encode({"mode": "full", "input": "Paris", "parameters": parameters}))
    said = last(request_event(route="/v1/embeddings", contents=asked), "gen_ai")
    assert said["gen_ai.embeddings.dimension.count"] == 256
    assert said["gen_ai.request.encoding_formats"] == ["base64"]


def test_a_request_that_the_server_refused_is_an_error_of_the_attempt() -> None:
    event = request_event(status=400, attempts=(Attempt("gpu-1:8000", STARTED, STARTED + 1, 400),))
    said = last(event, "langfuse")
    assert (said["error.type"], said["langfuse.observation.level"]) == ("400", "ERROR")
    assert "error.type" not in request_attributes(event, ())


def test_an_answer_that_was_cut_has_no_reason() -> None:
    cut = contents(MESSAGES, {"text": "Par", "finish_reasons": [""]})
    assert "gen_ai.response.finish_reasons" not in last(request_event(contents=cut), "gen_ai")


def test_langfuse_learns_of_a_failure() -> None:
    event = request_event(status=502, outcome="upstream_failed", error="upstream_unreachable")
    root = request_attributes(event, ("langfuse",))
    assert root["langfuse.observation.level"] == "ERROR"
    assert root["langfuse.observation.status_message"] == "upstream_unreachable"


def test_mlflow_gets_json_in_each_value() -> None:
    event = request_event(contents=TOLD, tags=("blue",))
    root, said = request_attributes(event, ("mlflow",)), last(event, "mlflow")
    assert json.loads(str(root["mlflow.spanType"])) == "CHAIN"
    assert json.loads(str(root["mlflow.spanInputs"])) == {"messages": MESSAGES}
    assert root["mlflow.traceTag.blue"] == "true"
    assert json.loads(str(said["mlflow.spanType"])) == "CHAT_MODEL"
    assert json.loads(str(said["mlflow.chat.tokenUsage"]))["cache_read_input_tokens"] == 16
    assert json.loads(str(said["mlflow.llm.cost"])) == {"total_cost": 0.00123}
    assert json.loads(str(said["mlflow.spanOutputs"]))["choices"][0]["message"]["content"] == "Paris."


def test_litellm_s_dashboards_find_their_names() -> None:
    said = last(request_event(team_id="t", end_user="anna"), "litellm")
    assert said["litellm.call_id"] == "req-1"
    assert said["litellm.team.id"] == "t"
    assert said["litellm.end_user.id"] == "anna"
    assert said["gen_ai.cost.total_cost"] == 0.00123


def test_reasoning_and_tool_calls_are_parts_of_the_answer() -> None:
    answer = {"text": "Look.", "reasoning": "Hm.", "tool_calls": [CALL], "finish_reasons": ["tool_calls"]}
    said = last(request_event(contents=contents(MESSAGES, answer)), "gen_ai")
    (message,) = json.loads(str(said["gen_ai.output.messages"]))
    assert [part["type"] for part in message["parts"]] == ["reasoning", "text", "tool_call"]
    assert message["parts"][2] == {"type": "tool_call", "id": "call_1", "name": "look", "arguments": '{"q":1}'}
    assert message["finish_reason"] == "tool_call"
    assert said["gen_ai.response.finish_reasons"] == ["tool_calls"]


def test_the_result_of_a_tool_and_a_picture_are_parts_of_the_prompt() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:…"}}
    asked = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
    ]
    said = last(request_event(contents=contents(asked, ANSWER)), "gen_ai")
    user, tool = json.loads(str(said["gen_ai.input.messages"]))
    assert user["parts"] == [{"type": "text", "content": "What is it?"}, picture]
    assert tool["parts"] == [{"type": "tool_call_response", "id": "call_1", "response": "a cat"}]


def test_a_prompt_that_is_a_text_is_one_message_of_the_user() -> None:
    event = request_event(route="/v1/completions", contents=contents("Once upon", {"text": " a time"}))
    said = last(event, *ALL)
    assert json.loads(str(said["gen_ai.input.messages"]))[0]["role"] == "user"
    assert said["input.value"] == "Once upon"
    assert said["input.mime_type"] == "text/plain"
    assert said["langfuse.observation.input"] == "Once upon"
    assert json.loads(str(said["mlflow.spanInputs"])) == "Once upon"
    assert json.loads(str(said["mlflow.spanOutputs"])) == " a time"


def test_parameters_and_tools_have_the_conventions_names() -> None:
    parameters = {"temperature": 1, "top_p": 0.5, "seed": 7, "n": 2, "stop": "END", "stream": True, "logit_bias": {}}
    tools = [{"type": "function", "function": {"name": "look"}}]
    event = request_event(contents=contents(MESSAGES, ANSWER, parameters=parameters, tools=tools))
    said = last(event, *ALL)
    assert said["gen_ai.request.temperature"] == 1.0
    assert said["gen_ai.request.top_p"] == 0.5
    assert said["gen_ai.request.seed"] == 7
    assert said["gen_ai.request.choice.count"] == 2
    assert said["gen_ai.request.stop_sequences"] == ["END"]
    assert json.loads(str(said["gen_ai.tool.definitions"])) == tools
    assert json.loads(str(said["llm.tools.0.tool.json_schema"])) == tools[0]
    assert json.loads(str(said["llm.invocation_parameters"])) == {**parameters, "max_tokens": 50}
    assert json.loads(str(said["langfuse.observation.model.parameters"]))["logit_bias"] == "{}"


def test_counts_in_place_of_texts_are_no_messages() -> None:
    counts = {"length": 6, "finish_reasons": ["stop"]}
    event = request_event(contents=contents([{"role": "user", "length": 18}], counts, mode="metadata"))
    said = last(event, *ALL)
    assert [name for name in said if name.endswith(("messages", ".value", "spanInputs", "observation.input"))] == []
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    told = json.loads(str(request_attributes(event, ())["vllm_passthrough.contents"]))
    assert told["input"] == [{"role": "user", "length": 18}]


def test_each_choice_is_an_answer() -> None:
    choices = [{"index": number, "text": text, "finish_reason": "stop"} for number, text in enumerate("ab")]
    answer = {"text": "a", "finish_reasons": ["stop", "stop"], "choices": choices}
    said = last(request_event(contents=contents(MESSAGES, answer)), *ALL)
    assert [each["parts"][0]["content"] for each in json.loads(str(said["gen_ai.output.messages"]))] == ["a", "b"]
    assert said["llm.output_messages.1.message.content"] == "b"


def test_what_is_no_chat_has_its_query_and_its_scores() -> None:
    asked, scores = {"query": "q", "documents": ["a"]}, {"results": [{"index": 0, "relevance_score": 0.5}]}
    event = request_event(route="/rerank", contents=contents(asked, {"text": "", "result": scores}))
    said = last(event, *ALL)
    assert said["gen_ai.operation.name"] == "rerank"
    assert said["openinference.span.kind"] == "RERANKER"
    assert json.loads(str(said["input.value"])) == asked
    assert json.loads(str(said["output.value"])) == scores


def test_what_was_left_out_is_said() -> None:
    event = request_event(contents=contents(MESSAGES, ANSWER, truncated=True))
    assert request_attributes(event, ())["vllm_passthrough.contents_truncated"] is True


def test_spans_have_names_of_few_values() -> None:
    event = request_event()
    assert request_name(event) == "POST /v1/chat/completions"
    assert attempt_name(event) == "chat llama"
    admin = request_event(route="/key/{key}/regenerate", route_class="gateway", model="")
    assert attempt_name(admin) == "POST /key/{key}/regenerate"


def test_the_asked_model_is_the_fallback_s() -> None:
    said = last(request_event(fallback="qwen"), "gen_ai")
    assert said["gen_ai.request.model"] == "qwen"


def test_a_route_of_the_gateway_s_own_asks_no_model() -> None:
    event = request_event(route="/key/generate", route_class="gateway", model="", attempts=())
    assert not [name for name in request_attributes(event, ("gen_ai", "gen_ai_legacy")) if name.startswith("gen_ai")]


#: what generates nothing, or is asked of stored responses
WITHOUT_OPERATION = {"/v1/responses/{id}", "/v1/responses/{id}/cancel", "/v1/messages/count_tokens", "/v1/systemone"}


def test_every_route_that_infers_has_an_operation() -> None:
    unnamed = {
        route.path
        for route in ROUTES
        if route.route_class is RouteClass.INFERENCE and not operation(request_event(route=route.path))
    }
    assert unnamed == WITHOUT_OPERATION


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "text", "tool_calls", "function", "arguments", "message", "choices", "type"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON, st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/x"]))
def test_whatever_a_client_sent_becomes_attributes_that_can_be_sent(asked: Any, answered: Any, route: str) -> None:
    event = request_event(route=route, contents=contents(asked, answered), attempts=RETRIED)
    for said in (request_attributes(event, ALL), *(attempt_attributes(event, number, ALL) for number in (0, 1))):
        for name, value in said.items():
            assert isinstance(value, (str, bool, int, float)) or (
                isinstance(value, list) and all(isinstance(each, str) for each in value)
            ), name
        assert len(said) < 400
