"""Alerts to people and programs, where the settings ask for them."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from random import random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, globalLogPublisher

from twisted_vllm.app.telemetry.part import Surroundings
from twisted_vllm.app.telemetry.slow_requests import words
from twisted_vllm.config.alert_types import ALERT_TYPES, BUDGETS, FAILURES, HANGING, TOO_SLOW
from twisted_vllm.config.alerting import SLACK, WEBHOOK
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.alerting.alerts import HIGH, MEDIUM, Alert
from twisted_vllm.observability.alerting.budget_events import Spender, budget_event, budget_text, soft_budget_text
from twisted_vllm.observability.alerting.digest import AlertDigest
from twisted_vllm.observability.alerting.log_alerts import LogAlerts
from twisted_vllm.observability.alerting.posts import BOUNDS, Posts
from twisted_vllm.observability.alerting.request_alerts import RequestAlerts
from twisted_vllm.observability.alerting.slack import slack_body
from twisted_vllm.observability.delivery.post import Poster, http_agent
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.proxy.budget_watch import Crossing
from twisted_vllm.proxy.slow_requests import Slow, SlowRequests
from twisted_vllm.workers.siblings import HOUSEKEEPER

#: seconds between two looks for messages that are due, and for requests that hang
TICK, LOOK = 1.0, 10.0

#: seconds that the last messages have at the end
STOP_SECONDS = 5.0

#: the topic of alerts that a worker has the housekeeper send
TO_HOUSEKEEPER = "alert"

#: what the queue of budget events is called in metrics
_EVENTS = "alert_webhook"


@attrs.frozen
class Plan:
    """What the settings ask for.

    Attributes:
        urls: the URLs by the names of their queues.
        routes: the queues of each kind of alert, for people; a kind that nobody wants is missing.
        most: messages in a minute.
        threshold: how long a request takes, in seconds, before people are told.
        to_log: whether each alert is also a line of the log.
    """

    urls: Mapping[str, Secret]
    routes: Mapping[str, tuple[str, ...]]
    most: int
    threshold: float
    to_log: bool


def plan_of(settings: Settings) -> Plan:
    """Return what the settings ask for."""
    urls: dict[str, Secret] = {}
    routes: dict[str, tuple[str, ...]] = {}
    if SLACK in settings.alerting:
        kinds = ALERT_TYPES if settings.alert_types is None else settings.alert_types
        for kind in kinds:
            own = settings.alert_to_webhook_url.get(kind, ())
            if own:
                queues = [f"{SLACK}_{kind}", *(f"{SLACK}_{kind}_{number}" for number in range(2, len(own) + 1))]
                urls.update(zip(queues, own, strict=True))
                routes[kind] = tuple(queues)
            elif settings.alerts.slack_webhook_url is not None:
                urls[SLACK] = settings.alerts.slack_webhook_url
                routes[kind] = (SLACK,)
    if WEBHOOK in settings.alerting and settings.alerts.webhook_url is not None:
        urls[_EVENTS] = settings.alerts.webhook_url
    return Plan(
        urls,
        routes,
        settings.alerts.max_per_minute,
        settings.alerting_threshold,
        settings.alerting_args.log_to_console,
    )


_NOTHING = plan_of(Settings())


class RunningAlerts:
    """Sends alerts to Slack, and events of budgets to a webhook."""

    _log = Logger()

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is sent before settings ask for it."""
        self._surroundings = surroundings
        self._plan = _NOTHING
        self._running = False
        self._queues: dict[str, DeliveryQueue[bytes]] = {}
        # by the queues that a kind of alert goes to
        self._digests: dict[tuple[str, ...], AlertDigest] = {}
        self._requests: RequestAlerts | None = None
        self._of_log = LogAlerts(surroundings.reactor, surroundings.redact, self._tell)
        self._slow: SlowRequests | None = None
        self._loop: LoopingCall | None = None
        self._listens = False
        siblings = surroundings.siblings
        if siblings.housekeeps:
            # what others see
            siblings.on(TO_HOUSEKEEPER, Alert, lambda alert, sender: self._take(alert))

    def observers(self) -> Sequence[RequestObserver]:
        """Return what looks at requests, if people want to know of them."""
        return () if self._requests is None else (self._requests,)

    def start(self) -> None:
        """Begin to tell."""
        self._running = True
        self._listen()
        for queue in self._queues.values():
            queue.start()

    def stop(self) -> Deferred[None] | None:
        """Tell what waits, and end."""
        self._running = False
        self._listen()
        self._send(all_of_them=True)
        stopping = [queue.stop(STOP_SECONDS) for queue in self._queues.values()]
        return gatherResults(stopping).addCallback(lambda _: None) if stopping else None

    # the settings

    def apply(self, plan: Plan) -> None:
        """Send what a plan asks for from now on."""
        deliveries = self._surroundings.deliveries
        for name in [name for name in self._queues if name not in plan.urls]:
            queue = self._queues.pop(name)
            deliveries.remove(queue)
            queue.stop(STOP_SECONDS)
        former = self._plan.urls
        for name, url in plan.urls.items():
            if name not in self._queues:
                self._queues[name] = added = self._new_queue(name, url)
                deliveries.add(added)
                if self._running:
                    added.start()
            elif former.get(name) != url:
                self._queues[name].reconfigure(self._destination(url), BOUNDS)
        self._plan = plan
        digests = {names: self._digests.get(names) or AlertDigest(plan.most) for names in plan.routes.values()}
        for digest in digests.values():
            digest.reconfigure(plan.most)
        self._digests = digests
        wants_requests = FAILURES in plan.routes or TOO_SLOW in plan.routes
        self._requests = RequestAlerts(self._surroundings.text, plan.threshold, self._tell) if wants_requests else None
        self._listen()

    def _new_queue(self, name: str, url: Secret) -> DeliveryQueue[bytes]:
        return DeliveryQueue(name, self._destination(url), self._surroundings.reactor, BOUNDS, random)

    def _destination(self, url: Secret) -> Any:
        agent, pool = http_agent(self._surroundings.reactor)
        return Posts(Poster(agent, url, {}, pool))

    def _listen(self) -> None:
        """Listen to what the plan needs, and to nothing else."""
        plan, surroundings = self._plan, self._surroundings
        wanted = self._running and bool(plan.urls)
        if wanted != self._listens:
            self._listens = wanted
            if wanted:
                globalLogPublisher.addObserver(self._of_log)
                surroundings.budgets.on_crossing.append(self._crossed)
                self._loop = LoopingCall(self._send)
                self._loop.clock = surroundings.reactor
                self._loop.start(TICK, now=False)
            else:
                globalLogPublisher.removeObserver(self._of_log)
                surroundings.budgets.on_crossing.remove(self._crossed)
                loop, self._loop = self._loop, None
                if loop is not None and loop.running:
                    loop.stop()
        hanging = plan.threshold if wanted and HANGING in plan.routes else None
        if self._slow is None and hanging is not None:
            site, reactor = surroundings.site, surroundings.reactor
            self._slow = SlowRequests(
                lambda: site.connections,
                surroundings.text,
                turn_cooperator(reactor).cooperate,
                reactor,
                self._hangs,
                LOOK,
            )
        if self._slow is not None:
            self._slow.reconfigure(hanging)
            if hanging is None:
                self._slow = None

    # what is told

    def _tell(self, alert: Alert) -> None:
        if alert.kind not in self._plan.routes:
            return
        if self._plan.to_log:
            self._log.info("Alert of type {kind}: {text}", kind=alert.kind, text=alert.text)
        siblings = self._surroundings.siblings
        if not siblings.housekeeps:
            housekeeper = next((number for number, slot in siblings.others.items() if slot == HOUSEKEEPER), None)
            if housekeeper is not None:
                # so that several processes send no more messages than one, and one about the same
                siblings.send(housekeeper, TO_HOUSEKEEPER, alert)
                return
        self._take(alert)

    def _take(self, alert: Alert) -> None:
        """Have people told of it with others alike."""
        names = self._plan.routes.get(alert.kind)
        if names is None:
            return
        self._digests[names].add(alert, self._surroundings.reactor.seconds())

    def _crossed(self, crossing: Crossing) -> None:
        key = crossing.key
        spender = Spender(crossing.kind, crossing.id)
        if key is not None:
            spender = Spender(
                crossing.kind,
                crossing.id,
                key_name=key.name,
                token=key.token,
                user_id=key.user_id,
                team_id=key.team_id,
                organization_id=key.organization_id,
            )
        soft = crossing.soft_budget
        if soft is None:
            text = budget_text(spender, crossing.spent, max_budget=crossing.max_budget, share=crossing.share)
        else:
            text = soft_budget_text(spender, crossing.spent, soft)
        level = HIGH if crossing.share >= 100 else MEDIUM
        about = f"{crossing.kind} {crossing.share}"
        self._tell(Alert(BUDGETS, about, self._surroundings.redact(text), level))
        events = self._queues.get(_EVENTS)
        if events is not None:
            body = budget_event(
                spender,
                crossing.spent,
                max_budget=crossing.max_budget or None,
                soft_budget=soft,
                share=crossing.share,
            )
            events.put(body, len(body))

    def _hangs(self, slow: Slow) -> None:
        text = words(slow, self._surroundings.servers, self._surroundings.reactor.seconds())
        self._tell(Alert(HANGING, f"{slow.waits} {slow.server}", text, HIGH, slow.count))

    def _send(self, *, all_of_them: bool = False) -> None:
        now = self._surroundings.reactor.seconds()
        for names, digest in self._digests.items():
            for message in digest.due(now, all_of_them=all_of_them):
                try:
                    body = slack_body(message, socket.gethostname())
                except Exception:
                    # the loop would end, and nobody would be told of anything any more
                    self._log.failure("An alert of type {kind} could not be written", kind=message.kind)
                    continue
                for name in names:
                    self._queues[name].put(body, len(body))
