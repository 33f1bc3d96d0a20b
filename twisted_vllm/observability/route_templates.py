"""The gateway's own paths without the keys that stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from twisted_vllm.auth.credentials import decoded

#: segments of a path that are shown, if one of them may be followed by a key
MAX_SEGMENTS = 32

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class RouteTemplates:
    """Shows paths as the routes that they stand for: ``/key/{key}/regenerate``."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        """Learn the routes.

        Args:
            paths: their paths, with parameters as Klein writes them: ``/key/<string:key>/regenerate``.
        """
        self._words: set[str] = set()
        self._parameters: dict[str, str] = {}
        for path in paths:
            before = ""
            for segment in path.split("/"):
                found = _PARAMETER.fullmatch(segment)
                if found is None:
                    self._words.add(segment)
                else:
                    self._parameters[before] = "{" + found[1] + "}"
                before = segment

    def show(self, path: str) -> str:
        """Return a path with each parameter's name in place of its value.

        Below a segment that has parameters, whatever is no word of a route is taken for one: a key may hold a slash,
        and a misspelt path still holds a key.

        Args:
            path: the path as it was received, without the query.
        """
        plain = decoded(path).lower()
        if not any(name in plain for name in self._parameters):
            return path
        shown: list[str] = []
        parameter = ""
        segments = path.split("/", MAX_SEGMENTS)
        if len(segments) > MAX_SEGMENTS:
            segments[-1] = "…"
        for raw in segments:
            segment = decoded(raw)
            if parameter and segment and segment not in self._words:
                shown.append(parameter)
                continue
            name, *rest = re.split(r"[/\\;=?#]", segment)
            found = self._parameters.get(name.lower())
            if found is None:
                shown.append(raw)
                continue
            parameter = found
            shown += [name, parameter] if any(rest) else [raw]
        return "/".join(shown)
