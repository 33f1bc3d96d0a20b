"""Loading a configuration from text, as the tests of this directory do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings


@pytest.fixture(scope="session")
def load_text(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    file: Path = tmp_path_factory.mktemp("config") / "gateway.yaml"

    def load_it(
        text: str = "",
        environ: Mapping[str, str] | None = None,
        *,
        listen: Sequence[str] = (),
        default_api_base: str | None = None,
    ) -> Settings:
        file.write_text(dedent(text), encoding="utf-8", errors="surrogatepass")
        return load(file=str(file), environ=environ or {}, listen=listen, default_api_base=default_api_base)

    return load_it


@pytest.fixture(scope="session")
def problems_of(load_text: Loader) -> Refusal:
    def problems(text: str = "", environ: Mapping[str, str] | None = None, *, listen: Sequence[str] = ()) -> list[str]:
        with pytest.raises(ConfigError) as refusal:
            load_text(text, BASE | dict(environ or {}), listen=listen)
        assert refusal.value.problems
        return str(refusal.value).splitlines()

    return problems
