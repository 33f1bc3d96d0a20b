"""Loading a configuration from text, as the tests of this directory do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings

Loader = Callable[..., Settings]


@pytest.fixture(scope="session")
def load_text(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Load from the text of a file, with the environment given (and nothing else of it)."""
    file: Path = tmp_path_factory.mktemp("config") / "gateway.yaml"

    def load_it(text: str = "", environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
        file.write_text(dedent(text), encoding="utf-8", errors="surrogatepass")
        return load(file=str(file), environ=environ or {}, **arguments)

    return load_it


@pytest.fixture(scope="session")
def problems_of(load_text: Loader) -> Callable[..., list[str]]:
    """Load what cannot be used, and return the lines of the error; a server is configured."""

    def problems(text: str = "", environ: dict[str, str] | None = None, **arguments: Any) -> list[str]:
        with pytest.raises(ConfigError) as refusal:
            load_text(text, {"HOSTED_VLLM_API_BASE": "http://gpu:8000"} | (environ or {}), **arguments)
        assert refusal.value.problems
        return str(refusal.value).splitlines()

    return problems
