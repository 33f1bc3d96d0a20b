"""What serves a request: the server, its model, and the entry of ``model_list`` whose name and price count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from twisted_vllm.auth.policy import RoutePolicy, is_no_path
from twisted_vllm.auth.steering_headers import ADAPTER
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.settings import ModelEntry, Server
from twisted_vllm.context import Authorization
from twisted_vllm.errors import ModelNotAllowed, ModelNotFound
from twisted_vllm.proxy.upstream_headers import dropped_from
from twisted_vllm.upstreams.router import CLIP, Router

#: cached servings of models that no entry names, and the maximum length of such a name in characters
MAX_UNLISTED, MAX_NAME = 1_000, 256
#: longer names, in characters, are those of no model: vLLM's names are at most paths (Linux' PATH_MAX)
LONGEST_NAME = 4_096


class Serving(msgspec.Struct, frozen=True, gc=False):
    """What serves a request.

    Attributes:
        server: the chosen server.
        name: the server's name of the model, which the body must contain; empty to leave the body as it is.
        model: the model's name in limits and the ledger: the entry's in ``model_list``, else the body's with the key's
            alias resolved; empty if it is not known.
        asked: the body's name with the key's alias resolved, if that is not `model`.
        entry: the entry that serves it; None if there is none.
        priced: whether the price is known. It is not if the server's base model serves the request and the prices of
            the server's models differ.
    """

    server: Server
    name: str = ""
    model: str = ""
    asked: str = ""
    entry: ModelEntry | None = None
    priced: bool = True


class BaseModelUnknown(Exception):
    """The base model of a server decides, and the server must be asked for it.

    Attributes:
        server: the server.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.name)
        self.server = server


class BaseModels(Protocol):
    """Knows the base models of servers: `ServedModels`."""

    def base_model(self, server: Server) -> str | None:
        """Return the name of a server's base model, empty if it does not tell; None if it must be asked."""

    def has_model(self, server: Server, name: str) -> bool:
        """Return whether a server listed a model when it was asked last."""


class ServingChooser:
    """Chooses what serves a request, and checks that the caller may use it."""

    def __init__(self, policy: RoutePolicy, router: Router, base_models: BaseModels) -> None:
        """Set up.

        Args:
            policy: decides which models a principal may use.
            router: picks the server for a model.
            base_models: knows the base models of servers.
        """
        self._policy = policy
        self._router = router
        self._base_models = base_models
        self._unlisted: BoundedCache[str, Serving] = BoundedCache(MAX_UNLISTED, MAX_NAME)

    def reconfigure(self, policy: RoutePolicy) -> None:
        """Use another policy from now on, and what the router has now."""
        self._policy = policy
        self._unlisted.clear()

    @property
    def routes_by_model(self) -> bool:
        """Whether a request's model chooses its server."""
        return bool(self._router.names)

    def undetermined(self) -> Serving:
        """Return the serving of a request that uses no model, or none that is known.

        Raises:
            ModelNotFound: no server is configured.
        """
        return Serving(self._router.destination_for_undetermined().server)

    def by_body(
        self, authorization: Authorization, named: str, insertable: bool, server: Server | None = None
    ) -> Serving:
        """Return what serves a request that names a model, or none; check that the principal may use it.

        Args:
            authorization: the authorization of the request's head.
            named: the body's model; empty if it names none, and vLLM would use its base model.
            insertable: whether a name can be added to the body.
            server: the server that has what the request continues; None if it continues nothing.

        Raises:
            ModelNotAllowed: the caller may not use the model.
            ModelNotFound: no server is configured for it, or its name is longer than any.
        """
        router = self._router
        if not named:
            destination = router.destination_for_undetermined()
            entry = destination.entry
            if entry is not None and insertable:
                return Serving(destination.server, entry.upstream_model, entry.model_name, entry=entry)
            return Serving(destination.server, priced=not router.prices_differ(destination.server))
        if len(named) > LONGEST_NAME:
            raise _no_such_model(named)
        aliases = authorization.principal.aliases
        asked = aliases.get(named, named) if aliases else named
        if authorization.restricted:
            self._policy.check_model(authorization.principal, asked)
        found = self._unlisted.get(asked)
        if found is not None:
            return found
        destination = router.route(asked, server)
        entry = destination.entry
        if entry is None:
            self._policy.check_unlisted_model(authorization.principal, asked)
            found = Serving(destination.server, asked, asked)
            # what may be a path is checked each time
            if is_no_path(asked):
                self._unlisted.keep(asked, found, len(asked))
            return found
        model = entry.model_name
        return Serving(
            destination.server, destination.upstream_model or asked, model, "" if asked == model else asked, entry
        )

    def by_header(self, authorization: Authorization, headers: Mapping[bytes, bytes], named: str) -> Serving:
        """Return what serves a request whose body's model only chooses the server: an adapter or the base model.

        Args:
            authorization: the authorization of the request's head.
            headers: the first value of each header, by lower-case name.
            named: the body's model; empty if it names none.

        Raises:
            BaseModelUnknown: the server must be asked first.
            ModelNotAllowed, ModelNotFound: as from `by_body`.
        """
        router, principal = self._router, authorization.principal
        if len(named) > LONGEST_NAME:
            raise _no_such_model(named)
        asked = principal.aliases.get(named, named)
        destination = router.route(asked or None)
        server = destination.server
        adapter = None if ADAPTER in dropped_from(principal) else headers.get(ADAPTER)
        name = self._base_models.base_model(server) if adapter is None else adapter.decode("latin-1")
        if name is None:
            raise BaseModelUnknown(server)
        if not name:
            if authorization.restricted:
                raise ModelNotAllowed(
                    "This key may use certain models only. On this route the server's base model answers whatever the "
                    "body names, and the server does not say which that is. Use another route.",
                    param="model",
                )
            return Serving(server, priced=not router.prices_differ(server))
        entry = router.serving(server, name)
        model = name if entry is None else entry.model_name
        self._policy.check_model(principal, model)
        if entry is None:
            self._policy.check_unlisted_model(principal, model)
        if (
            adapter is None
            and asked
            and destination.entry is None
            and authorization.restricted
            and not self._base_models.has_model(server, asked)
        ):
            # the base model would answer for any name; on other routes vLLM refuses a name that it does not have
            raise _no_such_model(asked)
        return Serving(server, "", model, "" if name == model else name, entry)


def _no_such_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"The server has no model {name[:CLIP]!r}.", param="model")
