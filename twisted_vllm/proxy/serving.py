"""What serves a request: the model group, and the names by which the model is asked for and counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from twisted_vllm.auth.policy import RoutePolicy, is_no_path
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.steering_headers import ADAPTER, SERVERS_OF_MODEL
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.name_patterns import filled
from twisted_vllm.config.settings import Server
from twisted_vllm.context import Authorization
from twisted_vllm.errors import ModelNotAllowed, ModelNotFound, ModelUndetermined
from twisted_vllm.proxy.chosen_servers import server_not_found
from twisted_vllm.proxy.upstream_headers import dropped_from
from twisted_vllm.upstreams.router import CLIP, Destination, ModelGroup, Router
from twisted_vllm.upstreams.server_state import ServerState

#: cached servings of models that no entry names, and the maximum length of such a name in characters
MAX_UNLISTED, MAX_NAME = 1_000, 256
#: longer names, in characters, are those of no model: vLLM's names are at most paths (Linux' PATH_MAX)
LONGEST_NAME = 4_096


class Serving(msgspec.Struct, frozen=True, gc=False):
    """What serves a request: a model group, one of whose servers is chosen when the request is sent.

    Attributes:
        group: the model group.
        named: the name of the model that the body must contain, unless a destination has another; empty to leave the
            body as it is.
        model: the model's name in limits and the ledger: the entry's in ``model_list``, else the body's with the key's
            alias resolved; empty if it is not known.
        asked: the body's name with the key's alias resolved, if that is not `model`.
        priced: whether the price is known. It is not if the server's base model serves the request and the prices of
            the server's models differ.
        server: the server that has what the request continues; None if any will do.
        segments: what the wildcards of the group's name stand for.
    """

    group: ModelGroup
    named: str = ""
    model: str = ""
    asked: str = ""
    priced: bool = True
    server: Server | None = None
    segments: tuple[str, ...] = ()

    def name_at(self, destination: Destination) -> str:
        """Return a destination's name of the model, which the body must contain; empty to leave the body as it is."""
        if self.segments and destination.upstream_model is not None:
            return filled(destination.upstream_model, self.segments, self.named)
        return self.named and (destination.upstream_model or self.named)


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
            router: finds the model group.
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
        return Serving(self._router.undetermined())

    def at(self, server: Server, *, takes_model: bool = False) -> Serving:
        """Return the serving of a request that must go to a server.

        Args:
            server: the server.
            takes_model: whether the request uses a model, although it names none.
        """
        router = self._router
        return Serving(router.only(server), priced=not takes_model or not router.prices_differ(server))

    def moved(self, serving: Serving, server: Server, principal: Principal) -> Serving:
        """Return the serving of a request that names its model, on a server that its header names.

        Raises:
            ServerNotFound: the server does not serve the model.
        """
        router, group = self._router, serving.group
        found = next((each for each in group.destinations if each.server.url == server.url), None)
        if found is not None:
            alone = router.only(found.server, found.entry)
            named = serving.name_at(found)
            return msgspec.structs.replace(serving, group=alone, named=named, server=None, segments=())
        if group.name:
            # of a model of the list, only its entries may be used
            serves = {each.state.name: each.server for each in group.destinations}
            raise server_not_found(principal, f"That server does not serve the model {group.name[:CLIP]!r}", serves)
        entry = router.serving(server, serving.named)
        if entry is None:
            return msgspec.structs.replace(serving, group=router.only(server))
        # by the server's own name of a model of the list, whose price and limits count
        named = serving.named
        model = router.public_name(server, named) or entry.model_name
        return Serving(router.only(server, entry), named, model, "" if named == model else named)

    def servers_of(self, authorization: Authorization, name: str | None) -> tuple[ServerState, ...]:
        """Return the servers that an act of the operator goes to.

        Args:
            authorization: the authorization of the request's head.
            name: the model whose servers they are; None for all servers.

        Raises:
            ModelUndetermined: the caller may use certain models only, and names none.
            ModelNotAllowed: the caller may not use the model.
            ModelNotFound: no server is configured for it, or none at all.
        """
        router, principal = self._router, authorization.principal
        if name is None:
            states = tuple(router.servers)
            if not states:
                raise ModelNotFound(
                    "No vLLM server is configured. The operator sets HOSTED_VLLM_API_BASE or model_list."
                )
            if authorization.restricted and len(states) > 1:
                raise ModelUndetermined(
                    "This key may use certain models only, and this goes to all servers: name the model whose servers "
                    f"it is for in the header {SERVERS_OF_MODEL.decode()}.",
                    param=SERVERS_OF_MODEL.decode(),
                )
            return states
        if len(name) > LONGEST_NAME:
            raise _no_such_model(name)
        asked = principal.aliases.get(name, name)
        if authorization.restricted:
            self._check(principal, asked)
        group = router.find(asked)
        if group is router.default and router.names:
            # a misspelt name must not reach the default server
            raise ModelNotFound(f"No entry of model_list is called {asked[:CLIP]!r}.", param=SERVERS_OF_MODEL.decode())
        return tuple(dict.fromkeys(each.state for each in group.destinations))

    def by_event(self) -> Serving:
        """Return the serving of a WebSocket, whose model is named in it: one of the servers of the first model.

        Raises:
            ModelNotFound: no server is configured.
        """
        first = self._router.first()
        return self.undetermined() if first is None else Serving(first)

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
            first = router.first() if insertable else None
            if first is not None:
                return Serving(first, first.name, first.name, server=server)
            group = router.undetermined()
            return Serving(group, priced=not router.prices_differ(group.destinations[0].server))
        if len(named) > LONGEST_NAME:
            raise _no_such_model(named)
        aliases = authorization.principal.aliases
        asked = aliases.get(named, named) if aliases else named
        if authorization.restricted:
            self._check(authorization.principal, asked)
        found = self._unlisted.get(asked)
        if found is not None and (found.group is router.default or router.has(found.group)):
            return found if server is None else msgspec.structs.replace(found, server=server)
        group = router.find(asked)
        if group.pattern is not None:
            found = self._matched(authorization.principal, group, asked)
            return found if server is None else msgspec.structs.replace(found, server=server)
        if group.dearest.entry is None:
            self._policy.check_unlisted_model(authorization.principal, asked)
            found = Serving(group, asked, asked)
            # what may be a path is checked each time
            if is_no_path(asked):
                self._unlisted.keep(asked, found, len(asked))
            return found
        model = group.name
        return Serving(group, model, model, "" if asked == model else asked, server=server)

    def _matched(self, principal: Principal, group: ModelGroup, asked: str) -> Serving:
        """Return the serving of a model that a pattern matches. It counts by its own name, not by the pattern.

        Raises:
            ModelNotAllowed: the name may be a path.
        """
        assert group.pattern is not None
        name = self._router.alias(asked) or asked
        # a server gets what the caller wrote
        self._policy.check_unlisted_model(principal, name)
        segments = group.pattern.match(name)
        assert segments is not None
        found = Serving(group, name, name, "" if asked == name else asked, segments=segments)
        if is_no_path(asked):
            self._unlisted.keep(asked, found, max(len(asked), len(name)))
        return found

    def may_use(self, principal: Principal, asked: str) -> bool:
        """Return whether a principal may use a model, by a name whose alias of the key is resolved."""
        try:
            self._check(principal, asked)
        except ModelNotAllowed:
            return False
        return True

    def _check(self, principal: Principal, asked: str) -> None:
        """Check that a principal may use a model by one of its names (``model_group_alias``)."""
        name = self._router.alias(asked)
        if name is not None:
            with suppress(ModelNotAllowed):
                self._policy.check_model(principal, name)
                return
        self._policy.check_model(principal, asked)

    def by_header(
        self, authorization: Authorization, headers: Mapping[bytes, bytes], named: str, chosen: Server | None = None
    ) -> Serving:
        """Return what serves a request whose body's model only chooses the server: an adapter or the base model.

        Args:
            authorization: the authorization of the request's head.
            headers: the first value of each header, by lower-case name.
            named: the body's model; empty if it names none.
            chosen: the server that a header names; None if the body's model chooses it.

        Raises:
            BaseModelUnknown: the server must be asked first.
            ModelNotAllowed, ModelNotFound: as from `by_body`.
        """
        router, principal = self._router, authorization.principal
        if len(named) > LONGEST_NAME:
            raise _no_such_model(named)
        asked = principal.aliases.get(named, named)
        group = router.find(asked) if asked else router.undetermined()
        destination = group.calmest()
        server = destination.server if chosen is None else chosen
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
            return Serving(router.only(server), priced=not router.prices_differ(server))
        entry = router.serving(server, name)
        model = name if entry is None else router.public_name(server, name) or entry.model_name
        self._policy.check_model(principal, model)
        if entry is None:
            self._policy.check_unlisted_model(principal, model)
        if (
            adapter is None
            and asked
            and (destination.entry is None or group.pattern is not None)
            and authorization.restricted
            and not self._base_models.has_model(server, self._name_at(group, destination, asked))
        ):
            # the base model would answer for any name; on other routes vLLM refuses a name that it does not have
            raise _no_such_model(asked)
        return Serving(router.only(server, entry), "", model, "" if name == model else name)

    def _name_at(self, group: ModelGroup, destination: Destination, asked: str) -> str:
        """Return a destination's name of a model that no entry names."""
        if group.pattern is None or destination.upstream_model is None:
            return asked
        name = self._router.alias(asked) or asked
        return filled(destination.upstream_model, group.pattern.match(name) or (), name)


def _no_such_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"The server has no model {name[:CLIP]!r}.", param="model")
