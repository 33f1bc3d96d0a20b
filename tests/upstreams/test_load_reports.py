"""What a server's metrics say of its load."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.load_reports import MOST_ENGINES, CacheHits, LoadReport, read_load
from twisted_vllm.upstreams.load_scraper import MAX_ANSWER

#: from a vLLM 0.32 with one engine
VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen"} 3.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="qwen",reason="capacity"} 3.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.25
"""


def test_it_reads_the_queue_and_the_cache() -> None:
    assert read_load(VLLM) == LoadReport(waiting=3.0, kv_usage=0.25, running=4.0)


def test_engines_of_one_server_are_taken_together() -> None:
    text = b"".join(
        b'vllm:num_requests_waiting{engine="%d"} %d\nvllm:kv_cache_usage_perc{engine="%d"} %f\n' % (n, n, n, n / 4)
        for n in range(4)
    )
    assert read_load(text) == LoadReport(waiting=6.0, kv_usage=0.375)


def test_it_knows_the_name_that_older_versions_use() -> None:
    assert read_load(b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5') == LoadReport(0.0, 0.5)


@pytest.mark.parametrize("value", [b"NaN", b"-1", b"+Inf", b"", b"x", b"{}"])
def test_a_value_that_is_none_is_passed_over(value: bytes) -> None:
    assert read_load(b'vllm:num_requests_waiting{a="b"} ' + value + b"\n") is None


@pytest.mark.parametrize("label", ['"} 9', "a b", "}", "\\n", "{", "é"])
def test_no_label_is_taken_for_a_value(label: str) -> None:
    line = f'vllm:num_requests_waiting{{model_name="{label}"}} 2 1700000000000\n'
    assert read_load(line.encode()) == LoadReport(2.0, 0.0)


def test_a_server_that_is_no_vllm_tells_nothing() -> None:
    assert read_load(b"# TYPE sglang:num_queue_reqs gauge\nsglang:num_queue_reqs 3\n") is None
    assert read_load(b"# vllm:num_requests_waiting 4\n") is None
    assert read_load(b"x_vllm:num_requests_waiting 4\n") is None


@given(st.binary(max_size=300))
def test_no_bytes_are_too_odd(text: bytes) -> None:
    for wild in (text, VLLM[:180] + text + VLLM[180:]):
        found = read_load(wild)
        assert found is None or (found.waiting >= 0 and 0 <= found.kv_usage <= 1)


@pytest.mark.parametrize(
    "hostile",
    [
        b"vllm:num_requests_waiting{",
        b"vllm:num_requests_waiting{\n",
        b"\nvllm:num_requests_waiting",
        b"\nvllm:num_requests_waiting{" + b"x" * 5_000,
        b"\n",
        b"vllm:",
    ],
)
def test_a_hostile_answer_of_the_greatest_size_takes_little_time(hostile: bytes) -> None:
    text = hostile * (MAX_ANSWER // len(hostile))
    began = time.process_time()
    read_load(text)
    assert time.process_time() - began < 0.05


def test_the_lines_that_are_read_are_bounded() -> None:
    assert read_load(b"vllm:num_requests_waiting 1\n" * (MOST_ENGINES + 9)) == LoadReport(MOST_ENGINES, 0.0)


def test_the_hits_of_the_last_minute_are_a_share_of_the_tokens_that_were_looked_up() -> None:
    hits = CacheHits()
    assert hits.add(LoadReport(cache_queries=1_000.0, cache_hits=900.0), 0.0) is None, "what was before is not counted"
    assert hits.add(LoadReport(cache_queries=1_000.0, cache_hits=900.0), 5.0) is None, "nothing was looked up"
    assert hits.add(LoadReport(cache_queries=1_100.0, cache_hits=925.0), 10.0) == 0.25
    assert hits.add(LoadReport(cache_queries=1_200.0, cache_hits=1_025.0), 30.0) == 0.625
    # only the last minute counts
    assert hits.add(LoadReport(cache_queries=1_300.0, cache_hits=1_125.0), 80.0) == 1.0
    # the server was started again
    assert hits.add(LoadReport(cache_queries=10.0, cache_hits=0.0), 85.0) is None
    assert hits.add(LoadReport(cache_queries=20.0, cache_hits=5.0), 90.0) == 0.5
    # it does not say
    assert hits.add(LoadReport(), 95.0) is None


def test_it_reads_the_prefix_cache_of_all_engines() -> None:
    text = (
        b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n'
        b'vllm:num_requests_waiting{engine="0"} 0.0\n'
        b'vllm:prefix_cache_queries_total{engine="0"} 10.0\nvllm:prefix_cache_queries_total{engine="1"} 20.0\n'
        b'vllm:prefix_cache_hits_total{engine="0"} 5.0\nvllm:prefix_cache_hits_total{engine="1"} 0.0\n'
    )
    assert read_load(text) == LoadReport(running=5.0, cache_queries=30.0, cache_hits=5.0)
