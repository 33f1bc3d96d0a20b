"""Bounds the names of models that are values of a label, whatever clients send."""

from __future__ import annotations

from twisted_vllm.config.metrics import MetricsSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.client_text import ClientText

#: stands for all values that have no label of their own
OTHER = "other"
#: the longest name that is a value, in characters
MAX_NAME = 255


class ModelNames:
    """The names of models without an entry in ``model_list``, which clients choose.

    A name is known once a server answered a request for it with 2xx. So there are as many as the default server has
    models, and no more than `most` if it takes any name.
    """

    def __init__(self, text: ClientText, most: int = MetricsSettings().max_models) -> None:
        """Know none.

        Args:
            text: removes secrets from client-supplied text.
            most: the most names.
        """
        self._text = text
        self._known: dict[str, str] = {}
        self.reconfigure(most)

    def __len__(self) -> int:
        """Return how many names are known."""
        return len(self._known)

    def reconfigure(self, most: int) -> None:
        """Know so many names at most; the latest ones are forgotten."""
        self._most = most
        for name in list(self._known)[most:]:
            del self._known[name]

    def label(self, context: RequestContext) -> str:
        """Return the label of the model of a request that no entry serves; it is learned if a server answered."""
        name = context.model
        if not name:
            return ""
        found = self._known.get(name)
        if found is None:
            found = OTHER
            if len(self._known) < self._most and len(name) <= MAX_NAME and _answered(context):
                found = self._known[name] = self._text.model(context)
        return found

    def known(self, name: str) -> str:
        """Return the label of a name; it learns nothing."""
        return self._known.get(name, OTHER) if name else ""

    def has(self, label: str) -> bool:
        """Return whether a label is that of a known name."""
        return label in self._known.values()

    def forget(self, labels: set[str]) -> None:
        """Forget names, so that others may take their places."""
        self._known = {name: label for name, label in self._known.items() if label not in labels}


def _answered(context: RequestContext) -> bool:
    meter, authorization = context.meter, context.authorization
    return (
        context.sent
        and meter is not None
        and 200 <= meter.status < 300
        and authorization is not None
        and authorization.route.takes_model
    )
