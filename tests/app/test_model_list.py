"""The model list of a running gateway."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.counted_calls import calls_of
from twisted_vllm.app.model_list import ModelList
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import DiscoverySettings, ModelEntry, Server, Settings, Timeouts
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.upstreams.discovered import Answer, Found, ServiceName

SERVICE = "vllm.default.svc"


def entry(host: str, discovery: str | None = None, name: str = "m") -> ModelEntry:
    server = Server(f"{host}:80", host, 80, False, b"", host.encode(), None, Timeouts())
    return ModelEntry(name, "m", server, discovery=discovery)


def stored(model_id: str, **params: object) -> StoredModel:
    return StoredModel(model_id, "m", {"model": "hosted_vllm/m", **params})


class Lab:
    """A model list whose look-ups the test answers."""

    def __init__(self, **settings: Any) -> None:
        self.used: list[list[str]] = []
        self.asked: list[tuple[ServiceName, DiscoverySettings, Deferred[Answer]]] = []
        self.settings = Settings(**{"master_key": Secret("master"), **settings})
        self.models = ModelList(self.settings, self._use, look_up=self._look_up, clock=Clock(), randbytes=os.urandom)

    def _use(self, settings: Settings) -> None:
        self.used.append([model.server.name for model in settings.models])

    def _look_up(self, name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
        deferred: Deferred[Answer] = Deferred()
        self.asked.append((name, settings, deferred))
        return deferred

    def answer(self, *addresses: str) -> None:
        self.asked.pop(0)[2].callback(Answer(tuple(Found(0, address) for address in addresses)))


def test_file_database_and_dns_make_one_list() -> None:
    lab = Lab(models=(entry("gpu-1"), entry(SERVICE, "dns")))
    lab.models.set_stored([stored("a", api_base="http://gpu-9")])
    assert lab.used == [["gpu-1:80", f"{SERVICE}:80", "gpu-9:80"]]
    lab.models.start()
    lab.answer("10.0.0.1", "10.0.0.2")
    assert lab.used[1:] == [["gpu-1:80", f"{SERVICE}:80/10.0.0.1", f"{SERVICE}:80/10.0.0.2", "gpu-9:80"]]
    lab.models.stop()


def test_a_stored_entry_may_name_a_service() -> None:
    lab = Lab()
    lab.models.start()
    lab.models.set_stored([stored("a", api_base=f"http://{SERVICE}", discovery="dns")])
    lab.answer("10.0.0.1")
    assert lab.used == [[f"{SERVICE}:80"], [f"{SERVICE}:80/10.0.0.1"]]
    lab.models.set_stored([])
    assert lab.used[2:] == [[]]


def test_what_is_the_same_is_not_used_again() -> None:
    lab = Lab(models=(entry("gpu-1"),))
    lab.models.set_stored([])
    assert lab.used == []
    lab.models.set_stored([stored("a", api_base="http://gpu-9")])
    lab.models.set_stored([stored("a", api_base="http://gpu-9")])
    assert len(lab.used) == 1


def test_a_file_that_was_read_again_keeps_the_database_and_what_dns_said() -> None:
    lab = Lab(models=(entry(SERVICE, "dns"),))
    lab.models.set_stored([stored("a", api_base="http://gpu-9")])
    lab.models.start()
    lab.answer("10.0.0.1")
    settings = DiscoverySettings(interval=1.0)
    again = attrs.evolve(lab.settings, models=(entry("gpu-2"), entry(SERVICE, "dns")), discovery=settings)
    lab.models.set_configured(again)
    assert lab.used[-1] == ["gpu-2:80", f"{SERVICE}:80/10.0.0.1", "gpu-9:80"]
    # names are resolved again at once, as the file says now
    assert [(name.host, used) for name, used, _ in lab.asked] == [(SERVICE, settings)]
    # also where no model differs: other settings may
    before = len(lab.used)
    lab.models.set_configured(again)
    assert len(lab.used) == before + 1


def test_another_master_key_takes_out_entries_with_a_key_and_the_old_one_brings_them_back() -> None:
    lab = Lab()
    sealed = lab.models.sealer.seal(Secret("server-key"), "a")
    model = StoredModel("a", "m", {"model": "hosted_vllm/m", "api_base": "http://gpu-9"}, {}, sealed)
    lab.models.set_stored([model])
    lab.models.set_configured(attrs.evolve(lab.settings, master_key=Secret("another")))
    lab.models.set_configured(lab.settings)
    assert lab.used == [["gpu-9:80"], [], ["gpu-9:80"]]


def test_a_change_of_one_stored_entry_of_many_does_little_for_each_other() -> None:
    lab = Lab()
    entries = [stored(f"{number:03}", api_base=f"http://gpu-{number}") for number in range(500)]
    lab.models.set_stored(entries)
    entries[7] = stored("007", api_base="http://gpu-7", weight=3)
    assert calls_of(lambda: lab.models.set_stored(entries)) < 150 * len(entries)
    assert len(lab.used) == 2


def test_a_change_of_one_found_server_of_many_does_little_for_each_other() -> None:
    lab = Lab(models=(entry(SERVICE, "dns"),))
    lab.models.start()
    addresses = [f"10.0.0.{number}" for number in range(256)]
    lab.answer(*addresses)
    lab.models.set_configured(lab.settings)
    answer = Answer(tuple(Found(0, address) for address in ("10.9.9.9", *addresses[1:])))
    asked = lab.asked.pop(0)[2]
    assert calls_of(lambda: asked.callback(answer)) < 4 * len(addresses)
    assert lab.used[-1][0] == f"{SERVICE}:80/10.9.9.9"
    lab.models.stop()
