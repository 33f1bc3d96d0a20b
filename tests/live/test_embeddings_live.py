"""Embeddings of every shape are counted as vLLM counts them, and pass as they are."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from tests.live.live_gateway import Answer, LiveGateway, ask, json_request, new_secret
from tests.live.live_ledger import EVIL, PRICED, sums, used
from tests.live.live_servers import StartGateway, served_model, server_from

OPENAI, COHERE, POOLING = "/v1/embeddings", "/v2/embed", "/pooling"
TEXTS = ["hello world", "a", EVIL]


@pytest.fixture(scope="module")
def embed_url() -> str:
    """The server."""
    return server_from("VLLM_EMBED_URL", "this test needs a vLLM with a model for embeddings")


@pytest.fixture(scope="module")
def model(embed_url: str) -> str:
    """What the server calls its model."""
    return served_model(embed_url)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, embed_url: str) -> LiveGateway:
    return start_gateway(PRICED, HOSTED_VLLM_API_BASE=embed_url, LITELLM_MASTER_KEY=new_secret())


def post(gateway: LiveGateway, route: str, body: dict[str, Any], key: str) -> Answer:
    return gateway.ask("POST", f"/vllm{route}", key, **json_request(body))


SHAPES: list[tuple[str, dict[str, Any]]] = [
    (OPENAI, {"input": "hello world"}),
    (OPENAI, {"input": TEXTS}),
    (OPENAI, {"input": TEXTS, "encoding_format": "base64"}),
    (OPENAI, {"input": TEXTS, "encoding_format": "bytes"}),
    (OPENAI, {"input": "x " * 600, "encoding_format": "bytes", "embed_dtype": "float16"}),
    (OPENAI, {"input": [3, 4, 5]}),
    (OPENAI, {"input": [[3, 4, 5], [6]]}),
    (OPENAI, {"input": [[3, 4, 5], [6]], "encoding_format": "bytes"}),
    (OPENAI, {"input": ["x"] * 200}),
    (OPENAI, {"input": "x " * 600, "truncate_prompt_tokens": 5}),
    (OPENAI, {"messages": [{"role": "user", "content": "hello"}]}),
    (COHERE, {"texts": TEXTS}),
    (COHERE, {"texts": ["a", "b"], "embedding_types": ["float", "base64", "binary"]}),
    (COHERE, {"inputs": [{"content": [{"type": "text", "text": "hello"}]}]}),
    (POOLING, {"input": TEXTS}),
    (POOLING, {"input": TEXTS, "encoding_format": "base64"}),
    (POOLING, {"input": TEXTS, "encoding_format": "bytes"}),
    (POOLING, {"input": [[3, 4, 5], [6]]}),
    ("/score", {"text_1": "a", "text_2": TEXTS}),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d"]}),
    ("/rerank", {"query": "a", "documents": TEXTS}),
    ("/v1/rerank", {"query": "a", "documents": TEXTS, "top_n": 1}),
    ("/v2/rerank", {"query": "a", "documents": TEXTS}),
    ("/invocations", {"input": TEXTS}),
]


@pytest.mark.parametrize(("route", "body"), SHAPES, ids=[f"{route} {json.dumps(body)[:60]}" for route, body in SHAPES])
def test_the_ledger_counts_what_vllm_counts(
    gateway: LiveGateway, embed_url: str, model: str, route: str, body: dict[str, Any]
) -> None:
    [row], counted = used(gateway, embed_url, [partial(post, gateway, route, {"model": model, **body})])
    assert sums([row])[:2] == counted[:2]
    assert row["prompt_tokens"] == row["total_tokens"] > 0
    assert row["completion_tokens"] == 0
    assert not row["metadata"]["estimated"]
    assert round(row["spend"] * 1e6) == row["prompt_tokens"]


def test_all_of_them_add_up(gateway: LiveGateway, embed_url: str, model: str) -> None:
    rows, counted = used(
        gateway, embed_url, [partial(post, gateway, route, {"model": model, **body}) for route, body in SHAPES]
    )
    assert sums(rows)[:2] == counted[:2]


@pytest.mark.parametrize("encoding", ["float", "base64", "bytes", "bytes_only"])
def test_embeddings_through_the_gateway_are_those_of_the_server(
    gateway: LiveGateway, embed_url: str, model: str, encoding: str
) -> None:
    asked = json_request({"model": model, "input": TEXTS, "encoding_format": encoding})
    direct = ask(embed_url, "POST", OPENAI, **asked)
    through = gateway.ask("POST", f"/vllm{OPENAI}", gateway.master_key, **asked)
    assert (through.status, through.header("content-type")) == (200, direct.header("content-type"))
    if encoding.startswith("bytes"):
        assert through.body == direct.body
        assert (through.header("metadata") is None) == (direct.header("metadata") is None) == (encoding != "bytes")
    else:
        assert [each["embedding"] for each in through.json["data"]] == [
            each["embedding"] for each in direct.json["data"]
        ]
        assert through.json["usage"] == direct.json["usage"]


def test_bytes_that_tell_no_usage_are_estimated(gateway: LiveGateway, embed_url: str, model: str) -> None:
    body = {"model": model, "input": "hello world " * 20, "encoding_format": "bytes_only"}
    [row], _ = used(gateway, embed_url, [partial(post, gateway, OPENAI, body)])
    assert row["metadata"]["estimated"]
    assert row["prompt_tokens"] > 20


def test_what_only_counts_tokens_uses_none(gateway: LiveGateway, embed_url: str, model: str) -> None:
    body = {"model": model, "prompt": "hello world"}
    [row], counted = used(gateway, embed_url, [partial(post, gateway, "/tokenize", body)])
    assert counted[:2] == sums([row])[:2] == [0, 0]
    assert (row["spend"], row["metadata"]["estimated"]) == (0, False)
    assert row["total_tokens"] > 2


def test_an_input_that_vllm_refuses_uses_nothing(gateway: LiveGateway, embed_url: str, model: str) -> None:
    key = gateway.make_key()
    answer = post(gateway, OPENAI, {"model": model, "input": "x " * 9000}, key)
    assert answer.status == 400
    [row], counted = used(gateway, embed_url, [partial(post, gateway, OPENAI, {"model": model, "input": "a"})])
    assert row["prompt_tokens"] == counted[0]
    assert gateway.ask("GET", "/key/info", key).json["info"]["spend"] == 0
