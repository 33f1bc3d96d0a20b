"""Messages in Slack's format."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.alerting.digest import Message
from twisted_vllm.observability.alerting.slack import MOST_CHARACTERS, escape, slack_body


def text_of(message: Message) -> str:
    found = json.loads(slack_body(message, "gateway-1"))
    assert list(found) == ["text"]
    return str(found["text"])


def test_a_message_says_who_sends_it_its_kind_and_what_happened() -> None:
    message = Message("outage_alerts", "High", ("Server gpu-1 gets no requests",), 1, 0.0)
    assert text_of(message) == (
        ":red_circle: *gateway-1*: alert type `outage_alerts`, level High\n• Server gpu-1 gets no requests"
    )


def test_a_message_for_many_says_how_many() -> None:
    message = Message("budget_alerts", "Medium", ("a", "b"), 10_000, 1_767_225_600.0)
    assert text_of(message).endswith("• a\n• b\n_10,000 events in all since 2026-01-01T00:00:00Z_")


def test_texts_can_neither_mention_people_nor_hide_links_nor_make_lines() -> None:
    text = text_of(Message("", "Low", ("<!channel> & <https://evil|bank>\n• forged",), 1, 0.0))
    assert text.splitlines()[1:] == ["• &lt;!channel&gt; &amp; &lt;https://evil|bank&gt;\\n• forged"]


@given(st.text())
def test_any_text_is_one_line_of_bounded_size_without_markup(text: str) -> None:
    found = escape(text)
    assert "<" not in found and ">" not in found and "\n" not in found
    assert len(found) <= 5 * (MOST_CHARACTERS + 1)
