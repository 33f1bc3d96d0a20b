"""Each alert, at a receiver that stands in for Slack and for a program; and that floods are few messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.conftest import LoggedFailures
from tests.end_to_end.end_to_end_harness import begin, eventually, server_at
from tests.end_to_end.messages import whole
from tests.end_to_end.test_model_budgets_by_any_name import ANSWER, COMPLETIONS, PRICES
from tests.observability.delivery.receiver import Receiver
from twisted_vllm.app.telemetry.alerting import Alerting
from twisted_vllm.app.telemetry.certificates import DAY, CertificateWatch, KnownCertificate
from twisted_vllm.auth.grants import Changes, TeamGrant
from twisted_vllm.config.alerting import AlertSettings
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import HealthSettings, ModelEntry
from twisted_vllm.proxy.budget_watch import INTERVAL
from twisted_vllm.ratelimit.allowance import Allowance

BAD = whole(b"bad", "502 Bad Gateway")
DOLLAR = 10**12


@pytest_twisted.async_yield_fixture
async def receiver(reactor: Any) -> AsyncIterator[Receiver]:
    found = Receiver(reactor)
    await found.start()
    yield found
    await found.stop()


def alerting(receiver: Receiver, *channels: str, **options: Any) -> dict[str, Any]:
    url = Secret(receiver.url)
    return {"alerting": channels or ("slack",), "alerts": AlertSettings(url, url), **options}


class Watching:
    """A gateway that sends alerts, and what came."""

    def __init__(self, gateway: Any, receiver: Receiver, reactor: Any) -> None:
        self.gateway = gateway
        self.receiver = receiver
        self._reactor = reactor

    async def after(self, seconds: float, step: float = 1.0) -> list[str]:
        """Let time pass, and wait for what is on its way; return the texts of all messages."""
        for _ in range(int(seconds / step)):
            self.gateway.clock.advance(step)
            await deferLater(self._reactor, 0)
        alerts = self.part().alerts
        queues = () if alerts is None else alerts._queues.values()
        for _ in range(500):
            if not any(queue.queued for queue in queues):
                break
            # a delivery that failed waits
            self.gateway.clock.advance(0.1)
            await deferLater(self._reactor, 0.01)
        return [json.loads(each.body).get("text", "") for each in self.receiver.posted]

    def part(self) -> Alerting:
        [found] = [each for each in self.gateway.service.wiring.telemetry.parts if isinstance(each, Alerting)]
        return found

    def server(self, port: int) -> Any:
        return self.gateway.service.wiring.servers.named(f"127.0.0.1:{port}")


@pytest_twisted.async_yield_fixture
async def watch(gateway_to: Any, receiver: Receiver, reactor: Any) -> AsyncIterator[Any]:
    """Makes gateways that are watched; at the end they stop while time passes."""
    made: list[Watching] = []

    def make(server: int | None, **settings: Any) -> Watching:
        made.append(Watching(gateway_to(server, **settings), receiver, reactor))
        return made[-1]

    yield make
    for each in made:
        stopped = each.gateway.stop()
        while not stopped.called:
            each.gateway.clock.advance(0.5)
            await deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_a_server_that_goes_and_comes_is_told_with_cause_and_time(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in()
    watching = watch(server.port, **alerting(receiver))
    breaker = watching.server(server.port).breaker
    breaker.declare_dead(watching.gateway.clock.seconds(), "timeout", 0.0)
    [down] = await watching.after(4)
    assert "alert type `outage_alerts`, level Medium" in down
    assert f"Server 127.0.0.1:{server.port} gets no requests (dead, was closed): timeout" in down
    await watching.after(20)
    breaker.declare_alive(watching.gateway.clock.seconds())
    [_, up] = await watching.after(4)
    assert f"Server 127.0.0.1:{server.port} gets requests again, after 24 s without (closed, was dead)" in up
    assert "level Low" in up


@pytest_twisted.ensureDeferred
async def test_a_server_that_flaps_sends_few_messages(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in()
    watching = watch(server.port, **alerting(receiver))
    breaker = watching.server(server.port).breaker
    for _ in range(300):
        breaker.declare_dead(watching.gateway.clock.seconds(), "timeout", 0.0)
        watching.gateway.clock.advance(1.0)
        breaker.declare_alive(watching.gateway.clock.seconds())
        watching.gateway.clock.advance(1.0)
        texts = await watching.after(0)
    # ten minutes, six hundred changes
    assert 4 <= len(texts) <= 7
    assert "events in all" in texts[-1]


@pytest_twisted.ensureDeferred
async def test_failed_requests_are_one_message_with_their_number(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in(BAD)
    watching = watch(server.port, **alerting(receiver))
    for _ in range(20):
        await watching.gateway.ask("POST", "/vllm/v1/completions", body={"model": "m", "prompt": "a"})
    texts = await watching.after(4)
    [failures] = [text for text in texts if "llm_exceptions" in text]
    assert f"127.0.0.1:{server.port} failed a request: status 502 (model m, request " in failures
    assert "_20 events in all since" in failures
    # the breaker has opened, which is told of its own
    assert any("cooldown_deployment" in text for text in texts)


@pytest_twisted.ensureDeferred
async def test_a_request_that_was_sent_to_no_server_blames_none(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in()
    watching = watch(server.port, **alerting(receiver))
    watching.server(server.port).breaker.declare_dead(watching.gateway.clock.seconds(), "timeout", 0.0)
    answer = await watching.gateway.ask("POST", "/vllm/v1/completions", body={"model": "m", "prompt": "a"})
    assert answer.status == 503
    [failures] = [text for text in await watching.after(4) if "llm_exceptions" in text]
    assert "the default server failed a request: no_healthy_upstream (model m, request " in failures
    assert f":{server.port}" not in failures


@pytest_twisted.ensureDeferred
async def test_a_request_that_hangs_is_told(stand_in: Any, watch: Any, receiver: Receiver, reactor: Any) -> None:
    server = stand_in()
    watching = watch(server.port, **alerting(receiver, alerting_threshold=20.0))
    await begin(server, watching.gateway)
    [text] = await watching.after(35)
    assert "llm_requests_hanging" in text
    assert f"1 request waits for 127.0.0.1:{server.port} to begin its answer" in text


@pytest_twisted.ensureDeferred
async def test_a_slow_answer_is_told(stand_in: Any, watch: Any, receiver: Receiver, reactor: Any) -> None:
    server = stand_in()
    options = alerting(receiver, alerting_threshold=20.0, alert_types=("llm_too_slow",))
    watching = watch(server.port, **options)
    client, upstream = await begin(server, watching.gateway)
    watching.gateway.clock.advance(25.0)
    upstream.send(ANSWER)
    await client.until_received(b"usage")
    [text] = await watching.after(4)
    assert f"127.0.0.1:{server.port} took 25 s for a request (model m" in text


@pytest_twisted.ensureDeferred
async def test_budgets_are_told_to_people_and_to_programs(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = server_at(stand_in(ANSWER).port)
    models = (ModelEntry("qwen", "Qwen", server, prices=PRICES),)
    options = alerting(receiver, "slack", "webhook", max_budget=Decimal(5))
    watching = watch(None, models=models, **options)
    key = await watching.gateway.make_key(key_alias="batch", max_budget=5, soft_budget=1, user_id="ada")
    await watching.gateway.ask("POST", "/vllm" + COMPLETIONS, key, body={"model": "qwen", "prompt": "a"})
    await watching.after(INTERVAL + 5)
    posted = [json.loads(each.body) for each in receiver.posted]
    texts = "\n".join(each["text"] for each in posted if "text" in each)
    assert "• The key batch of the user ada has used all of its budget: 10 USD of 5 USD" in texts
    assert "• The key batch of the user ada is over its soft budget: 10 USD, and 1 USD are meant" in texts
    assert "• The whole gateway has used all of its budget: 10 USD of 5 USD" in texts
    events = {(each["event"], each["event_group"]): each for each in posted if "event" in each}
    assert set(events) == {("budget_crossed", "key"), ("soft_budget_crossed", "key"), ("budget_crossed", "proxy")}
    crossed = events["budget_crossed", "key"]
    assert (crossed["key_alias"], crossed["user_id"], crossed["spend"], crossed["max_budget"]) == (
        "batch",
        "ada",
        10,
        5,
    )


@pytest_twisted.ensureDeferred
async def test_ten_thousand_budgets_at_once_are_few_messages(
    watch: Any, receiver: Receiver, reactor: Any, stand_in: Any
) -> None:
    watching = watch(stand_in().port, **alerting(receiver))
    wiring = watching.gateway.service.wiring
    allowance = Allowance(max_budget=DOLLAR)
    teams = {f"team-{number}": TeamGrant(allowance=allowance) for number in range(10_000)}
    wiring.index.apply(Changes(teams=teams))
    for team in teams:
        wiring.accounting.local.budget_loaded("team", team, 0, 0)
        wiring.accounting.local.budget_committed("team", team, 0, DOLLAR * 9 // 10, 0)
    await watching.after(INTERVAL)
    await eventually(reactor, lambda: watching.gateway.service.wiring.budgets.counts())
    await deferLater(reactor, 0.3)
    texts = await watching.after(5)
    assert 1 <= len(texts) <= 3
    assert "_10,000 events in all since" in texts[0] or len(texts) > 1


@pytest.mark.parametrize("kind", ["db_exceptions", "failed_tracking_spend"])
@pytest_twisted.ensureDeferred
async def test_trouble_of_database_and_ledger_is_told_and_its_end_too(
    kind: str, stand_in: Any, watch: Any, receiver: Receiver, logged_failures: LoggedFailures
) -> None:
    watching = watch(stand_in().port, **alerting(receiver))
    wiring = watching.gateway.service.wiring
    if kind == "db_exceptions":
        wiring.database._log.error("the database failed: {reason}", reason="it is away", alert=kind, alert_about="d")
        expected = "the database failed: it is away"
    else:
        spool = wiring.accounting.spool
        spool._failed(OSError(28, "No space left on device"))
        expected = "The ledger's spool cannot be written: No space left on device"
    [text] = await watching.after(4)
    assert f"alert type `{kind}`, level High" in text
    assert expected in text
    if kind == "failed_tracking_spend":
        spool._recovered()
        assert "The ledger's spool is written again; 0 rows were lost in all" in (await watching.after(4))[-1]
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_ends_soon_is_told(stand_in: Any, watch: Any, receiver: Receiver) -> None:
    watching = watch(stand_in().port, **alerting(receiver))
    clock = watching.gateway.clock
    soon = [KnownCertificate("listener", 1, "*:443", clock.seconds() + DAY)]
    CertificateWatch(lambda: soon, clock, clock.seconds).look()
    [text] = await watching.after(4)
    assert "The certificate of the listener *:443 ends in 24.0 hours" in text


@pytest_twisted.ensureDeferred
async def test_single_kinds_go_elsewhere_and_others_nowhere(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in(BAD)
    url = receiver.url.replace("/in", "/outages")
    options = alerting(receiver, alert_types=("outage_alerts",), alert_to_webhook_url={"outage_alerts": (Secret(url),)})
    watching = watch(server.port, **options)
    await watching.gateway.ask("POST", "/vllm/v1/completions", body={"model": "m", "prompt": "a"})
    watching.server(server.port).breaker.declare_dead(watching.gateway.clock.seconds(), "timeout", 0.0)
    await watching.after(4)
    assert [each.path.partition("?")[0] for each in receiver.posted] == ["/outages"]


@pytest_twisted.ensureDeferred
async def test_the_url_is_in_no_line_of_the_log_even_if_slack_is_away(
    stand_in: Any, watch: Any, receiver: Receiver, reactor: Any
) -> None:
    server = stand_in()
    watching = watch(server.port, **alerting(receiver))
    gateway = watching.gateway
    await receiver.stop()
    watching.server(server.port).breaker.declare_dead(gateway.clock.seconds(), "timeout", 0.0)
    for _ in range(20):
        gateway.clock.advance(1.0)
        await deferLater(reactor, 0.01)
    text = gateway.log_text()
    assert "it refuses connections" in text
    assert "sk-secret-token" not in text
    await receiver.start()
    texts = await watching.after(60)
    assert "gets no requests" in texts[0]


@pytest_twisted.ensureDeferred
async def test_a_reload_switches_alerts_on_and_off(stand_in: Any, watch: Any, receiver: Receiver, reactor: Any) -> None:
    server = stand_in()
    watching = watch(server.port, health=HealthSettings(interval=None))
    gateway = watching.gateway
    telemetry = gateway.service.wiring.telemetry
    telemetry.prepare(attrs.evolve(gateway.settings, **alerting(receiver)))()
    breaker = watching.server(server.port).breaker
    breaker.declare_dead(gateway.clock.seconds(), "timeout", 0.0)
    assert len(await watching.after(4)) == 1
    telemetry.prepare(gateway.settings)()
    breaker.declare_alive(gateway.clock.seconds())
    assert len(await watching.after(10)) == 1
    assert (watching.part().observers(), watching.part().alerts) == ((), None)
