"""What ``--quickstart`` sets, and what it leaves as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from twisted_vllm.app.quickstart import Quickstart, prepare, welcome


class Starts:
    """Quickstarts in one directory, with keys that are counted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "run"
        self.made: list[Quickstart] = []
        self.keys = 0

    def __call__(self, environ: Mapping[str, str] | None = None, has_file: bool = False) -> Quickstart:
        self.made.append(prepare(environ or {}, has_file=has_file, make_key=self._make_key, directory=self.directory))
        return self.made[-1]

    def _make_key(self) -> str:
        self.keys += 1
        return f"sk-made-{self.keys}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starts]:
    starts = Starts(tmp_path)
    yield starts
    for each in starts.made:
        if each.simulator is not None:
            each.simulator.close()


def test_a_key_is_made_once_and_kept_for_its_owner_alone(start: Starts) -> None:
    first, second = start(), start()
    assert first.master_key == second.master_key == "sk-made-1"
    assert first.environ["VLLM_PASSTHROUGH_MASTER_KEY"] == "sk-made-1"
    assert (start.directory / "master-key").stat().st_mode & 0o777 == 0o600
    assert start.directory.stat().st_mode & 0o777 == 0o700


def test_a_file_that_was_left_empty_gets_a_key(start: Starts) -> None:
    start.directory.mkdir()
    (start.directory / "master-key").write_text("")
    assert start().master_key == "sk-made-1"
    assert (start.directory / "master-key").read_text() == "sk-made-1\n"


@pytest.mark.parametrize(
    "name", ["LITELLM_MASTER_KEY", "VLLM_PASSTHROUGH_MASTER_KEY", "VLLM_PASSTHROUGH_LITELLM_MASTER_KEY"]
)
def test_a_key_that_was_given_is_used(start: Starts, name: str) -> None:
    chosen = start({name: "sk-mine"})
    assert chosen.master_key is None
    assert chosen.environ == {name: "sk-mine"}
    assert not (start.directory / "master-key").exists()


@pytest.mark.parametrize("name", ["HOSTED_VLLM_API_BASE", "VLLM_PASSTHROUGH_API_BASE"])
def test_no_simulator_runs_beside_a_server_that_was_named(start: Starts, name: str) -> None:
    chosen = start({name: "http://gpu-1:8000"})
    assert (chosen.simulator, chosen.api_base) == (None, None)


def test_a_configuration_file_decides_about_key_and_server(start: Starts) -> None:
    chosen = start(has_file=True)
    assert (chosen.master_key, chosen.simulator) == (None, None)


def test_without_a_server_a_simulator_gets_a_free_port_on_this_machine(start: Starts) -> None:
    chosen = start()
    assert chosen.simulator is not None
    host, port = chosen.simulator.getsockname()
    assert host == "127.0.0.1"
    assert chosen.api_base == f"http://127.0.0.1:{port}"


def test_the_database_stands_beside_the_key_wherever_twistd_runs(
    start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start.directory = Path("run")
    assert start().database_url == f"sqlite:///{tmp_path}/run/twisted_vllm.sqlite3"


def test_the_key_is_in_the_welcome_and_not_in_a_repr(start: Starts) -> None:
    chosen = start({"PATH": "/bin"})
    assert "sk-made-1" in welcome(chosen, "tcp:4000")
    assert "sk-made-1" not in repr(chosen)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp:4000:interface=127.0.0.1", "http://127.0.0.1:4000/vllm/v1/chat/completions"),
        ("tcp:port=8080", "http://127.0.0.1:8080/vllm/v1/chat/completions"),
        ("tcp:4000:interface=10.0.0.5", "http://10.0.0.5:4000/vllm/v1/chat/completions"),
        ("tcp:4000:interface=0.0.0.0", "http://127.0.0.1:4000/vllm/v1/chat/completions"),
        ("tcp6:4000:interface=\\:\\:1", "http://[::1]:4000/vllm/v1/chat/completions"),
        ("ssl:443:privateKey=k.pem", "https://127.0.0.1:443/vllm/v1/chat/completions"),
        ("unix:/run/vllm.sock", "--unix-socket /run/vllm.sock http://localhost/vllm/v1/chat/completions"),
    ],
)
def test_the_first_request_to_try_goes_where_the_gateway_listens(start: Starts, endpoint: str, url: str) -> None:
    text = welcome(start(), endpoint)
    assert f"curl {url} \\\n" in text
    # a browser cannot open a UNIX socket
    console = url.removesuffix("/vllm/v1/chat/completions") + "/ui "
    assert (console in text) == (not endpoint.startswith("unix:"))


@pytest.mark.parametrize(
    ("environ", "shown"),
    [({"LITELLM_MASTER_KEY": "sk-mine"}, "$LITELLM_MASTER_KEY"), ({}, "sk-made-1")],
)
def test_a_key_that_was_given_is_not_repeated(start: Starts, environ: dict[str, Any], shown: str) -> None:
    text = welcome(start(environ), "tcp:4000")
    assert f"Authorization: Bearer {shown}" in text
    assert "sk-mine" not in text
