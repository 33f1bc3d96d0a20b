"""``GET /metrics``: what the gateway says of itself to Prometheus."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from tests.admin.admin_harness import MASTER_KEY, Gateway

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def test_it_is_prometheus_text_with_what_the_process_says() -> None:
    answer = Gateway().get("/metrics", key=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in prometheus_text(answer.body.decode())}
    assert {"process_cpu_seconds", "process_open_fds", "python_info", "python_gc_collections"} <= set(families)
    assert families["vllm_passthrough_info"].samples[0].labels == {"version": version("twisted-vllm")}


def test_it_is_openmetrics_where_the_client_takes_that() -> None:
    answer = Gateway().get("/metrics", key=None, headers={"Accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert "vllm_passthrough" in {family.name for family in openmetrics(answer.body.decode())}


def test_the_operator_may_close_it_to_all_but_administrators() -> None:
    gateway = Gateway(metrics_are_open=False)
    tenant = gateway.make_key()["key"]
    manager = gateway.make_key(allowed_routes=["management"])["key"]
    assert gateway.get("/metrics", key=None).status == 401
    assert gateway.get("/metrics", key=tenant).status == 403
    assert gateway.get("/metrics", key=manager).status == gateway.get("/metrics").status == 200


def test_two_gateways_in_one_process_do_not_share_metrics() -> None:
    assert Gateway().get("/metrics").status == Gateway().get("/metrics").status == 200


def test_a_slash_at_its_end_changes_nothing() -> None:
    assert Gateway().get("/metrics/", key=None).status == 200


def test_an_accept_that_makes_no_sense_is_answered_with_text() -> None:
    answer = Gateway().get("/metrics", key=None, headers={"Accept": "application/openmetrics-text;version=é"})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_an_open_gateway_shows_it_to_everybody_but_virtual_keys_where_it_is_closed() -> None:
    assert Gateway(master_key=None).get("/metrics", key=None).status == 200
    closed = Gateway(master_key=None, metrics_are_open=False)
    assert closed.get("/metrics", key=None).status == 200
    assert closed.get("/metrics", key=closed.make_key()["key"]).status == 403


def test_the_servers_metrics_are_for_administrators_and_keys_that_name_the_route() -> None:
    gateway = Gateway()
    tenant = gateway.make_key()["key"]
    scraper = gateway.make_key(allowed_routes=["/metrics/upstreams"])["key"]
    manager = gateway.make_key(allowed_routes=["management"])["key"]
    assert gateway.get("/metrics/upstreams", key=None).status == 401
    assert gateway.get("/metrics/upstreams", key=tenant).error["code"] == "route_not_allowed"
    for key in (scraper, manager, MASTER_KEY):
        answer = gateway.get("/metrics/upstreams", key=key)
        assert (answer.status, answer.body) == (200, b"x 1\n")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
