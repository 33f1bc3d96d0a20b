"""The requests of the ledger, and one of them whole: timings, tokens, cost, attempts, and prompt and answer if kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import attrs
import msgspec

from twisted_vllm.admin.responses import send
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.pages.usage_filters import FILTERS, PERIODS, Period, address, filters_of, period_of
from twisted_vllm.errors import GatewayError, NotFound

pages = Pages()

#: requests of a page
PAGE_SIZE = 50
#: characters of a text that a page shows; the whole is a link
MOST_TEXT = 20_000
#: messages of a prompt that a page shows, from its beginning and from its end
MOST_MESSAGES = 100

_REQUEST = "/usage/requests/<string:request_id>"
STATES = (("", "All"), ("success", "Successful"), ("failure", "Failed"))


@pages.get("/ui/requests", needs="GET /spend/logs/v2", title="Requests", group="Usage")
async def show_list(call: PageCall) -> bytes:
    """Show a page of requests, the newest first."""
    query = call.query
    period = period_of(query, call.context.now())
    filters = filters_of(query)
    more = {name: query.get(name, "").strip() for name in ("request_id", "status_filter", "error_code")}
    asked = {**filters, **{name: value for name, value in more.items() if value}}
    number = query.get("page", "1")
    found: dict[str, Any] | None = None
    problem, status = "", 200
    # who knows the id needs no time
    dates = {} if more["request_id"] else {"start_date": period.start or None, "end_date": period.end or None}
    try:
        found = await call.get("/spend/logs/v2", **asked, **dates, page=number, page_size=PAGE_SIZE)
    except GatewayError as error:
        problem, status = error.message, error.status
    return call.render(
        "usage/requests.html",
        status=status,
        found=found,
        problem=problem,
        chosen=asked,
        more=more,
        period=period,
        periods=PERIODS,
        states=STATES,
        filters=[each for each in FILTERS if call.reads_everything or not each[2]],
        link=lambda to: call.console.url(call.request, address("/ui/requests", asked, _dates(period), page=str(to))),
        rows=[] if found is None else [{**row, **_seconds(row)} for row in found["data"]],
    )


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Return how long a request took, and until its first byte."""
    start, first, end = (datetime.fromisoformat(row[name]) for name in ("startTime", "completionStartTime", "endTime"))
    return {"first_byte": (first - start).total_seconds(), "duration": (end - start).total_seconds()}


def _dates(period: Period) -> dict[str, str]:
    if period.name != "custom":
        return {"period": period.name}
    return {"start_date": period.start, "end_date": period.end}


@pages.get("/ui/requests/<string:id>", needs=f"GET {_REQUEST}")
async def show_one(call: PageCall) -> bytes:
    """Show a request."""
    found = await call.get(_REQUEST, {"request_id": call.path["id"]})
    return call.render(
        "usage/request.html",
        found=found,
        parts=parts_of(found["timings"]),
        speed=speed_of(found),
        contents=None if found["contents"] is None else shown_contents(found["contents"]),
        address=address,
    )


@pages.get("/ui/requests/<string:id>/contents", needs=f"GET {_REQUEST}")
async def download(call: PageCall) -> bytes:
    """Send all that was kept of a prompt and an answer, as a file."""
    found = await call.get(_REQUEST, {"request_id": call.path["id"]})
    if found["contents"] is None:
        raise NotFound("No prompt and no answer of this request are kept.")
    body = msgspec.json.format(msgspec.json.encode(found["contents"]), indent=2)
    name = f'attachment; filename="{found["id"]}.json"'.encode("ascii", "replace")
    headers = [(b"content-type", b"application/json"), (b"content-disposition", name), (b"cache-control", b"no-store")]
    return send(call.request, 200, headers, body)


# timings


@attrs.frozen
class Part:
    """A part of the time that a request took.

    Attributes:
        name: what it is, in words.
        kind: its class in the style sheet.
        seconds: how long it took.
        start: where its bar begins, in thousandths of the whole.
        width: how long its bar is, likewise.
    """

    name: str
    kind: str
    seconds: float
    start: float
    width: float


def parts_of(timings: Mapping[str, int | None]) -> list[Part]:
    """Return the parts of a request's time: waiting for a server, for the first byte, and the answer."""
    total, first = timings["total_us"] or 0, timings["first_byte_us"]
    queued = min(timings["queued_us"] or 0, total)
    until_first = total if first is None else min(max(first, queued), total)
    lengths = [
        ("Waited for a busy server", "queue", queued),
        ("Until the first byte" if first is not None else "Without an answer", "first", until_first - queued),
        ("Answer", "answer", total - until_first),
    ]
    found, start = [], 0
    for name, kind, length in lengths:
        if length > 0 or (kind == "first" and not total):
            share = 1000 / total if total else 0.0
            found.append(Part(name, kind, length / 1e6, round(start * share, 2), round(length * share, 2)))
            start += length
    return found


def speed_of(found: Mapping[str, Any]) -> float | None:
    """Return the tokens that a stream brought in a second after its first byte; None if that says nothing."""
    timings = found["timings"]
    if not found["stream"] or timings["first_byte_us"] is None or found["completion_tokens"] < 2:
        return None
    seconds = (timings["total_us"] - timings["first_byte_us"]) / 1e6
    return found["completion_tokens"] / seconds if seconds > 0 else None


# contents


@attrs.frozen
class Text:
    """A text to show.

    Attributes:
        title: what it is.
        text: its beginning.
        cut: how many characters were left out.
    """

    title: str
    text: str
    cut: int = 0


def shown_contents(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page shows of a prompt and an answer, in order."""
    return {
        "mode": contents.get("mode"),
        "truncated": bool(contents.get("truncated")),
        "not_kept": contents.get("not_kept"),
        "asked": list(_asked(contents)),
        "answered": list(_answered(contents.get("output"))),
        "ended": _ended(contents.get("output")),
    }


def _asked(contents: Mapping[str, Any]) -> Iterator[Text]:
    asked = contents.get("input")
    if isinstance(asked, list) and all(isinstance(each, dict) for each in asked):
        hidden = len(asked) - MOST_MESSAGES
        for number, message in enumerate(asked):
            if hidden > 0 and number == MOST_MESSAGES // 2:
                yield Text(f"{hidden} messages that are not shown here", "")
            if hidden <= 0 or number < MOST_MESSAGES // 2 or number >= len(asked) - MOST_MESSAGES // 2:
                yield _message(message)
    elif asked is not None:
        yield _text("Prompt", asked)
    for name in ("parameters", "tools"):
        if contents.get(name):
            yield _text(name.capitalize(), contents[name])


def _message(message: Mapping[str, Any]) -> Text:
    role = message.get("role")
    title = f"{role} message" if isinstance(role, str) else "Message"
    rest = {name: value for name, value in message.items() if name != "role"}
    return _text(title, rest["content"] if list(rest) == ["content"] else rest)


def _answered(output: Any) -> Iterator[Text]:
    if not isinstance(output, dict):
        if output is not None:
            yield _text("Answer", output)
        return
    for name, title in (("reasoning", "Reasoning"), ("text", "Answer"), ("tool_calls", "Tool calls")):
        if output.get(name):
            yield _text(title, output[name])
    shown = ("reasoning", "text", "tool_calls", "finish_reasons")
    rest = {name: value for name, value in output.items() if name not in shown and value}
    if rest:
        yield _text("Further", rest)


def _ended(output: Any) -> str:
    reasons = output.get("finish_reasons") if isinstance(output, dict) else None
    return ", ".join(str(each) for each in reasons) if isinstance(reasons, list) else ""


def _text(title: str, value: Any) -> Text:
    text = value if isinstance(value, str) else _pretty(value)
    return Text(title[:100], text[:MOST_TEXT], max(len(text) - MOST_TEXT, 0))


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode("utf-8", "replace")
