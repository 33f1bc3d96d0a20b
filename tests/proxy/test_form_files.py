"""The temporary files of large forms are bounded in number and bytes, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
from types import MethodType

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.bodies.test_multipart import MODEL
from tests.descriptors import no_descriptor
from tests.proxy.test_form_spool import Threads, contents, unnamed_files
from tests.proxy.test_forms import LIMIT, LONG, BufferedForm
from twisted_vllm.errors import FormSpoolFull
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.form_spool import IN_MEMORY, FormSpool


def full_spool(files: FormFiles, threads: Threads) -> FormSpool:
    spool = FormSpool(threads, LIMIT, files)
    spool.write(bytes(IN_MEMORY))
    threads.run()
    return spool


def test_a_form_over_the_bytes_of_all_files_is_refused() -> None:
    threads, files = Threads(), FormFiles(max_bytes=2 * IN_MEMORY)
    first, second = full_spool(files, threads), full_spool(files, threads)
    with pytest.raises(FormSpoolFull) as caught:
        full_spool(files, threads)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    first.close()
    threads.run()
    third = full_spool(files, threads)
    assert contents(third, threads) == bytes(IN_MEMORY)
    for spool in (second, third):
        spool.close()
    threads.run()
    assert (files.count, files.bytes) == (0, 0)


def test_a_form_over_the_number_of_files_is_refused() -> None:
    threads, files = Threads(), FormFiles(max_files=1)
    first = full_spool(files, threads)
    with pytest.raises(FormSpoolFull):
        full_spool(files, threads)
    # a form that has a file goes on
    assert first.write(bytes(IN_MEMORY)) is not None
    threads.run()
    first.close()
    threads.run()
    full_spool(files, threads).close()
    threads.run()
    assert files.count == 0


def test_a_form_that_fits_into_memory_needs_no_file() -> None:
    threads, files = Threads(), FormFiles(max_bytes=0, max_files=0)
    spool = FormSpool(threads, LIMIT, files)
    spool.write(bytes(IN_MEMORY - 1))
    assert len(contents(spool, threads)) == IN_MEMORY - 1


def test_a_request_whose_form_finds_no_room_is_told_to_come_back() -> None:
    held = BufferedForm(None, files=FormFiles(max_files=0))
    held.send(LONG)
    assert isinstance(held.request.answered, FormSpoolFull)
    held.send(MODEL)
    assert held.known == []


def test_a_request_that_was_promised_room_and_finds_none_later_is_told_as_well() -> None:
    held = BufferedForm(None, files=FormFiles(max_bytes=len(LONG)))
    held.send(LONG)
    held.send(bytes(IN_MEMORY))
    held.threads.run()
    assert isinstance(held.request.answered, FormSpoolFull)
    assert held.request.failures == []


def test_without_a_descriptor_a_form_is_a_503_and_its_room_is_free_again() -> None:
    files = FormFiles()
    held = BufferedForm(None, files=files)
    held.send(LONG)
    with no_descriptor():
        held.threads.run()
    assert isinstance(held.request.answered, FormSpoolFull)
    assert (files.count, files.bytes) == (0, 0)


def test_a_form_that_nobody_closes_gives_its_room_back() -> None:
    threads, files = Threads(), FormFiles()
    before = unnamed_files()
    spool: FormSpool | None = full_spool(files, threads)
    assert (files.count, unnamed_files()) == (1, before + 1)
    del spool
    gc.collect()
    assert (files.count, files.bytes, unnamed_files()) == (0, 0, before)


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["write", "close", "run", "fail"])), max_size=40),
    st.integers(0, 4),
)
def test_whatever_happens_to_forms_the_bounds_hold_and_nothing_is_left(
    steps: list[tuple[int, str]], max_files: int
) -> None:
    files = FormFiles(max_bytes=5 * IN_MEMORY, max_files=max_files)
    threads = Threads()
    spools: dict[int, FormSpool] = {}
    for number, step in steps:
        if step == "close" and number in spools:
            spools.pop(number).close()
        elif step == "run":
            threads.run()
        elif step == "fail" and threads.waiting and isinstance(threads.waiting[0][1], MethodType):
            done: Deferred[object] = threads.waiting.pop(0)[0]
            done.errback(OSError(errno.ENOSPC, "full"))
        elif step == "write":
            spool = spools.setdefault(number, FormSpool(threads, 1_000 * IN_MEMORY, files))
            try:
                written = spool.write(bytes(IN_MEMORY))
            except FormSpoolFull:
                spools.pop(number).close()
            else:
                if written is not None:
                    written.addErrback(lambda failure: failure.trap(OSError, FormSpoolFull))
        assert files.bytes <= 5 * IN_MEMORY
        assert files.count <= max_files
    for spool in spools.values():
        spool.close()
    threads.run()
    assert (files.count, files.bytes) == (0, 0)
