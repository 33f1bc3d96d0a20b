"""The command line is read whole, and what cannot be used is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.options import parse, server_at
from benchmarks.peers import find_peers, find_program


def test_nothing_given_measures_our_own_upstream() -> None:
    options = parse([], {})
    assert (options.server, options.model, options.router) == (None, None, None)
    assert (options.open_streams, options.transfer_mib) == (1000, 256)


def test_the_variables_name_the_server_its_key_and_the_router() -> None:
    environ = {"VLLM_BASE_URL": "http://gpu-1:8000/v1/", "VLLM_API_KEY": "sk-server", "VLLM_ROUTER": "/opt/router"}
    options = parse([], environ)
    assert options.server is not None
    assert (options.server.host, options.server.port, options.server.base) == ("gpu-1", 8000, "")
    assert options.server.key == "sk-server"
    assert options.router == Path("/opt/router")


def test_the_command_line_wins() -> None:
    options = parse(["--url", "http://gpu-2", "--key", "sk-2"], {"VLLM_BASE_URL": "http://gpu-1", "VLLM_API_KEY": "sk"})
    assert options.server is not None
    assert (options.server.host, options.server.port, options.server.key) == ("gpu-2", 80, "sk-2")


def test_a_key_is_in_no_repr() -> None:
    assert "sk-server" not in repr(parse(["--url", "http://gpu-1", "--key", "sk-server"], {}))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seconds", "soon"], "'soon' is not a number from 0.1 to 600"),
        (["--seconds", "nan"], "'nan' is not a number"),
        (["--open-streams", "5001"], "'5001' is not a whole number from 0 to 5000"),
        (["--transfer-mib", "-1"], "'-1' is not a whole number from 0 to 1024"),
        (["--model", "m"], "name it with --url or VLLM_BASE_URL"),
        (["--url", "https://gpu-1"], "must be http://"),
        (["--url", "gpu-1:8000"], "must be http://"),
        (["--url", "http://gpu-1:port"], "cannot be read"),
        (["--sekonds", "1"], "unrecognized arguments"),
    ],
)
def test_bad_use_is_explained(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, {})
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://me:secret@gpu-1", "http://gpu-1/?key=secret", "http://gpu-1/{secret};"])
def test_an_address_with_more_than_a_place_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="address") as refused:
        server_at(url, None)
    assert "secret" not in str(refused.value)


def test_what_is_not_installed_is_named_with_what_to_do(tmp_path: Path) -> None:
    peers = find_peers(server_at("http://gpu-1", None), nginx_place=tmp_path, router_place=tmp_path, files=1024)
    assert list(peers.starts) == ["direct", "gateway"]
    [nginx, router] = peers.missing
    assert nginx.startswith(f"nginx was not measured: there is none in {tmp_path}")
    assert router.startswith(f"vllm-router was not measured: there is none in {tmp_path}")


@pytest.mark.parametrize("place", ["bin", "bin/tool"])
def test_a_program_is_found_by_its_file_or_its_directory(tmp_path: Path, place: str) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_program("tool", tmp_path / place) == tool
