"""Few messages from many alerts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.alert_types import ALERT_TYPES, BUDGETS, OUTAGE
from twisted_vllm.observability.alerting.alerts import HIGH, LOW, MEDIUM, Alert
from twisted_vllm.observability.alerting.digest import (
    BURST,
    LINGER,
    MINUTE,
    MOST_ABOUT,
    MOST_TEXTS,
    REPEAT,
    AlertDigest,
    Message,
)


def down(server: str = "gpu-1", text: str = "down") -> Alert:
    return Alert(OUTAGE, server, text)


def test_one_alert_is_one_message_after_a_moment() -> None:
    digest = AlertDigest(10)
    digest.add(down(), 100.0)
    assert digest.due(100.0) == []
    assert digest.due(100.0 + LINGER) == [Message(OUTAGE, HIGH, ("down",), 1, 100.0)]
    assert digest.due(200.0) == []
    assert digest.waiting == 0


def test_alerts_that_are_alike_are_one_message_with_their_number() -> None:
    digest = AlertDigest(10)
    for number in range(10_000):
        digest.add(Alert(BUDGETS, "team 80", f"team {number}"), 0.0)
    [message] = digest.due(LINGER)
    assert message.count == 10_000
    assert message.texts == tuple(f"team {number}" for number in range(10_000 - MOST_TEXTS, 10_000))


def test_a_server_that_goes_and_comes_is_told_at_once_and_then_seldom() -> None:
    digest = AlertDigest(100)
    sent = []
    for second in range(3600):
        digest.add(down(text=f"change {second}"), float(second))
        sent += digest.due(float(second))
    assert BURST + 3600 // REPEAT - 1 <= len(sent) <= BURST + 3600 // REPEAT
    assert [message.since for message in sent[:2]] == [0.0, LINGER + 1]
    # nothing is lost
    assert sum(message.count for message in sent) + digest.waiting == 3600


def test_a_quiet_time_lets_the_next_message_go_at_once() -> None:
    digest = AlertDigest(100)
    for second in range(60):
        digest.add(down(), float(second))
        digest.due(float(second))
    digest.due(REPEAT + 60)
    digest.add(down(), 3 * REPEAT)
    assert [each.count for each in digest.due(3 * REPEAT + LINGER)] == [1]


def test_a_minute_has_its_number_of_messages_and_the_rest_goes_together() -> None:
    digest = AlertDigest(5)
    for number in range(40):
        digest.add(down(f"gpu-{number}", f"gpu-{number} is down"), 0.0)
        digest.add(Alert(BUDGETS, f"key {number}", "a budget", MEDIUM, 2), 0.0)
    messages = digest.due(LINGER)
    assert len(messages) == 5
    assert sum(message.count for message in messages) == 120
    last = messages[-1]
    assert last.kind == ""
    assert last.texts[0] == "budget_alerts: 76, outage_alerts: 38"
    assert (last.level, last.since) == (HIGH, 0.0)
    digest.add(down(), 10.0)
    assert digest.due(30.0) == []
    assert [each.count for each in digest.due(LINGER + MINUTE)] == [1]


def test_the_end_tells_what_waits_in_one_message() -> None:
    digest = AlertDigest(5)
    for number in range(3):
        digest.add(down(f"gpu-{number}"), 0.0)
    [message] = digest.due(0.5, all_of_them=True)
    assert message.count == 3
    assert digest.waiting == 0


def test_the_highest_level_counts() -> None:
    digest = AlertDigest(5)
    for level in (LOW, HIGH, MEDIUM):
        digest.add(Alert(OUTAGE, "gpu-1", level, level), 0.0)
    assert digest.due(LINGER)[0].level == HIGH


def test_any_number_of_things_is_bounded() -> None:
    digest = AlertDigest(5)
    for number in range(3 * MOST_ABOUT):
        digest.add(down(f"gpu-{number}"), 0.0)
    assert len(digest) <= MOST_ABOUT + len(ALERT_TYPES)
    assert digest.waiting == 3 * MOST_ABOUT
    digest.due(LINGER)
    digest.due(LINGER + BURST * REPEAT)
    assert len(digest) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(ALERT_TYPES), st.integers(0, 5), st.integers(1, 50), st.floats(0, 30), st.booleans()),
        max_size=100,
    ),
    st.integers(1, 5),
)
def test_no_event_is_lost_and_no_minute_has_more_messages(
    alerts: list[tuple[str, int, int, float, bool]], most: int
) -> None:
    digest, now = AlertDigest(most), 0.0
    sent: list[tuple[float, Message]] = []
    for kind, about, count, wait, _ in alerts:
        now += wait
        digest.add(Alert(kind, str(about), "text", HIGH, count), now)
        sent += [(now, message) for message in digest.due(now)]
    told = sum(message.count for _, message in sent)
    assert told + digest.waiting == sum(count for _, _, count, _, _ in alerts)
    for at, _ in sent:
        assert sum(1 for other, _ in sent if at <= other < at + MINUTE) <= most
