"""One queue for all servers of a model: whose request goes next, what is refused, and what the refusal says."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import attrs
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    Wire,
    capped,
    eventually,
    is_whole,
    parse_answer,
    request_bytes,
)
from tests.end_to_end.messages import OK, STREAM, length_of, whole
from twisted_vllm.config.settings import HealthSettings, ModelEntry, RoutingSettings
from twisted_vllm.proxy.revocation import INTERVAL

#: time passes, and nothing but the requests of the test comes to the server
NO_CHECKS = HealthSettings(interval=None)
#: seconds that a test waits for what happens at once
PATIENCE = 10.0
#: an answer that used 30 tokens
USED_30 = whole(b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}')


def completion(number: object, key: str | None, model: str = "m", max_tokens: int = 16) -> bytes:
    body = {"model": model, "prompt": "x", "max_tokens": max_tokens}
    return request_bytes("POST", f"/vllm/v1/completions?{number}", key, body=body)


async def send_and_wait(gateway: Any, reactor: Any, number: object, key: str | None) -> Wire:
    """Send a request that has to wait."""
    before = gateway.queued
    client: Wire = await gateway.send(completion(number, key))
    await eventually(reactor, lambda: gateway.queued > before, PATIENCE)
    return client


class Slots:
    """Raw servers that keep each request until the test answers it.

    Attributes:
        arrived: what came to each server, in order: what the test called it, and its connection.
    """

    def __init__(self, reactor: Any, *servers: Any) -> None:
        self.arrived: list[list[tuple[str, Wire]]] = [[] for _ in servers]
        self._reactor = reactor
        self._seen: Counter[Wire] = Counter()
        for number, server in enumerate(servers):
            server.respond = partial(self._came, number)

    def _came(self, server: int, connection: Wire) -> None:
        new = connection.received[self._seen[connection] :]
        head, _, body = new.partition(b"\r\n\r\n")
        if body and len(body) >= length_of(head):
            self._seen[connection] += len(new)
            self.arrived[server].append((head.split(b" ", 2)[1].partition(b"?")[2].decode(), connection))

    async def request(self, number: int, server: int = 0) -> str:
        """Wait for the request of this number of a server; return what the test called it."""
        await eventually(self._reactor, lambda: len(self.arrived[server]) > number, PATIENCE)
        return self.arrived[server][number][0]

    def answer(self, number: int, server: int = 0, answer: bytes = OK) -> None:
        """Answer the request of this number."""
        self.arrived[server][number][1].send(answer)

    async def serve(self, count: int) -> list[str]:
        """Answer one request after the other; return which came, in order."""
        order = []
        for number in range(count):
            order.append(await self.request(number))
            self.answer(number)
        return order


async def two_servers(stand_in: Any, gateway_to: Any, reactor: Any) -> tuple[Any, Slots]:
    servers = stand_in(), stand_in()
    models = tuple(ModelEntry("m", "m", capped(each.port)) for each in servers)
    routing = RoutingSettings(routing_strategy="least-busy")
    gateway = gateway_to(None, models=models, health=NO_CHECKS, routing=routing)
    return gateway, Slots(reactor, *servers)


@pytest_twisted.ensureDeferred
async def test_a_single_request_does_not_wait_for_a_burst_of_1000_of_another_key(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, places=1000), health=NO_CHECKS)
    noisy, quiet = await gateway.make_key(), await gateway.make_key()
    slots = Slots(reactor, server)
    for number in range(1000):
        await gateway.send(completion(f"burst{number}", noisy))
    await eventually(reactor, lambda: gateway.queued == 999)
    assert await slots.request(0) == "burst0"
    slots.answer(0)
    assert await slots.request(1) == "burst1"
    client = await send_and_wait(gateway, reactor, "single", quiet)
    slots.answer(1)
    # one service time later it is at the server, before 997 others
    assert await slots.request(2) == "single"
    slots.answer(2)
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_a_burst_leaves_others_a_share_of_the_queue(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, places=10), health=NO_CHECKS)
    noisy, quiet = await gateway.make_key(), await gateway.make_key()
    clients = [await gateway.send(completion(number, noisy)) for number in range(40)]
    await eventually(reactor, lambda: sum(client.received != b"" for client in clients) == 29)
    others = [await gateway.send(completion(f"other{number}", quiet)) for number in range(6)]
    await eventually(reactor, lambda: sum(client.received != b"" for client in [*clients, *others]) == 35)
    # half of the places are theirs, and the newest of the burst made room
    assert [client.received != b"" for client in others] == [False] * 5 + [True]
    refused = [parse_answer(client.received) for client in [*clients, *others] if client.received]
    assert {(answer.status, answer.error["code"]) for answer in refused} == {(503, "server_busy")}
    assert all(1 <= int(answer.header("retry-after") or 0) <= 60 for answer in refused)
    assert gateway.queued == 10


@pytest_twisted.ensureDeferred
async def test_a_key_s_priority_goes_first_and_keys_without_one_take_turns(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port), health=NO_CHECKS)
    plain, other = await gateway.make_key(), await gateway.make_key()
    urgent, late = await gateway.make_key(priority=-5), await gateway.make_key(priority=5)
    slots = Slots(reactor, server)
    await gateway.send(completion("first", plain))
    await slots.request(0)
    for number, key in enumerate([late, plain, plain, other, urgent, urgent]):
        name = {late: "late", plain: "plain", other: "other", urgent: "urgent"}[key]
        await send_and_wait(gateway, reactor, f"{name}{number}", key)
    order = await slots.serve(7)
    # `plain` was placed without waiting, so it has its first turn in the queue as the oldest
    assert order == ["first", "urgent4", "urgent5", "plain1", "other3", "plain2", "late0"]


@pytest_twisted.ensureDeferred
async def test_a_less_urgent_key_is_served_too_while_urgent_ones_never_stop(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port), health=NO_CHECKS)
    urgent, late = await gateway.make_key(priority=-5), await gateway.make_key(priority=5)
    slots = Slots(reactor, server)
    await gateway.send(completion("urgent", urgent))
    await slots.request(0)
    await send_and_wait(gateway, reactor, "late", late)
    gateway.pass_time(6)
    order = []
    for number in range(5):
        await send_and_wait(gateway, reactor, "urgent", urgent)
        slots.answer(number)
        order.append(await slots.request(number + 1))
    assert order.count("late") == 1


@pytest_twisted.ensureDeferred
async def test_what_waits_goes_to_the_first_of_two_servers_that_has_room(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    gateway, slots = await two_servers(stand_in, gateway_to, reactor)
    for number in range(2):
        await gateway.send(completion(number, MASTER_KEY))
    await slots.request(0, 0)
    await slots.request(0, 1)
    clients = [await send_and_wait(gateway, reactor, f"waits{number}", MASTER_KEY) for number in range(3)]
    # the first server does not answer at all
    for number in range(3):
        slots.answer(number, 1)
        assert await slots.request(number + 1, 1) == f"waits{number}"
    slots.answer(3, 1)
    for client in clients:
        await client.until_received(b"\r\n\r\nok")
    assert len(slots.arrived[0]) == 1


@pytest_twisted.ensureDeferred
async def test_what_fails_on_one_server_waits_for_the_other(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    gateway, slots = await two_servers(stand_in, gateway_to, reactor)
    clients = [await gateway.send(completion(number, MASTER_KEY)) for number in range(2)]
    lost = int(await slots.request(0, 0))
    await slots.request(0, 1)
    slots.answer(0, 0, whole(b"{}", "503 Service Unavailable"))
    await eventually(reactor, lambda: gateway.queued == 1)
    slots.answer(0, 1)
    assert int(await slots.request(1, 1)) == lost
    slots.answer(1, 1)
    for client in clients:
        await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_the_queue_makes_room_and_is_never_sent(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    gateway, slots = await two_servers(stand_in, gateway_to, reactor)
    for number in range(2):
        await gateway.send(completion(number, MASTER_KEY))
    await slots.request(0, 0)
    await slots.request(0, 1)
    leaver = await send_and_wait(gateway, reactor, "leaver", MASTER_KEY)
    stays = await send_and_wait(gateway, reactor, "stays", MASTER_KEY)
    leaver.cut()
    await eventually(reactor, lambda: gateway.queued == 1)
    slots.answer(0, 1)
    assert await slots.request(1, 1) == "stays"
    slots.answer(1, 1)
    await stays.until_received(b"\r\n\r\nok")
    await eventually(reactor, lambda: any(line["outcome"] == "client_disconnected" for line in gateway.request_lines()))


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_blocked_while_its_request_waits_gets_no_place(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port), health=NO_CHECKS, revoke_running=True)
    key, other = await gateway.make_key(), await gateway.make_key()
    slots = Slots(reactor, server)
    await gateway.send(completion("first", other))
    await slots.request(0)
    waits = await send_and_wait(gateway, reactor, "blocked", key)
    behind = await send_and_wait(gateway, reactor, "behind", other)
    assert (await gateway.ask("POST", "/key/block", body={"key": key})).status == 200
    gateway.clock.advance(INTERVAL)
    gateway.clock.advance(INTERVAL)
    await waits.until(lambda: waits.lost is not None or b"\r\n\r\n" in waits.received)
    assert gateway.queued == 1
    slots.answer(0)
    assert await slots.request(1) == "behind"
    slots.answer(1)
    await behind.until_received(b"\r\n\r\nok")
    assert b"?blocked" not in b"".join(connection.received for connection in server.connections)


@pytest_twisted.ensureDeferred
async def test_clients_that_come_back_when_they_were_told_find_room(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    """A server with two places serves one request a second. Then 28 come at once, and the queue has room for ten."""
    server = stand_in()
    gateway = gateway_to(capped(server.port, limit=2, places=10, queue=None), health=NO_CHECKS)
    slots = Slots(reactor, server)
    clients = [await gateway.send(completion(number, MASTER_KEY)) for number in range(2)]
    back: list[Wire] = []
    due: list[float] = []
    refused = [0, 0]
    for second in range(40):
        clients += [
            await gateway.send(completion(second, MASTER_KEY)) for _ in range(28 if second == 10 else second < 10)
        ]
        everybody = [*clients, *back]
        await eventually(reactor, partial(_settled, gateway, everybody), PATIENCE)
        for which, group in enumerate((clients, back)):
            for client in [each for each in group if each.received.startswith(b"HTTP/1.1 503")]:
                group.remove(client)
                refused[which] += 1
                due.append(gateway.clock.seconds() + int(parse_answer(client.received).header("retry-after") or 0))
        # one of the two requests at the server is over
        await slots.request(second)
        slots.answer(second)
        gateway.pass_time(1)
        for instant in [each for each in due if each <= gateway.clock.seconds()]:
            due.remove(instant)
            back.append(await gateway.send(completion("again", MASTER_KEY)))
    assert refused[0] == 18
    # most found room
    assert refused[1] <= 4


def _settled(gateway: Any, clients: list[Wire]) -> bool:
    """Whether the gateway has taken in all that was sent."""
    in_flight = sum(state.in_flight for state in gateway.service.wiring.servers)
    answered = sum(is_whole(client.received, False) for client in clients)
    return bool(in_flight + gateway.queued + answered == len(clients))


# rpm and tpm of an entry


def limited(server: Any, *, queue: float | None = 30.0, **limits: Any) -> ModelEntry:
    found = capped(server.port, queue=queue)
    return ModelEntry("m", "m", attrs.evolve(found, max_concurrent_requests=None), **limits)


@pytest_twisted.ensureDeferred
async def test_an_entry_s_rpm_holds_the_server_whoever_asks(stand_in: Any, gateway_to: Any) -> None:
    small, large = stand_in(OK), stand_in(OK)
    models = (limited(small, rpm=3), limited(large))
    routing = RoutingSettings(routing_strategy="round-robin")
    gateway = gateway_to(None, models=models, health=NO_CHECKS, routing=routing)
    keys = [await gateway.make_key() for _ in range(2)]
    for number in range(20):
        assert (await gateway.answer_to(completion(number, keys[number % 2]))).status == 200
    assert sum(connection.received.count(b"POST ") for connection in small.connections) == 3
    assert sum(connection.received.count(b"POST ") for connection in large.connections) == 17


@pytest_twisted.ensureDeferred
async def test_without_another_entry_a_request_waits_for_the_minute_or_is_told_when_it_is_over(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(None, models=(limited(server, rpm=2),), health=NO_CHECKS)
    for number in range(2):
        assert (await gateway.answer_to(completion(number, MASTER_KEY))).status == 200
    refused = await gateway.answer_to(completion("refused", MASTER_KEY))
    assert (refused.status, refused.error["code"]) == (503, "server_busy")
    told = int(refused.header("retry-after") or 0)
    assert 58 <= told <= 60
    gateway.pass_time(40)
    client = await send_and_wait(gateway, reactor, "waits", MASTER_KEY)
    gateway.pass_time(told - 40)
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_an_entry_s_tpm_is_settled_with_what_was_used(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(USED_30)
    gateway = gateway_to(None, models=(limited(server, tpm=1000),), health=NO_CHECKS)
    key = await gateway.make_key()
    # each is estimated at over 850 tokens, and uses 30
    statuses = [(await gateway.answer_to(completion(n, key, max_tokens=850))).status for n in range(6)]
    assert statuses == [200] * 5 + [503]
    gateway.pass_time(61)
    assert (await gateway.answer_to(completion(6, key, max_tokens=850))).status == 200


@pytest_twisted.ensureDeferred
async def test_what_did_not_reach_the_server_is_not_counted_and_a_client_that_leaves_later_is(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    dead = attrs.evolve(capped(free_port()), max_concurrent_requests=None)
    models = (ModelEntry("dead", "dead", dead, rpm=1), limited(server, rpm=1))
    gateway = gateway_to(None, models=models, health=NO_CHECKS)
    counted = {group.name: group.destinations[0].limits for group in gateway.service.wiring.router.groups}
    answer = await gateway.answer_to(completion(1, MASTER_KEY, "dead"))
    assert answer.error["code"] == "upstream_unreachable"
    assert repr(counted["dead"]) == "<EntryLimits 0 of 1 requests, 0 of None tokens>"
    client = await gateway.send(completion(2, MASTER_KEY))
    connection = await server.connection()
    await connection.until_received(b"}")
    connection.send(STREAM)
    await client.until_received(b"abc")
    client.cut()
    await connection.until_lost()
    assert repr(counted["m"]) == "<EntryLimits 1 of 1 requests, 0 of None tokens>"
