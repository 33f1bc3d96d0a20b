"""Variables whose values stand in files: ``NAME_FILE``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.config_harness import BASE, default_server
from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret


def refusal(environ: dict[str, str], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        load(file=None if file is None else str(file), environ=BASE | environ)
    return str(refused.value)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("sk-from-a-file\n")
    return path


@pytest.mark.parametrize("name", ["LITELLM_MASTER_KEY_FILE", "VLLM_PASSTHROUGH_MASTER_KEY_FILE"])
def test_a_variable_may_name_a_file_that_holds_the_value(secret: Path, name: str) -> None:
    settings = load(file=None, environ=BASE | {name: str(secret)})
    assert settings.master_key == Secret("sk-from-a-file")
    assert settings.warnings == ()
    assert str(settings.origins.of("general_settings.master_key")) == name


def test_a_reference_of_the_file_finds_the_file_of_the_variable(secret: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("passthrough: {api_key: os.environ/KEY_OF_MINE}")
    settings = load(file=str(config), environ=BASE | {"KEY_OF_MINE_FILE": str(secret)})
    assert default_server(settings).api_key == Secret("sk-from-a-file")


@pytest.mark.parametrize(("text", "expected"), [("sk-1", "sk-1"), ("sk-1\r\n", "sk-1"), ("sk-1\n\n", "sk-1")])
def test_newlines_at_the_end_do_not_count(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text.encode())
    settings = load(file=None, environ=BASE | {"HOSTED_VLLM_API_KEY_FILE": str(file)})
    assert default_server(settings).api_key == Secret(expected)


def test_a_file_that_changed_is_read_at_the_next_reload(secret: Path) -> None:
    environ = BASE | {"LITELLM_MASTER_KEY_FILE": str(secret)}
    load(file=None, environ=environ)
    secret.write_text("sk-another")
    assert load(file=None, environ=environ).master_key == Secret("sk-another")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"k" * 70_000, "is too large for a value"),
    ],
)
def test_a_file_that_holds_no_value_is_refused_by_its_variable(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    file = tmp_path / "secret"
    if data is not None:
        file.write_bytes(data)
    told = refusal({"LITELLM_MASTER_KEY_FILE": str(file), "VLLM_PASSTHROUGH_LISTEN": "tcp:4000"})
    # one problem, and not that the gateway would be open to everybody as well
    assert told.count("\n") == 0
    assert f"LITELLM_MASTER_KEY: the file that LITELLM_MASTER_KEY_FILE names {message}" in told
    assert str(file) in told


def test_a_name_that_depends_on_the_directory_is_refused() -> None:
    assert "must have a path that begins with /" in refusal({"LITELLM_MASTER_KEY_FILE": "secret"})


def test_a_value_and_a_file_together_are_refused_and_not_shown(secret: Path, tmp_path: Path) -> None:
    told = refusal({"LITELLM_MASTER_KEY_FILE": str(secret), "LITELLM_MASTER_KEY": "sk-in-the-environment"})
    assert "LITELLM_MASTER_KEY: is set, and so is LITELLM_MASTER_KEY_FILE (set one of them)" in told
    assert "sk-" not in told
    config = tmp_path / "config.yaml"
    config.write_text("passthrough: {api_key: os.environ/MINE}")
    assert "is set, and so is MINE_FILE" in refusal({"MINE": "x", "MINE_FILE": str(secret)}, config)


def test_where_to_listen_may_be_a_variable_over_which_the_file_wins(tmp_path: Path) -> None:
    environ = BASE | {"VLLM_PASSTHROUGH_LISTEN": "tcp:4001", "LITELLM_MASTER_KEY": "sk-1234"}
    assert load(file=None, environ=environ).listen == ("tcp:4001",)
    assert load(file=None, environ=environ, listen=["tcp:4003"]).listen == ("tcp:4003",)
    config = tmp_path / "config.yaml"
    config.write_text("passthrough: {listen: [tcp:4002]}")
    assert load(file=str(config), environ=environ).listen == ("tcp:4002",)
    assert "VLLM_PASSTHROUGH_LISTEN" in refusal({"VLLM_PASSTHROUGH_LISTEN": "4000", "LITELLM_MASTER_KEY": "sk-1234"})
