"""A reload of several processes: in all of them, or in none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.app.processes.handed_over import HandedOver, take_over
from twisted_vllm.app.reload import Reloader
from twisted_vllm.app.shared.reload import (
    DIFFERENT,
    PREPARE,
    Prepared,
    ReloadCoordinator,
    SharedReload,
    refused,
    together,
)
from twisted_vllm.app.shared.settings_digest import Fingerprint, fingerprint_of
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import INVALID, SUCCEEDED
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import ReloadFailed

SECRET = "sk-master-key-that-nobody-sees"


def settings(seconds: float, **others: Any) -> Settings:
    return Settings(master_key=Secret(SECRET), database_url=Secret("sqlite://"), drain_timeout=seconds, **others)


class World:
    """Processes that read the same file.

    Attributes:
        file: what the file has.
        reads: what the next reads find in place of it.
    """

    def __init__(self, processes: Connected) -> None:
        self.processes = processes
        self.file: Settings | ConfigError = settings(1)
        self.reads: list[Settings | ConfigError] = []
        self.reloaders: dict[int, Reloader] = {}
        self.told: list[str] = []
        self.ended: list[int] = []
        self._effective = settings(1)
        self.coordinator = ReloadCoordinator(processes.hub, self)

    def read(self) -> Settings:
        found = self.reads.pop(0) if self.reads else self.file
        if isinstance(found, ConfigError):
            raise found
        return found

    async def begin(self, number: int, slot: int, found: Settings | None = None) -> Reloader:
        """Start a process."""
        link = self.processes.start(number, slot)
        reloader = self.reloaders[number] = Reloader(
            settings(1) if found is None else found, self.read, lambda _: ((), _nothing), lambda work: _call(work)
        )
        SharedReload(link, reloader)
        link.ready()
        await eventually(self.processes._reactor, lambda: number in self.processes.hub.ready)
        return reloader

    @property
    def in_effect_everywhere(self) -> list[float]:
        return [each.settings.drain_timeout for each in self.reloaders.values()]

    # the supervisor's own part

    def prepare(self) -> Deferred[tuple[Prepared, Callable[[], None]]]:
        found = self.file
        if isinstance(found, ConfigError):
            return succeed((refused(Failure(found)), _nothing))

        def apply() -> None:
            self._effective = found

        return succeed((Prepared(fingerprint_of(found)), apply))

    def in_effect(self) -> Fingerprint:
        return fingerprint_of(self._effective)

    def reload_begun(self) -> None:
        self.told.append("begun")

    def reload_ended(self) -> None:
        self.told.append("ended")

    def end(self, number: int, reason: str) -> None:
        self.ended.append(number)


def _nothing() -> None:
    """Do nothing."""


def _call(work: Callable[[], Any]) -> Deferred[Any]:
    try:
        return succeed(work())
    except Exception:
        done: Deferred[Any] = Deferred()
        done.errback(Failure())
        return done


@pytest.fixture
def world(reactor: Any) -> Iterator[World]:
    processes = connected(reactor)
    yield World(processes)
    processes.close()


async def test_all_processes_put_it_into_effect_and_the_asker_is_told(world: World) -> None:
    for number in range(3):
        await world.begin(number, number)
    world.file = settings(7, drain_delay=2.0)
    done = await world.reloaders[1].reload()
    assert sorted(done.changed) == ["passthrough.drain_delay", "passthrough.drain_timeout"]
    assert world.in_effect_everywhere == [7, 7, 7]
    assert all(each.results[SUCCEEDED] == 1 for each in world.reloaders.values())
    assert world.told == ["begun", "ended"]
    assert world.in_effect() == fingerprint_of(world.file)


async def test_every_process_knows_how_the_last_reload_ended_whoever_asked_for_it(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    begun = await world.reloaders[0].state()
    assert begun.last is None
    world.file = attrs.evolve(settings(7), listen=("tcp:1",))
    await world.coordinator.reload("SIGHUP")
    late = await world.begin(2, 2, world.file)
    for reloader in (*world.reloaders.values(), late):
        state = await reloader.state()
        assert state.restart_needed == ("passthrough.listen",)
        assert state.last is not None
        assert (state.last.by, state.last.result, state.last.at) == ("SIGHUP", "succeeded", state.read_at)
        assert state.last.changed == ("passthrough.drain_timeout",)
    world.file = ConfigError([Problem("passthrough.listen", "is wrong")])
    with pytest.raises(ConfigError):
        await world.reloaders[1].reload()
    after = await world.reloaders[0].state()
    assert after.last is not None
    assert (after.last.by, after.last.result) == ("API", "invalid")
    assert after.last.problems == ("passthrough.listen: is wrong",)
    assert after.read_at == state.read_at


async def test_a_supervisor_that_does_not_say_leaves_what_the_process_knows(world: World) -> None:
    reloader = await world.begin(1, 1)
    world.processes.hub.close(1)
    state = await reloader.state()
    assert (state.read_at, state.last) == (reloader.succeeded_at, None)


async def test_what_needs_a_restart_is_named(world: World) -> None:
    await world.begin(1, 1)
    world.file = attrs.evolve(settings(7), listen=("tcp:1",))
    done = await world.reloaders[1].reload()
    assert (done.changed, done.restart_needed) == (("passthrough.drain_timeout",), ("passthrough.listen",))


async def test_a_file_that_one_process_cannot_use_changes_nothing(world: World) -> None:
    for number in range(3):
        await world.begin(number, number)
    problem = ConfigError([Problem("passthrough.drain_timeout", "is no number")])
    world.file = settings(7)
    world.reads = [settings(7), problem, settings(7), problem]
    with pytest.raises(ConfigError, match=r"passthrough\.drain_timeout: is no number"):
        await world.reloaders[2].reload()
    assert world.in_effect_everywhere == [1, 1, 1]
    assert all(each.last_failed for each in world.reloaders.values())
    # nothing is left of it
    world.reads = []
    await world.reloaders[2].reload()
    assert world.in_effect_everywhere == [7, 7, 7]


async def test_a_file_that_changes_between_two_reads_is_read_once_more(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    world.file = settings(7)
    world.reads = [settings(6)]
    await world.reloaders[0].reload()
    assert world.in_effect_everywhere == [7, 7]


async def test_a_file_that_changes_all_the_time_changes_nothing(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    world.file = settings(7)
    world.reads = [settings(6), settings(5), settings(4), settings(3)]
    with pytest.raises(ReloadFailed, match="the file changed meanwhile"):
        await world.reloaders[0].reload()
    assert world.in_effect_everywhere == [1, 1]


async def test_a_problem_in_all_is_read_once(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    world.file = ConfigError([Problem("listen", "is empty")])
    with pytest.raises(ConfigError):
        await world.reloaders[0].reload()
    assert all(each.results[INVALID] == 1 for each in world.reloaders.values())


async def test_reloads_at_once_are_one_after_the_other(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    world.file = settings(7)
    first, second, third = (world.reloaders[number].reload() for number in (0, 1, 1))
    for each in (first, second, third):
        await each
    assert world.in_effect_everywhere == [7, 7]
    # the later ones share one
    assert world.reloaders[0].results[SUCCEEDED] == 2


async def test_a_process_that_ends_meanwhile_holds_nothing_up(world: World, reactor: Any) -> None:
    await world.begin(1, 1)
    frozen = await world.processes.ready(2, 2)
    frozen.answers(PREPARE, type(None), lambda asked, asker: Deferred())
    world.file = settings(7)
    reloading = world.reloaders[1].reload()
    frozen.close()
    await reloading
    assert world.in_effect_everywhere == [7]


async def test_a_process_that_drains_has_no_part_in_it(world: World) -> None:
    for number in range(2):
        await world.begin(number, number)
    world.reloaders[0].stop()
    world.file = settings(7)
    await world.reloaders[1].reload()
    assert world.in_effect_everywhere == [1, 7]
    world.reloaders[1].stop()
    with pytest.raises(ReloadFailed, match="shutting down"):
        await world.reloaders[1].reload()


async def test_a_process_that_does_not_put_it_into_effect_is_ended(world: World) -> None:
    await world.begin(1, 1)
    other = await world.processes.ready(2, 2)
    # it answers with what it read, and fails after it
    other.answers(PREPARE, type(None), lambda asked, asker: Prepared(fingerprint_of(settings(7))))
    world.file = settings(7)
    await world.reloaders[1].reload()
    assert world.in_effect_everywhere == [7]
    assert world.ended == [2]


async def test_a_process_that_began_with_the_settings_of_before_has_all_reload(world: World, reactor: Any) -> None:
    await world.begin(1, 1)
    world.file = settings(7)
    await world.reloaders[1].reload()
    late = await world.begin(2, 2, settings(1))
    await eventually(reactor, lambda: late.settings.drain_timeout == 7)
    assert world.reloaders[1].results[SUCCEEDED] == 2
    # one that has those in effect does not
    await world.begin(3, 3, settings(7))
    assert world.reloaders[1].results[SUCCEEDED] == 2


def test_processes_that_are_silent_are_named() -> None:
    good = Prepared(fingerprint_of(settings(7)))
    found = together(good, [good], [0, 2])
    assert found.read is None
    assert found.failure == "housekeeper, worker-2 did not read the configuration in time. Nothing was changed."
    assert together(good, [Prepared(fingerprint_of(settings(6)))], []).failure == DIFFERENT


def test_newer_code_is_not_compared() -> None:
    one, other = fingerprint_of(settings(7)), fingerprint_of(settings(6))
    assert one.differs(other)
    assert not one.differs(Fingerprint(b"newer", other.values))


def test_digests_show_no_secret() -> None:
    found = fingerprint_of(settings(7))
    assert SECRET not in repr(found)
    assert found != fingerprint_of(attrs.evolve(settings(7), master_key=Secret("another")))


def test_settings_are_handed_over_to_several_processes() -> None:
    found = settings(7)
    handed = HandedOver(found)
    assert handed.descriptor is not None
    for _ in range(2):
        assert take_over(os.dup(handed.descriptor)) == found
    handed.close()
    handed.close()
    assert take_over(None) is None


def test_settings_of_other_code_are_not_taken_over(tmp_path: Any) -> None:
    for data in (b"", b"nothing", b"\x80\x04cnowhere\nclass\n."):
        path = tmp_path / "handed"
        path.write_bytes(data)
        assert take_over(os.open(path, os.O_RDONLY)) is None
