"""Text of clients as the log, the ledger and labels may show it: cut, without keys, and such that it can be encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from twisted_vllm.auth.credentials import SHORTEST_SECRET, carried, decoded, strike_out
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import RequestContext
from twisted_vllm.http.headers import CREDENTIAL_HEADERS, RequestHead
from twisted_vllm.observability.logging.redaction import MASK
from twisted_vllm.observability.route_templates import RouteTemplates

#: characters of a path, or of a model's name, to log
TEXT_LIMIT = 512
#: characters to search for secrets: a secret that is cut would not be recognised
READ_LIMIT = 1024
#: texts that are remembered, because paths and names of models repeat
MAX_TEXTS = 1024
#: results that are remembered for heads that repeat; each keeps a head of up to 2 KiB, and characters of text
MAX_HEADS, MAX_HEAD = 256, 2_048


class ClientText:
    """Removes keys from text of clients: by their form, by their place in a path, and whatever the request carried."""

    def __init__(self, redact: Callable[[str], str], templates: RouteTemplates | None = None) -> None:
        """Set up.

        Args:
            redact: removes known secrets, and what has the form of one.
            templates: shows the gateway's own paths.
        """
        self._redact = redact
        show = RouteTemplates().show if templates is None else templates.show
        self._clean = lru_cache(maxsize=MAX_TEXTS)(lambda text: _encodable(redact(text)))
        self._clean_path = lru_cache(maxsize=MAX_TEXTS)(lambda path: self._without_spelled(show(path)))
        #: by the name and the head's template, which differ in their credentials alone
        self._models: BoundedCache[tuple[str, object], str] = BoundedCache(MAX_HEADS, MAX_HEAD)
        self._carried: BoundedCache[object, tuple[str, ...]] = BoundedCache(MAX_HEADS, MAX_HEAD)

    def secrets_changed(self) -> None:
        """Forget what was cleaned: other secrets are known now."""
        self._clean.cache_clear()
        self._clean_path.cache_clear()
        self._models.clear()

    def model(self, context: RequestContext) -> str:
        """Return the name of the model that a request names."""
        name, head = context.model[:READ_LIMIT], context.head
        template = head.template
        if template is None:
            return self.text(context, name)
        found = self._models.get((name, template))
        if found is None:
            found = self._clean(name)
            for secret in self._common(head):
                found = found.replace(secret, MASK)
            self._models.keep((name, template), found, len(name) + len(found))
        if len(found) >= SHORTEST_SECRET:
            for secret in _own(head):
                found = found.replace(secret, MASK)
        return found[:TEXT_LIMIT]

    def route(self, context: RequestContext) -> str:
        """Return the route that a request asked for, or its path if there is no such route.

        Nothing is shown of a target that is not a path: it may hold a password (``http://user:password@host``).
        """
        authorization = context.authorization
        if authorization is not None:
            if authorization.route.name:
                return authorization.route.name
            path = authorization.path
        else:
            path = context.head.target.partition(b"?")[0]
            if not path.startswith(b"/"):
                return ""
        shown = self._clean_path(path[:READ_LIMIT].decode("latin-1"))
        return strike_out(shown, carried(context.head.first), MASK)[:TEXT_LIMIT]

    def request_id(self, context: RequestContext) -> str:
        """Return the id of a request; a client's id without keys."""
        request_id = context.request_id.decode("ascii")
        if b"x-request-id" not in context.head.first:
            return request_id
        head = context.head
        secrets = carried(head.first) if head.template is None else self._common(head) + _own(head)
        return strike_out(self._without_spelled(request_id), secrets, MASK)

    def text(self, context: RequestContext, text: str) -> str:
        """Return any other text that a request holds."""
        text = self._clean(text[:READ_LIMIT])
        for secret in carried(context.head.first):
            if secret in text:
                text = text.replace(secret, MASK)
        return text[:TEXT_LIMIT]

    def whole(self, context: RequestContext, text: str) -> str:
        """Return a text of bounded size that must not be cut."""
        return strike_out(self._redact(text), carried(context.head.first), MASK) if text else ""

    def _common(self, head: RequestHead) -> tuple[str, ...]:
        """Return what all heads of a template carry where a credential may stand, besides credentials of their own."""
        secrets = self._carried.get(head.template)
        if secrets is None:
            secrets = carried({name: b"" if name in CREDENTIAL_HEADERS else each for name, each in head.first.items()})
            self._carried.keep(head.template, secrets, sum(map(len, secrets)))
        return secrets

    def _without_spelled(self, text: str) -> str:
        """Return a text of segments without secrets, in whatever spelling."""
        text = self._redact(text)
        if "%" not in text or self._redact(plain := decoded(text)) == plain:
            return text
        return "/".join(
            segment if "%" not in segment or self._redact(plain := decoded(segment)) == plain else MASK
            for segment in text.split("/")
        )


def _own(head: RequestHead) -> tuple[str, ...]:
    """Return the credentials of a head with a template."""
    credential = head.credential
    if not credential:
        return ()
    return tuple(each for each in credential.decode("ascii").split("\n") if len(each) >= SHORTEST_SECRET)


def _encodable(text: str) -> str:
    """Return a text that can be written: half a surrogate pair, from a client's JSON, becomes its escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
