"""What the tests of the configuration share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from twisted_vllm.config.problems import Place, Report
from twisted_vllm.config.settings import Server, Settings

#: an environment with a server, which is enough to start
BASE = {"HOSTED_VLLM_API_BASE": "http://gpu:8000"}


class Loader(Protocol):
    """Loads from the text of a file, with the environment given and nothing else of it."""

    def __call__(
        self,
        text: str = "",
        environ: Mapping[str, str] | None = None,
        *,
        listen: Sequence[str] = (),
        default_api_base: str | None = None,
    ) -> Settings: ...


class Refusal(Protocol):
    """Loads what cannot be used, with `BASE` and the environment given, and returns the lines of the error."""

    def __call__(
        self, text: str = "", environ: Mapping[str, str] | None = None, *, listen: Sequence[str] = ()
    ) -> list[str]: ...


def somewhere(path: str = "setting") -> Place:
    """A place for a value that is checked by itself."""
    return Place(path, Report(), {})


def default_server(settings: Settings) -> Server:
    """The default server, which these settings have."""
    assert settings.default_server is not None
    return settings.default_server
