"""The four generating APIs, sent whole and as streams, as a client sees them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulator.simulator_harness import NOW, Simulator, user

CHAT = "/v1/chat/completions"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": user("one two three"), **more}


def test_a_chat_answer_has_vllms_fields_and_counts_words(simulator: Simulator) -> None:
    got = simulator.post(CHAT, chat(max_tokens=4))
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert got.json | {"id": ""} == {
        "id": "",
        "object": "chat.completion",
        "created": NOW,
        "model": "small",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "This text is simulated:",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
                "routed_experts": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": "vllm-0.32.0-simulator",
        "usage": {
            "prompt_tokens": 3,
            "total_tokens": 7,
            "completion_tokens": 4,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def test_a_streamed_chat_puts_together_to_the_same_text(simulator: Simulator) -> None:
    whole = simulator.post(CHAT, chat()).json["choices"][0]
    got = simulator.post(CHAT, chat(stream=True))
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = got.events
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert not any("usage" in chunk for chunk in chunks)


def test_each_token_is_one_event(simulator: Simulator) -> None:
    events = simulator.post(CHAT, chat(stream=True, max_tokens=5)).events
    assert len(events) == 1 + 5 + 1


def test_include_usage_adds_one_event_without_choices_before_done(simulator: Simulator) -> None:
    events = simulator.post(CHAT, chat(stream=True, max_tokens=5, stream_options={"include_usage": True})).events
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}
    assert all("usage" not in event for event in events[:-2])


def test_continuous_usage_counts_up_with_every_event(simulator: Simulator) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = simulator.post(CHAT, chat(stream=True, max_tokens=3, stream_options=options)).events
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [0, 1, 2, 3, 3]


def test_n_gives_different_choices_in_one_answer_and_in_one_stream(simulator: Simulator) -> None:
    whole = simulator.post(CHAT, chat(n=3)).json["choices"]
    texts = [choice["message"]["content"] for choice in whole]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for event in simulator.post(CHAT, chat(n=3, stream=True)).events[:-1]:
        choice = event["choices"][0]
        streamed[choice["index"]] += choice["delta"]["content"]
    assert streamed == texts


def test_max_completion_tokens_is_taken_before_max_tokens(simulator: Simulator) -> None:
    got = simulator.post(CHAT, chat(max_completion_tokens=2, max_tokens=5))
    assert got.json["usage"]["completion_tokens"] == 2


def test_a_request_without_a_model_gets_the_first(simulator: Simulator) -> None:
    assert simulator.post(CHAT, {"messages": user("hi")}).json["model"] == "small"


def test_parts_of_a_message_are_counted_by_their_text(simulator: Simulator) -> None:
    parts = [{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert simulator.post(CHAT, chat(messages=user(parts))).json["usage"]["prompt_tokens"] == 2


def test_the_request_id_of_the_client_becomes_the_id_of_the_answer(simulator: Simulator) -> None:
    assert simulator.post(CHAT, chat(max_tokens=1), {"x-request-id": "abc"}).json["id"] == "chatcmpl-abc"


def test_a_request_id_that_looks_like_the_place_of_a_token_breaks_no_event(simulator: Simulator) -> None:
    odd = r'\u0000token\u0000","x":"'
    events = simulator.post(CHAT, chat(stream=True, max_tokens=3), {"x-request-id": odd}).events
    assert {event["id"] for event in events[:-1]} == {f"chatcmpl-{odd}"}


def test_completions_stop_after_16_tokens_unless_told_otherwise(simulator: Simulator) -> None:
    got = simulator.post("/v1/completions", {"model": "small", "prompt": "a b"})
    assert got.json["usage"] == {
        "prompt_tokens": 2,
        "total_tokens": 18,
        "completion_tokens": 16,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def test_completions_answer_several_prompts_in_words_and_in_tokens(simulator: Simulator) -> None:
    texts = simulator.post("/v1/completions", {"prompt": ["a b", "c"], "n": 2, "max_tokens": 2}).json
    assert [choice["index"] for choice in texts["choices"]] == [0, 1, 2, 3]
    tokens = simulator.post("/v1/completions", {"prompt": [[1, 2, 3], [4]], "max_tokens": 2}).json
    assert tokens["usage"]["prompt_tokens"] == 4


def test_streamed_completions_carry_text_and_usage(simulator: Simulator) -> None:
    body = {"prompt": "a", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = simulator.post("/v1/completions", body).events
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "This text is"
    assert usage["usage"]["completion_tokens"] == 3
    assert done == "[DONE]"


def test_messages_answer_in_anthropics_shape(simulator: Simulator) -> None:
    body = {"model": "small", "messages": user("one two"), "system": "be kind", "max_tokens": 3}
    got = simulator.post("/v1/messages", body).json
    assert got["content"] == [{"type": "text", "text": "This text is"}]
    assert (got["type"], got["role"], got["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert got["usage"] == {"input_tokens": 4, "output_tokens": 3}


def test_streamed_messages_have_anthropics_events_in_order(simulator: Simulator) -> None:
    body = {"model": "small", "messages": user("one"), "max_tokens": 2, "stream": True}
    events = simulator.post("/v1/messages", body).named_events
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == event["type"] for name, event in events)
    assert events[0][1]["message"]["usage"] == {"input_tokens": 1, "output_tokens": 0}
    assert events[-2][1]["usage"] == {"input_tokens": 1, "output_tokens": 2}
    assert "".join(event["delta"]["text"] for name, event in events if name == "content_block_delta") == "This text"


def test_message_tokens_are_counted_without_an_answer(simulator: Simulator) -> None:
    got = simulator.post("/v1/messages/count_tokens", {"model": "small", "messages": user("one two three")})
    assert got.json == {"input_tokens": 3, "context_management": {"original_input_tokens": 3}}


def test_responses_answer_in_openais_newer_shape(simulator: Simulator) -> None:
    body = {"model": "small", "input": "one two", "instructions": "be kind", "max_output_tokens": 3}
    got = simulator.post("/v1/responses", body).json
    assert got["output"][0]["content"][0]["text"] == "This text is"
    assert (got["status"], got["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (got["usage"]["input_tokens"], got["usage"]["output_tokens"], got["usage"]["total_tokens"]) == (4, 3, 7)
    assert simulator.post("/v1/responses", {"input": user("hi")}).json["status"] == "completed"


def test_streamed_responses_number_their_events_and_end_with_the_whole(simulator: Simulator) -> None:
    events = simulator.post("/v1/responses", {"input": "one", "max_output_tokens": 2, "stream": True}).named_events
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert all(name == event["type"] for name, event in events)
    assert [name for name, _ in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1][1]["response"]["usage"]["output_tokens"] == 2
    assert events[0][1]["response"]["usage"] is None


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel"])
def test_no_response_is_ever_stored(simulator: Simulator, path: str) -> None:
    got = simulator.call("POST" if path.endswith("cancel") else "GET", path)
    assert got.status == 404
    assert got.json["error"]["message"] == "Response with id 'resp_1' not found."
