"""Few reports run, few wait, and one tenant takes its share of both."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.errors import ReportsBusy, TooManyReports
from twisted_vllm.storage.report_queue import QUEUE_SHARE, ReportCaller, ReportLimits, ReportQueue

MASTERS = ReportCaller.of(MASTER)


def tenant(number: int, user: str | None = None, team: str | None = None) -> ReportCaller:
    return ReportCaller.of(Principal("key", "name", key_id=f"key-{number}", user_id=user, team_id=team))


def taken(queue: ReportQueue[int]) -> list[int]:
    """Return the reports that may run now."""
    found = []
    while (report := queue.take()) is not None:
        found.append(report)
    return found


@pytest.fixture
def queue() -> ReportQueue[int]:
    return ReportQueue(ReportLimits(running=3, running_per_key=2, waiting=8))


def test_two_reports_of_a_key_run_and_the_others_wait_in_their_order(queue: ReportQueue[int]) -> None:
    for number in range(2):
        queue.add(tenant(1), number)
    assert taken(queue) == [0, 1]
    for number in (2, 3):
        queue.add(tenant(1), number)
    assert taken(queue) == []
    assert (queue.running, queue.waiting) == (2, 2)
    queue.finished(tenant(1))
    assert taken(queue) == [2]


@pytest.mark.parametrize("shared", [{"user": "ada"}, {"team": "red"}], ids=str)
def test_the_keys_of_one_user_and_of_one_team_share_their_places(
    queue: ReportQueue[int], shared: dict[str, str]
) -> None:
    for number in range(2):
        queue.add(tenant(number, **shared), number)
    assert taken(queue) == [0, 1]
    queue.add(tenant(3, **shared), 3)
    queue.add(tenant(4), 4)
    assert taken(queue) == [4]


def test_another_tenant_passes_those_that_wait_for_their_own(queue: ReportQueue[int]) -> None:
    for number in range(2):
        queue.add(tenant(1), number)
    assert taken(queue) == [0, 1]
    queue.add(tenant(1), 2)
    queue.add(tenant(2), 3)
    assert taken(queue) == [3]


def test_administrators_come_first_and_have_all_places_together(queue: ReportQueue[int]) -> None:
    queue.add(tenant(1), 0)
    for number in range(1, 5):
        queue.add(MASTERS, number)
    assert taken(queue) == [1, 2, 3]
    queue.finished(MASTERS)
    assert taken(queue) == [4]
    queue.finished(MASTERS)
    assert taken(queue) == [0]


def test_a_gateway_without_keys_and_a_management_key_are_administrators() -> None:
    manager = Principal("key", "m", key_id="k", allowed_routes=("management",))
    assert {ReportCaller.of(principal) for principal in (MASTER, ANONYMOUS, manager)} == {MASTERS}


def test_a_key_over_its_share_of_the_queue_is_told_the_setting_and_when_to_come_again(
    queue: ReportQueue[int],
) -> None:
    for number in range(4):
        queue.add(tenant(1), number)
        taken(queue)
    with pytest.raises(TooManyReports, match=r"limits\.max_queued_reports") as refused:
        queue.add(tenant(1), 4)
    assert (refused.value.status, refused.value.retry_after) == (429, 5)
    # its next part of a report that it has the beginning of is not refused
    queue.add(tenant(1), 5, begun=True)
    assert queue.refused == 1


def test_a_full_queue_refuses_everybody(queue: ReportQueue[int]) -> None:
    for number in range(8):
        queue.add(MASTERS, number)
    for caller in (MASTERS, tenant(1)):
        with pytest.raises(ReportsBusy, match=r"limits\.max_queued_reports"):
            queue.add(caller, 9)


def test_a_report_that_is_removed_leaves_its_place(queue: ReportQueue[int]) -> None:
    for number in range(4):
        queue.add(tenant(1), number)
        taken(queue)
    assert queue.remove(tenant(1), 3)
    assert not queue.remove(tenant(1), 3)
    queue.add(tenant(1), 4)
    queue.finished(tenant(1))
    assert taken(queue) == [2]
    assert queue.clear() == [4]
    assert queue.waiting == 0


steps = st.lists(st.tuples(st.sampled_from(["add", "part", "take", "finish", "remove"]), st.integers(0, 5)))


@given(steps)
def test_no_limit_is_ever_passed(steps: list[tuple[str, int]]) -> None:
    limits = ReportLimits(running=3, running_per_key=2, waiting=8)
    queue: ReportQueue[tuple[int, int]] = ReportQueue(limits)
    callers = [MASTERS, *(tenant(number, "ada" if number < 3 else None) for number in range(1, 6))]
    running: list[ReportCaller] = []
    waiting: list[tuple[ReportCaller, tuple[int, int]]] = []
    parts = 0
    for step, (what, number) in enumerate(steps):
        caller = callers[number]
        if what in ("add", "part"):
            report = (step, number)
            try:
                queue.add(caller, report, begun=what == "part")
            except (TooManyReports, ReportsBusy):
                assert what == "add"
                continue
            parts += what == "part"
            waiting.append((caller, report))
        elif what == "take":
            found = queue.take()
            if found is not None:
                [place] = [place for place, (_, each) in enumerate(waiting) if each is found]
                running.append(waiting.pop(place)[0])
        elif what == "finish" and running:
            queue.finished(running.pop(number % len(running)))
        elif what == "remove" and waiting:
            assert queue.remove(*waiting.pop(number % len(waiting)))
        assert (queue.running, queue.waiting) == (len(running), len(waiting))
        assert queue.running <= limits.running
        assert queue.waiting <= limits.waiting + parts
        of_scope = Counter(scope for each in running for scope in each.scopes if not each.is_administrator)
        assert all(count <= limits.running_per_key for count in of_scope.values())
        waits = Counter(scope for each, _ in waiting for scope in each.scopes if not each.is_administrator)
        assert all(count <= limits.waiting // QUEUE_SHARE + parts for count in waits.values())
