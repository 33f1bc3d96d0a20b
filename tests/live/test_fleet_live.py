"""Two vLLMs of one model behind one gateway: what lives on one of them, what goes to both, and their metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.live_gateway import LiveGateway, ask, json_request, new_secret
from tests.live.live_servers import StartGateway, served_model, server_from
from twisted_vllm.upstreams.merged_metrics import SCRAPE_UP

RESPONSES = "/vllm/v1/responses"
SERVER = "x-vllm-passthrough-server"


@pytest.fixture(scope="module")
def urls() -> tuple[str, str]:
    """Both servers; their model has one name."""
    what = "this test needs two vLLMs with VLLM_ENABLE_RESPONSES_API_STORE=1 and VLLM_SERVER_DEV_MODE=1"
    return server_from("VLLM_STORE_URL", what), server_from("VLLM_STORE_URL_2", what)


@pytest.fixture(scope="module")
def model(urls: tuple[str, str]) -> str:
    """What the servers call their model."""
    return served_model(urls[0])


@pytest.fixture(scope="module")
def configuration(urls: tuple[str, str], model: str) -> str:
    """A configuration with both servers."""
    return json.dumps(
        {
            "model_list": [
                {"model_name": model, "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": url}}
                for url in urls
            ],
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
            "router_settings": {"routing_strategy": "round-robin"},
        }
    )


@pytest.fixture(scope="module")
def fleet(start_gateway: StartGateway, configuration: str) -> LiveGateway:
    """A gateway in front of both."""
    return start_gateway(configuration, LITELLM_MASTER_KEY=new_secret())


def name_of(url: str) -> str:
    return url.partition("://")[2]


def create(gateway: LiveGateway, key: str | None, model: str, **fields: Any) -> Any:
    body = {"model": model, "input": "Hello", "max_output_tokens": 4, **fields}
    answer = gateway.ask("POST", RESPONSES, key, **json_request(body))
    assert answer.status == 200, answer.body
    return answer.json


def places(urls: tuple[str, str], response_id: str) -> list[str]:
    return [url for url in urls if ask(url, "GET", f"/v1/responses/{response_id}").status == 200]


@pytest.mark.parametrize("virtual", [False, True])
def test_responses_are_read_and_continued_where_they_are(
    fleet: LiveGateway, urls: tuple[str, str], model: str, virtual: bool
) -> None:
    key = fleet.make_key() if virtual else fleet.master_key
    made = [create(fleet, key, model)["id"] for _ in range(4)]
    found = [places(urls, response_id) for response_id in made]
    assert {len(each) for each in found} == {1}
    assert {each for [each] in found} == set(urls)
    for response_id, [place] in zip(made, found, strict=True):
        assert fleet.ask("GET", f"{RESPONSES}/{response_id}", key).json["id"] == response_id
        continued = create(fleet, key, model, previous_response_id=response_id)
        assert places(urls, continued["id"]) == [place]


def test_a_gateway_that_saw_nothing_asks_all_servers(
    start_gateway: StartGateway, configuration: str, fleet: LiveGateway, urls: tuple[str, str], model: str
) -> None:
    made = [create(fleet, fleet.master_key, model, background=True)["id"] for _ in range(2)]
    other = start_gateway(configuration, LITELLM_MASTER_KEY=new_secret())
    for response_id in made:
        assert other.ask("GET", f"{RESPONSES}/{response_id}", other.master_key).json["id"] == response_id
        cancelled = other.ask("POST", f"{RESPONSES}/{response_id}/cancel", other.master_key)
        # it may have ended; a server without it would not know it
        assert cancelled.status in (200, 400), cancelled.body
    answer = other.ask("GET", f"{RESPONSES}/resp_{'0' * 16}", other.master_key)
    assert answer.body == ask(urls[0], "GET", f"/v1/responses/resp_{'0' * 16}").body
    assert answer.status == 404


def test_a_cache_reset_goes_to_both(fleet: LiveGateway, urls: tuple[str, str], model: str) -> None:
    answer = fleet.ask("POST", "/vllm/reset_prefix_cache", fleet.master_key, body=b"")
    assert answer.status == 200, answer.body
    assert [(each["server"], each["status"]) for each in answer.json["servers"]] == [
        (name_of(url), 200) for url in urls
    ]
    one = fleet.ask("POST", "/vllm/reset_prefix_cache", fleet.master_key, [(SERVER, name_of(urls[1]))], b"")
    direct = ask(urls[1], "POST", "/reset_prefix_cache", body=b"")
    assert (one.status, one.body) == (direct.status, direct.body)
    paused = fleet.ask("POST", "/vllm/pause?mode=wait", fleet.master_key, body=b"")
    assert (paused.status, paused.json["servers"][0]["body"]) == (200, {"status": "paused"})
    assert [ask(url, "GET", "/is_paused").json["is_paused"] for url in urls] == [True, True]
    assert fleet.ask("POST", "/vllm/resume", fleet.master_key, body=b"").status == 200
    assert [ask(url, "GET", "/is_paused").json["is_paused"] for url in urls] == [False, False]


def test_what_vllm_refuses_is_told_of_each_server(fleet: LiveGateway, urls: tuple[str, str]) -> None:
    body = {"lora_name": "none", "lora_path": "/nowhere"}
    answer = fleet.ask("POST", "/vllm/v1/load_lora_adapter", fleet.master_key, **json_request(body))
    direct = [ask(url, "POST", "/v1/load_lora_adapter", **json_request(body)) for url in urls]
    assert [each["status"] for each in answer.json["servers"]] == [each.status for each in direct]
    assert answer.status == direct[0].status


def test_all_metrics_come_in_one_scrape(fleet: LiveGateway, urls: tuple[str, str], model: str) -> None:
    answer = fleet.ask("GET", "/metrics/upstreams", fleet.master_key)
    assert answer.status == 200
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert {(each.labels["server"], each.value) for each in families[SCRAPE_UP].samples} == {
        (name_of(url), 1.0) for url in urls
    }
    for url in urls:
        own = {
            (sample.name, frozenset(sample.labels.items()))
            for family in text_string_to_metric_families(ask(url, "GET", "/metrics").body.decode())
            for sample in family.samples
        }
        joined = {
            (sample.name, frozenset(pair for pair in sample.labels.items() if pair[0] != "server"))
            for family in families.values()
            for sample in family.samples
            if sample.labels["server"] == name_of(url) and family.name != SCRAPE_UP
        }
        # asking for them adds samples of its own
        assert len(own) > 100
        assert joined <= own
        assert len(own - joined) < 30
    for name in ("vllm:num_requests_running", "vllm:time_to_first_token_seconds"):
        assert {sample.labels["server"] for sample in families[name].samples} == {name_of(url) for url in urls}
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=answer.body, capture_output=True, check=False)
        assert b"error while linting" not in done.stderr, done.stderr


def test_a_header_names_the_server(fleet: LiveGateway, urls: tuple[str, str], model: str) -> None:
    for url in urls:
        headers = [(SERVER, name_of(url))]
        body = {"model": model, "prompt": "Hello", "max_tokens": 1}
        for method, path, request in (("GET", "/version", {}), ("POST", "/v1/completions", json_request(body))):
            headers_of = headers + request.pop("headers", [])
            answer = fleet.ask(method, f"/vllm{path}", fleet.master_key, headers_of, **request)
            assert answer.status == 200, answer.body
            record = fleet.record_of(str(answer.header("x-request-id")))
            assert record["server"] == name_of(url)
