"""The webhook: bodies, signature, compression, and what is tried again."""

from __future__ import annotations

import hmac
import json
import re
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any

import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from tests.observability.delivery.receiver import Receiver, Reply
from twisted_vllm.config.secret import Secret
from twisted_vllm.observability.delivery.interfaces import Bounds, DeliveryFailed, IDestination
from twisted_vllm.observability.delivery.post import Poster, http_agent
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.sinks.webhook import SIGNATURE_HEADER, WebhookDestination

PAGE = Path(__file__).parents[3] / "docs" / "sinks.md"
ITEMS = [b'{"n":1}', b'{"n":2}', b'{"n":3}']


@pytest.fixture
def receiver(reactor: Any) -> Any:
    return Receiver(reactor)


def webhook(reactor: Any, receiver: Receiver, **changes: Any) -> WebhookDestination:
    agent, pool = http_agent(reactor)
    values = {"body": "array", "compression": "none", "secret": None, "now": lambda: 1_700_000_000.0} | changes
    made = WebhookDestination(Poster(agent, Secret(receiver.url), {"x-team": Secret("a")}, pool), **values)
    verifyObject(IDestination, made)
    return made


@pytest.mark.parametrize(
    ("body", "kind", "bodies"),
    [
        ("array", "application/json", [b'[{"n":1},{"n":2},{"n":3}]']),
        ("lines", "application/x-ndjson", [b'{"n":1}\n{"n":2}\n{"n":3}\n']),
        ("single", "application/json", ITEMS),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_batch_is_an_array_or_lines_or_single_posts(
    reactor: Any, receiver: Receiver, body: str, kind: str, bodies: list[bytes]
) -> None:
    await receiver.start()
    destination = webhook(reactor, receiver, body=body)
    await destination.deliver(ITEMS)
    assert [each.body for each in receiver.posted] == bodies
    assert {each.headers["content-type"] for each in receiver.posted} == {kind}
    assert receiver.posted[0].headers["x-team"] == "a"
    destination.close()
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_the_signature_is_of_the_time_and_the_body_as_it_is_sent(reactor: Any, receiver: Receiver) -> None:
    await receiver.start()
    destination = webhook(reactor, receiver, compression="gzip", secret=Secret("shared"))
    await destination.deliver(ITEMS)
    (posted,) = receiver.posted
    assert json.loads(posted.body) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert posted.headers["content-encoding"] == "gzip"
    expected = hmac.new(b"shared", b"1700000000." + posted.raw, sha256).hexdigest()
    assert posted.headers[SIGNATURE_HEADER.lower()] == f"t=1700000000,v1={expected}"
    destination.close()
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_the_receiver_of_the_page_on_sinks_takes_what_is_signed_and_nothing_else(
    reactor: Any, receiver: Receiver
) -> None:
    (example,) = re.findall(r"```python\n(import hashlib.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    written: dict[str, Any] = {}
    exec(example, written)
    is_genuine = written["is_genuine"]
    await receiver.start()
    destination = webhook(reactor, receiver, compression="gzip", secret=Secret("shared"), now=time)
    await destination.deliver(ITEMS)
    (posted,) = receiver.posted
    header = posted.headers[SIGNATURE_HEADER.lower()]
    assert is_genuine(header, posted.raw, b"shared")
    assert not is_genuine(header, posted.raw + b" ", b"shared")
    assert not is_genuine(header, posted.raw, b"other")
    assert not is_genuine(header, posted.raw, b"shared", oldest=0.0), "somebody sends it again"
    moved = re.sub(r"t=(\d+)", lambda found: f"t={int(found[1]) + 60}", header)
    assert not is_genuine(moved, posted.raw, b"shared")
    for nonsense in ("", "t", "v1=é", "t=x,v1=,"):
        assert not is_genuine(nonsense, posted.raw, b"shared")
    destination.close()
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_of_single_posts_those_that_were_taken_are_not_sent_twice(reactor: Any, receiver: Receiver) -> None:
    await receiver.start()
    destination = webhook(reactor, receiver, body="single")
    receiver.replies = [Reply(200), Reply(503)]
    with pytest.raises(DeliveryFailed):
        await destination.deliver(ITEMS)
    await destination.deliver(ITEMS)
    assert [each.body for each in receiver.posted] == ITEMS
    destination.close()
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_behind_a_queue_nothing_is_lost_by_a_receiver_in_trouble(reactor: Any, receiver: Receiver) -> None:
    await receiver.start()
    receiver.replies = [Reply(429, {"retry-after": "0"}), Reply(500), Reply(413), Reply(-1), Reply(503), Reply(200)]
    bounds = Bounds(linger=0.01, first_backoff=0.02, max_backoff=0.1, batch_items=3)
    queue = DeliveryQueue[bytes]("a", webhook(reactor, receiver, body="lines"), reactor, bounds, lambda: 0.5)
    queue.start()
    items = [b'{"n":%d}' % number for number in range(20)]
    for item in items:
        queue.put(item, len(item))
    while queue.queued:
        await receiver.wait_for(len(receiver.posted) + 1)
    await queue.stop(5.0)
    assert b"".join(each.body for each in receiver.posted).splitlines() == items
    assert (queue.delivered, queue.dropped, queue.failures) == (20, 0, 5)
    await receiver.stop()
