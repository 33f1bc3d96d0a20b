"""Forms are buffered in memory, and large ones in a file that a thread writes."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred

from twisted_vllm.errors import BodyTooLarge
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.form_spool import IN_MEMORY, FormSpool

LIMIT = 100 * IN_MEMORY


class Threads:
    """Runs functions when the test calls `run`."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, function, args))
        return done

    def run(self) -> None:
        while self.waiting:
            done, function, args = self.waiting.pop(0)
            maybeDeferred(function, *args).chainDeferred(done)


def unnamed_files() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(descriptor).endswith("(deleted)")
        except FileNotFoundError:
            continue
    return found


def contents(spool: FormSpool, threads: Threads) -> bytes:
    found = b""
    while True:
        pieces: list[bytes] = []
        spool.read().addCallback(pieces.append)
        threads.run()
        if not pieces[0]:
            return found
        found += pieces[0]


def test_a_small_form_stays_in_memory() -> None:
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    assert spool.write(b"a" * 1_000) is None
    assert spool.write(b"b" * 1_000) is None
    assert not threads.waiting
    assert contents(spool, threads) == b"a" * 1_000 + b"b" * 1_000


def test_the_writer_is_paused_while_the_file_is_written() -> None:
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    done = spool.write(bytes(IN_MEMORY))
    assert done is not None
    assert spool.busy
    assert spool.write(b"more") is None
    assert not done.called
    threads.run()
    assert done.called
    assert not spool.busy
    assert contents(spool, threads) == bytes(IN_MEMORY) + b"more"


def test_data_received_meanwhile_is_written_before_the_writer_resumes() -> None:
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    done = spool.write(b"a" * IN_MEMORY)
    spool.write(b"b" * IN_MEMORY)
    assert done is not None
    [(first, function, args)] = threads.waiting
    threads.waiting.clear()
    maybeDeferred(function, *args).chainDeferred(first)
    assert not done.called
    threads.run()
    assert done.called
    assert contents(spool, threads) == b"a" * IN_MEMORY + b"b" * IN_MEMORY


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, IN_MEMORY), st.booleans()), max_size=8))
def test_what_was_written_comes_back_in_order(pieces: list[tuple[int, bool]]) -> None:
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    written = b""
    for number, (size, runs) in enumerate(pieces):
        data = bytes([number]) * size
        spool.write(data)
        written += data
        if runs:
            threads.run()
    threads.run()
    assert contents(spool, threads) == written
    spool.close()
    threads.run()


def test_more_than_the_limit_is_refused() -> None:
    spool = FormSpool(Threads(), 10, FormFiles())
    spool.write(bytes(10))
    with pytest.raises(BodyTooLarge):
        spool.write(b"a")


@pytest.mark.parametrize("when", ["written", "while it is written", "while it is read"])
def test_the_file_is_gone_when_it_is_closed(when: str) -> None:
    before = unnamed_files()
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    spool.write(bytes(IN_MEMORY))
    if when != "while it is written":
        threads.run()
        assert unnamed_files() == before + 1
    if when == "while it is read":
        spool.read()
    spool.close()
    threads.run()
    assert unnamed_files() == before


def test_the_file_is_closed_with_an_unclosed_spool() -> None:
    before = unnamed_files()
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    spool.write(bytes(IN_MEMORY))
    threads.run()
    assert unnamed_files() == before + 1
    del spool
    gc.collect()
    assert unnamed_files() == before


def test_a_write_error_of_the_file_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    threads = Threads()
    spool = FormSpool(threads, LIMIT, FormFiles())
    done = spool.write(bytes(IN_MEMORY))
    assert done is not None
    failures: list[Any] = []
    done.addErrback(failures.append)
    threads.run()
    assert failures[0].check(FileNotFoundError)
    assert not spool.busy
