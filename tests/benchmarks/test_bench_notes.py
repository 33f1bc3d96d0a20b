"""Figures that are not to be trusted are said to be so, and good ones go without a word."""

from __future__ import annotations

from collections import Counter

from benchmarks.notes import Notes


def test_a_calm_machine_and_a_kept_pace_need_no_note() -> None:
    notes = Notes()
    notes.others("gateway, requests", 0.05)
    notes.pace("gateway", 4950, 5000)
    notes.failures("gateway, 10 open streams", Counter())
    assert notes.texts() == []


def test_a_busy_machine_is_said_once_for_everything_that_it_spoilt() -> None:
    notes = Notes()
    notes.others("nginx, requests", 0.1)
    notes.others("gateway, requests", 1.62)
    notes.others("gateway, streams", 0.91)
    [text] = notes.texts()
    assert text.startswith("This machine was not calm")
    assert text.endswith("during gateway, requests: 1.6; gateway, streams: 0.9.")


def test_streams_that_fell_behind_are_not_to_be_compared() -> None:
    notes = Notes()
    notes.pace("vllm-router", 1706, 5000)
    notes.pace("nginx", None, 5000)
    assert "1,706 chunks/s came of 5,000 that were due" in notes.texts()[0]
    assert notes.texts()[1].startswith("nginx, streams: 0 chunks/s came")


def test_failures_are_counted_and_the_most_frequent_is_named() -> None:
    notes = Notes()
    notes.failures("nginx, 9 open streams", Counter({"no connection": 1, "status 503: busy": 4}))
    assert notes.texts() == ["nginx, 9 open streams: 5 failed, most often: status 503: busy"]


def test_nothing_is_said_twice() -> None:
    notes = Notes()
    notes.add("x")
    notes.add("x")
    assert notes.texts() == ["x"]
