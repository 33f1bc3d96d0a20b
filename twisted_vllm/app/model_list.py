"""The model list of a running gateway: entries of the file and of the database, with the servers that DNS finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_vllm.auth.sealing import Sealer
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.stored_models import CheckedEntries, Joined, StoredModel, join
from twisted_vllm.upstreams.discovered import Expansion, services_of
from twisted_vllm.upstreams.discovery import Discovery, LookUp


class ModelList:
    """Joins the entries of the file and of the database, and resolves the services that they name.

    Attributes:
        configured: the settings, with the entries of the file alone.
        sealer: encrypts the keys of servers in the database.
        discovery: follows the names of services.
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        use: Callable[[Settings], None],
        *,
        look_up: LookUp,
        clock: IReactorTime,
        randbytes: Callable[[int], bytes],
    ) -> None:
        """Make it. Nothing is called before `set_stored`, `set_configured` or `start`.

        Args:
            settings: the settings, with the entries of the file.
            use: called with the settings whenever their ``models`` change: all entries, each with one server.
            look_up: resolves the name of a service.
            clock: the reactor's clock.
            randbytes: returns that many bytes, fit for secrets.
        """
        self.configured = settings
        self._use = use
        self._randbytes = randbytes
        self.sealer = Sealer(settings.sealing_secret, randbytes)
        self.discovery = Discovery(look_up, clock, settings.discovery, self._resolved)
        self._stored: tuple[StoredModel, ...] = ()
        self._checked = CheckedEntries()
        self._joined = Joined(settings.models, {})
        self._expansion = Expansion()
        self._used = settings
        self.discovery.follow(services_of(settings.models))

    @property
    def current(self) -> Settings:
        """The settings with all entries as they are used now."""
        return self._used

    def start(self) -> None:
        """Resolve the names of services, from now on."""
        self.discovery.start()

    def stop(self) -> None:
        """Resolve nothing any more. Idempotent."""
        self.discovery.stop()

    def set_configured(self, settings: Settings) -> None:
        """Take the settings of a file that was read again. `use` is called in any case.

        Names are resolved again, now.
        """
        self.configured = settings
        self.sealer = Sealer(settings.sealing_secret, self._randbytes)
        self.discovery.settings = settings.discovery
        self._join(force=True)
        self.discovery.refresh()

    def set_stored(self, models: Iterable[StoredModel]) -> None:
        """Take the entries of the database."""
        stored = tuple(models)
        if stored != self._stored:
            self._stored = stored
            self._join()

    def _join(self, *, force: bool = False) -> None:
        before = self._joined.problems
        self._checked.keep_only(self._stored)
        self._joined = join(self.configured, self._stored, self.sealer.key_of, self._checked)
        for identity, problems in self._joined.problems.items():
            if before.get(identity) != problems:
                self._log.error(
                    "The stored model {id} is not served: {problems}",
                    id=identity,
                    problems="; ".join(map(str, problems)),
                )
        self.discovery.follow(services_of(self._joined.models))
        self._resolved(force=force)

    def _resolved(self, *, force: bool = False) -> None:
        """Use the servers that are known now."""
        models = self._expansion.expand(self._joined.models, self.discovery.known)
        effective = attrs.evolve(self.configured, models=models)
        if force or effective != self._used:
            self._used = effective
            self._use(effective)
