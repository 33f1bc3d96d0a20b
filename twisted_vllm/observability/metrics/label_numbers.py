"""Numbers in place of names, for readers of the metrics who are no administrators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted_vllm.observability.metrics.model_names import OTHER

#: values that name nobody
_NO_NAMES = {"", OTHER}


class LabelNumbers:
    """The numbers of models and servers. A name keeps its number as long as it is counted."""

    def __init__(self, numbers_of_servers: Callable[[], Mapping[str, int]]) -> None:
        """Give no number yet.

        Args:
            numbers_of_servers: returns the numbers of the servers that are configured, which other metrics have too.
        """
        self._of_servers = numbers_of_servers
        self._models: dict[str, str] = {}
        self._servers: dict[str, str] = {}
        self._count = self._unknown = 0

    def update(self, models: set[str], servers: set[str]) -> None:
        """Give numbers to these names, and forget all others."""
        self._models = {name: number for name, number in self._models.items() if name in models}
        current = self._of_servers()
        self._servers = {name: number for name, number in self._servers.items() if name in servers}
        for name in sorted(models - self._models.keys() - _NO_NAMES):
            self._count += 1
            self._models[name] = str(self._count)
        for name in servers - _NO_NAMES:
            if name in current:
                self._servers[name] = str(current[name])
            elif name not in self._servers:
                # it came and left between two scrapes
                self._unknown += 1
                self._servers[name] = f"left-{self._unknown}"

    def model(self, name: str) -> str:
        """Return the number of a model."""
        return name if name in _NO_NAMES else self._models[name]

    def server(self, name: str) -> str:
        """Return the number of a server."""
        return name if name in _NO_NAMES else self._servers[name]
