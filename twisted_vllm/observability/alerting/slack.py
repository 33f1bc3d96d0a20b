"""Messages in Slack's format, which Mattermost, Discord (``/slack``) and others take as well.

Slack's incoming webhooks take ``{"text": …}``. ``&``, ``<`` and ``>`` are escaped: a text could mention people or hide
a link otherwise (https://api.slack.com/reference/surfaces/formatting).
"""

from __future__ import annotations

import msgspec

from twisted_vllm.observability.alerting.digest import Message
from twisted_vllm.observability.logging.lines import iso_time, one_line

#: characters of a text; Slack cuts messages above 40,000
MOST_CHARACTERS = 500

_LEVELS = {"High": ":red_circle:", "Medium": ":large_orange_circle:", "Low": ":large_green_circle:"}


def slack_body(message: Message, gateway: str) -> bytes:
    """Return the JSON of a message.

    Args:
        message: the message.
        gateway: the name of the gateway that sends it.
    """
    kind = message.kind or "several"
    lines = [f"{_LEVELS[message.level]} *{escape(gateway)}*: alert type `{escape(kind)}`, level {message.level}"]
    lines += [f"• {escape(text)}" for text in message.texts]
    left = message.count - len(message.texts)
    if left > 0:
        lines.append(f"_{message.count:,} events in all since {iso_time(message.since)[:19]}Z_")
    return msgspec.json.encode({"text": "\n".join(lines)})


def escape(text: str) -> str:
    """Return text on one line that Slack shows as it is, cut if it is long."""
    text = one_line(text)
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
