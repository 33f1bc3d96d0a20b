"""Text of clients as the log and the ledger may show it: cut, and without keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from twisted_vllm.auth.credentials import carried, decoded, strike_out
from twisted_vllm.context import RequestContext
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.observability.logging.redaction import MASK
from twisted_vllm.observability.route_templates import RouteTemplates

#: characters of a path, or of a model's name, to log
TEXT_LIMIT = 512
#: characters to search for secrets: a secret that is cut would not be recognised
READ_LIMIT = 1024
#: texts that are remembered, because paths and names of models repeat
MAX_TEXTS = 1024
#: heads whose credentials are remembered
MAX_HEADS = 256


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
        self._clean = lru_cache(maxsize=MAX_TEXTS)(redact)
        self._clean_path = lru_cache(maxsize=MAX_TEXTS)(lambda path: self._without_spelled(show(path)))
        self._carried: dict[object, tuple[str, ...]] = {}

    def model(self, context: RequestContext) -> str:
        """Return the name of the model that a request names."""
        return self.text(context, context.model) if context.model else ""

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
        return strike_out(shown, self._carried_by(context.head), MASK)[:TEXT_LIMIT]

    def request_id(self, context: RequestContext) -> str:
        """Return the id of a request; a client's id without keys."""
        request_id = context.request_id.decode("ascii")
        if b"x-request-id" not in context.head.first:
            return request_id
        return strike_out(self._without_spelled(request_id), self._carried_by(context.head), MASK)

    def text(self, context: RequestContext, text: str) -> str:
        """Return any other text that a request holds."""
        text = self._clean(text[:READ_LIMIT])
        for secret in self._carried_by(context.head):
            if secret in text:
                text = text.replace(secret, MASK)
        return text[:TEXT_LIMIT]

    def _without_spelled(self, text: str) -> str:
        """Return a text of segments without secrets, in whatever spelling."""
        return "/".join(
            segment if "%" not in segment or self._redact(plain := decoded(segment)) == plain else MASK
            for segment in self._redact(text).split("/")
        )

    def _carried_by(self, head: RequestHead) -> tuple[str, ...]:
        """Return the credentials of a head; those of heads that repeat are remembered."""
        template = head.template
        if template is None:
            return carried(head.first)
        found = self._carried.get(template)
        if found is None:
            if len(self._carried) >= MAX_HEADS:
                del self._carried[next(iter(self._carried))]
            found = self._carried[template] = carried(head.first)
        return found
