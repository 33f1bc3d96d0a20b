"""What has used 80, 90 and 100 percent of a budget: counted, and told once per period."""

from __future__ import annotations

from twisted.internet.task import Clock

from tests.ratelimit.supervised.gateway_in_memory import GatewayInMemory
from twisted_vllm.auth.grants import Changes, EndUser, KeyGrant, TeamGrant
from twisted_vllm.auth.key_index import GatewayLimits, KeyIndex
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.proxy.budget_watch import INTERVAL, MOST_SHOWN, STEP, BudgetWatch, Crossing
from twisted_vllm.ratelimit.allowance import Allowance, Limited, ModelBudget, model_budget_id
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.supervised.budget_copies import BudgetCopies
from twisted_vllm.ratelimit.watched_budgets import LocalBudgets

#: a budget of one day
DAILY = Allowance(max_budget=1000, budget_duration="1d")
DAY = 86_400


class Watched:
    """A watch over a limiter and an index, with a clock that the test turns."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(DAY * 20_000)
        self.limiter = LocalLimiter()
        self.index = KeyIndex()
        self.crossings: list[Crossing] = []
        self.watch = self.make()
        self.begin()

    def make(self) -> BudgetWatch:
        cooperate = turn_cooperator(self.clock).cooperate
        return BudgetWatch(LocalBudgets(self.limiter), self.index, cooperate, self.clock)

    def begin(self) -> None:
        """Begin to watch, as after a start."""
        self.watch.stop()
        self.watch = self.make()
        self.watch.on_crossing.append(self.crossings.append)
        self.watch.start()
        self.turns()

    def turns(self) -> None:
        for _ in range(50):
            self.clock.advance(0)

    def team(self, id: str = "red", allowance: Allowance = DAILY) -> None:
        self.index.apply(Changes(teams={id: TeamGrant(allowance=allowance)}))

    def spend(self, kind: str, id: str, amount: int) -> None:
        subject = Limited(kind, id, self.index.allowance_of(kind, id))
        now = self.clock.seconds()
        self.limiter.settle(self.limiter.admit([subject], "m", 0, 0, now), 0, amount, now)

    def look(self) -> list[tuple[str, str, int]]:
        """Wait for the next look; return what it told."""
        self.crossings.clear()
        self.clock.advance(INTERVAL)
        self.turns()
        return [(each.kind, each.id, each.share) for each in self.crossings]


def test_a_share_is_told_once_per_period_and_only_the_highest() -> None:
    watched = Watched()
    watched.team()
    watched.spend("team", "red", 799)
    assert watched.look() == []
    watched.spend("team", "red", 1)
    assert watched.look() == [("team", "red", 80)]
    assert watched.look() == []
    watched.spend("team", "red", 250)
    assert watched.look() == [("team", "red", 100)]
    assert watched.crossings == [Crossing("team", "red", 100, 1050, 1000, DAY * 20_000, DAY * 20_001)]
    watched.clock.advance(DAY)
    assert watched.look() == []
    watched.spend("team", "red", 900)
    assert watched.look() == [("team", "red", 90)]


def test_counts_say_how_many_have_used_at_least_a_share() -> None:
    watched = Watched()
    for id, spent in (("red", 800), ("green", 950), ("blue", 1000), ("white", 10)):
        watched.team(id)
        watched.spend("team", id, spent)
    watched.index.reconfigure(GatewayLimits(proxy=DAILY))
    watched.spend("proxy", "proxy", 900)
    watched.look()
    assert watched.watch.counts() == {
        ("team", 80): 3,
        ("team", 90): 2,
        ("team", 100): 1,
        ("proxy", 80): 1,
        ("proxy", 90): 1,
    }
    watched.clock.advance(DAY)
    watched.look()
    assert watched.watch.counts() == {}


def test_budgets_for_a_model_and_of_end_users_are_watched() -> None:
    watched = Watched()
    watched.team("red", Allowance(model_budgets={"llama": ModelBudget(1000)}))
    eve = EndUser(Limited("end_user", "eve", DAILY))
    watched.index.apply(Changes(end_users={"eve": eve}))
    model = model_budget_id("team", "red", "llama")
    watched.spend("model_budget", model, 950)
    watched.spend("end_user", "eve", 1000)
    assert sorted(watched.look()) == [("end_user", "eve", 100), ("model_budget", model, 90)]


def test_what_was_crossed_before_a_restart_is_not_told_again() -> None:
    watched = Watched()
    watched.team()
    # what the database has
    watched.limiter.budget_loaded("team", "red", 850, DAY * 20_000)
    watched.begin()
    assert watched.crossings == []
    assert watched.watch.counts() == {("team", 80): 1}
    assert watched.look() == []
    watched.spend("team", "red", 60)
    assert watched.look() == [("team", "red", 90)]


def test_what_was_crossed_between_the_start_and_the_first_look_is_told() -> None:
    watched = Watched()
    watched.watch.stop()
    watched.team()
    watched.limiter.budget_loaded("team", "red", 700, DAY * 20_000)
    watched.spend("team", "red", 150)
    watched.begin()
    assert [each.share for each in watched.crossings] == [80]


def test_spend_that_goes_up_and_down_around_a_share_is_told_once() -> None:
    watched = Watched()
    watched.team()
    watched.spend("team", "red", 900)
    assert watched.look() == [("team", "red", 90)]
    for spent in (880, 910, 860, 901):
        watched.limiter.budget_loaded("team", "red", spent - 900, DAY * 20_000)
        assert watched.look() == []
    # 5 percent below the share: now it counts as another crossing
    watched.limiter.budget_loaded("team", "red", -60, DAY * 20_000)
    assert watched.look() == []
    watched.limiter.budget_loaded("team", "red", 0, DAY * 20_000)
    assert watched.look() == [("team", "red", 90)]


def test_spend_that_an_administrator_set_is_not_told_but_what_is_spent_after_it() -> None:
    watched = Watched()
    watched.team()
    watched.spend("team", "red", 1000)
    assert watched.look() == [("team", "red", 100)]
    watched.limiter.budget_reset("team", "red", -1000, DAY * 20_000)
    assert watched.look() == []
    watched.spend("team", "red", 850)
    assert watched.look() == [("team", "red", 80)]


def test_a_higher_budget_is_another_measure() -> None:
    watched = Watched()
    watched.team()
    watched.spend("team", "red", 1000)
    assert watched.look() == [("team", "red", 100)]
    watched.team("red", Allowance(max_budget=2000, budget_duration="1d"))
    assert watched.look() == []
    watched.spend("team", "red", 600)
    assert watched.look() == [("team", "red", 80)]


def test_a_crossing_names_the_key() -> None:
    watched = Watched()
    grant = KeyGrant(token="0" * 64, key_id="1" * 32, name="batch", allowance=DAILY)
    watched.index.apply(Changes(keys={grant.token: grant}))
    watched.spend("key", grant.key_id, 1000)
    watched.look()
    assert [each.key for each in watched.crossings] == [grant]


def test_nobody_without_a_budget_and_no_budget_of_nothing_is_counted() -> None:
    watched = Watched()
    watched.team("red", Allowance(max_budget=0))
    watched.team("blue", Allowance(soft_budget=10))
    watched.spend("team", "blue", 100)
    watched.limiter.budget_loaded("team", "red", 5, 0)
    assert watched.look() == []
    assert watched.watch.counts() == {}


def test_a_hundred_thousand_budgets_are_looked_at_in_short_steps() -> None:
    watched = Watched()
    count = 100_000
    watched.index.apply(Changes(teams={f"t{number}": TeamGrant(allowance=DAILY) for number in range(count)}))
    for number in range(count):
        watched.limiter.budget_loaded("team", f"t{number}", 790, DAY * 20_000)
    for number in range(count):
        watched.spend("team", f"t{number}", 50)
    # each look at a budget takes about 2 µs
    assert sum(1 for _ in watched.watch._steps()) >= count / STEP
    assert len(watched.crossings) == count
    assert watched.watch.counts() == {("team", 80): count}


def test_the_housekeeper_watches_the_budgets_of_the_supervisor() -> None:
    gateway = GatewayInMemory()
    clock, index = Clock(), KeyIndex()
    clock.advance(gateway.now)
    index.apply(Changes(teams={str(number): TeamGrant(allowance=DAILY) for number in range(2 * STEP)}))
    crossings: list[Crossing] = []

    def watch() -> BudgetWatch:
        budgets = BudgetCopies(gateway.housekeeper)
        found = BudgetWatch(budgets, index, turn_cooperator(clock).cooperate, clock)
        found.on_crossing.append(crossings.append)
        return found

    def look(watched: BudgetWatch) -> list[tuple[str, int]]:
        crossings.clear()
        done = watched.look()
        for _ in range(2000):
            clock.advance(0)
        assert done.called
        gateway.exchange()
        return [(each.id, each.share) for each in crossings]

    for number in range(2 * STEP):
        gateway.limiter.budget_loaded("team", str(number), 700, int(gateway.now) // DAY * DAY)
    first = watch()
    assert look(first) == []
    for number in (3, STEP + 3):
        gateway.limiter.budget_committed("team", str(number), 0, 950, int(gateway.now) // DAY * DAY)
    assert look(first) == [("3", 90), (str(STEP + 3), 90)]
    assert first.counts() == {("team", 80): 2, ("team", 90): 2}
    assert look(first) == []
    # nor is it told again by the housekeeper that replaces this one
    assert look(watch()) == []
    gateway.limiter.budget_committed("team", "3", 0, 1000, int(gateway.now) // DAY * DAY)
    assert look(watch()) == [("3", 100)]


def test_the_budgets_that_are_used_most_are_known_by_name() -> None:
    watched = Watched()
    ada = KeyGrant(token="a" * 64, key_id="k1", name="ada", allowance=DAILY)
    watched.index.apply(
        Changes(keys={ada.token: ada}, teams={f"t{number}": TeamGrant(allowance=DAILY) for number in range(60)})
    )
    watched.spend("key", "k1", 250)
    for number in range(60):
        watched.spend("team", f"t{number}", 10 * number)
    watched.look()
    first, *teams = sorted(watched.watch.most_used, key=lambda each: each.kind)
    assert (first.name, first.token, first.share, first.ends) == ("ada", "a" * 64, 0.25, DAY * 20_001)
    assert [(each.id, each.spent, each.name) for each in teams] == [
        (f"t{number}", 10 * number, "") for number in range(59, 59 - MOST_SHOWN, -1)
    ]
    # the name is known from the look before
    watched.look()
    assert [each.name for each in watched.watch.most_used if each.kind == "key"] == ["ada"]
