"""All processes have one circuit breaker for each server."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.proxy.gateway_fakes import server
from tests.upstreams.shared.worker_fleets import Workers
from tests.upstreams.test_dispatcher import Asked
from twisted_vllm.errors import NoHealthyUpstream, UpstreamUnreachable
from twisted_vllm.upstreams.breaker import CLOSED, DEAD, HALF_OPEN, OPEN
from twisted_vllm.upstreams.shared.breaker import TURN

GPU = "gpu-1:8000"
NOBODY_LISTENS = UpstreamUnreachable("nobody listens")


def fail(workers: Workers, number: int, times: int = 1) -> None:
    """Have requests of a worker fail by the server's fault."""
    for _ in range(times):
        asked = workers[number].ask()
        assert asked.placement is not None
        asked.placement.failed(NOBODY_LISTENS, workers.clock.seconds())
        asked.end()


def states(workers: Workers) -> set[str]:
    return {worker.breaker(GPU).state for worker in workers.workers.values()}


def test_failures_of_all_workers_count_together_and_open_the_breaker_everywhere() -> None:
    workers = Workers(2, server())
    fail(workers, 1, 2)
    workers.settle()
    fail(workers, 2, 2)
    assert workers[2].breaker(GPU).state == OPEN
    workers.settle()
    assert states(workers) == {OPEN}
    assert isinstance(workers[1].ask().error, NoHealthyUpstream)
    assert workers[1].breaker(GPU).retry_at == workers[2].breaker(GPU).retry_at


def test_a_success_at_one_worker_ends_the_row_of_failures_of_all() -> None:
    workers = Workers(2, server())
    fail(workers, 1, 3)
    workers.settle()
    asked = workers[2].ask()
    assert asked.placement is not None
    asked.placement.responded(200, workers.clock.seconds())
    asked.end()
    workers.settle()
    fail(workers, 1, 3)
    workers.settle()
    assert states(workers) == {CLOSED}


def test_one_process_tries_a_server_whose_cool_down_is_over() -> None:
    workers = Workers(3, server())
    fail(workers, 2, 4)
    workers.settle()
    workers.clock.advance(5.0)
    asked = [workers[number].ask() for number in (1, 2, 3) for _ in range(3)]
    assert [each.placement is not None for each in asked] == [False] * 3 + [True] + [False] * 5
    workers.settle()
    assert states(workers) == {HALF_OPEN}
    trial = asked[3]
    assert trial.placement is not None
    trial.placement.responded(200, workers.clock.seconds())
    trial.end()
    workers.settle()
    assert states(workers) == {CLOSED}


def test_the_next_process_tries_if_the_first_has_no_requests() -> None:
    workers = Workers(2, server())
    fail(workers, 2, 4)
    workers.settle()
    workers.clock.advance(5.0 + TURN)
    assert workers[1].ask().placement is not None


def test_the_trial_of_a_process_that_dies_is_free() -> None:
    workers = Workers(2, server())
    fail(workers, 1, 4)
    workers.settle()
    workers.clock.advance(5.0)
    assert workers[1].ask().placement is not None
    workers.settle()
    assert workers[2].ask().placement is None
    workers.kill(1)
    assert workers[2].ask().placement is not None


def test_a_trial_that_is_given_up_is_free_for_the_others() -> None:
    workers = Workers(2, server())
    fail(workers, 1, 4)
    workers.settle()
    workers.clock.advance(5.0)
    workers[1].ask().end()
    workers.settle()
    workers.clock.advance(TURN)
    assert workers[2].ask().placement is not None


def test_what_the_housekeeper_finds_dead_is_dead_everywhere_and_alive_again() -> None:
    workers = Workers(2, server(), housekeeper=True)
    housekeeper = workers[1]
    now = workers.clock.seconds()
    housekeeper.breaker(GPU).declare_dead(now, "connection_refused", now + 5.0)
    workers.settle()
    assert states(workers) == {DEAD}
    housekeeper.breaker(GPU).retry_at = now + 9.0
    housekeeper.sharing.servers.checked(housekeeper.state(GPU))
    workers.settle()
    assert workers[3].breaker(GPU).retry_at == now + 9.0
    housekeeper.breaker(GPU).declare_alive(now)
    workers.settle()
    assert states(workers) == {CLOSED}


def test_a_process_that_joins_knows_what_is_dead() -> None:
    workers = Workers(1, server())
    fail(workers, 1, 4)
    workers.settle()
    workers.clock.advance(1.0)
    joined = workers.start(2)
    assert joined.breaker(GPU).state == OPEN
    assert joined.breaker(GPU).since == workers[1].breaker(GPU).since


class SharedBreakers(RuleBasedStateMachine):
    """Whatever order messages come in, all processes end with one state, and none goes back to an earlier one."""

    @initialize(count=st.integers(2, 3))
    def begin(self, count: int) -> None:
        self.workers = Workers(count, server(), housekeeper=True)
        self.running: list[tuple[int, Asked]] = []
        self.versions: dict[int, tuple[int, int, int]] = {}

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([each for each in self.workers.workers if each != 1]))
        asked = self.workers[number].ask()
        if asked.placement is not None:
            self.running.append((number, asked))

    @rule(data=st.data(), result=st.sampled_from(["well", "failed", "left"]))
    def end(self, data: st.DataObject, result: str) -> None:
        if not self.running:
            return
        ended = data.draw(st.sampled_from(self.running))
        self.running.remove(ended)
        placement = ended[1].placement
        assert placement is not None
        now = self.workers.clock.seconds()
        if result == "well":
            placement.responded(200, now)
        elif result == "failed":
            placement.failed(NOBODY_LISTENS, now)
        placement.ended()

    @rule(dead=st.booleans())
    def check(self, dead: bool) -> None:
        breaker, now = self.workers[1].breaker(GPU), self.workers.clock.seconds()
        if dead:
            breaker.declare_dead(now, "timeout", now + 1.0)
            self.workers[1].sharing.servers.checked(self.workers[1].state(GPU))
        else:
            breaker.declare_alive(now)

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        pairs = self.workers.processes.pairs
        if pairs:
            self.workers.processes.deliver(data.draw(st.sampled_from(pairs)))

    @rule(seconds=st.sampled_from([0.01, 1.0, 5.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.workers.clock.advance(seconds)

    @invariant()
    def no_state_goes_back(self) -> None:
        if hasattr(self, "workers"):
            for number, worker in self.workers.workers.items():
                version = worker.breaker(GPU).version
                assert version >= self.versions.get(number, version)
                self.versions[number] = version

    def teardown(self) -> None:
        if hasattr(self, "workers"):
            self.workers.settle()
            found = {worker.breaker(GPU).status for worker in self.workers.workers.values()}
            assert len({(each.version, each.reason, each.retry_at, each.trial_since) for each in found}) == 1


SharedBreakers.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_any_order_of_messages = SharedBreakers.TestCase
