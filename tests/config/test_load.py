"""What wins over what, what the defaults are, and when the gateway is open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.config_harness import BASE, Loader, Refusal, default_server
from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Limits, LogSettings, Settings, TenantRoutes, Timeouts


def test_one_variable_is_enough_to_start_and_the_rest_are_the_defaults() -> None:
    settings = load(file=None, environ=BASE)
    assert default_server(settings).name == "gpu:8000"
    assert settings.listen == ("tcp:4000:interface=127.0.0.1",)
    assert settings.database_url == Secret("sqlite:///twisted_vllm.sqlite3")
    assert (settings.master_key, settings.allow_anonymous, settings.models) == (None, False, ())
    assert settings.limits == Limits()
    assert settings.timeouts == default_server(settings).timeouts == Timeouts()
    assert (settings.tenant_routes, settings.trusted_proxies) == (TenantRoutes(), ())
    assert (settings.log, settings.path_aliases, settings.drain_timeout) == (LogSettings(), True, 30.0)
    assert settings.warnings == ()


def test_the_variables_of_the_guide_configure_the_gateway() -> None:
    environ = BASE | {
        "LITELLM_MASTER_KEY": "sk-1234",
        "DATABASE_URL": "postgresql://u:p@db/keys",
        "HOSTED_VLLM_API_KEY": "vllm-key",
    }
    settings = load(file=None, environ=environ)
    assert settings.master_key == Secret("sk-1234")
    assert settings.database_url == Secret("postgresql+psycopg://u:p@db/keys")
    assert default_server(settings).api_key == Secret("vllm-key")


def test_the_master_key_may_be_given_as_its_hash() -> None:
    given = "sha256:" + "0aB1" * 16
    assert load(file=None, environ=BASE | {"LITELLM_MASTER_KEY": given}).master_key == Secret(given)


def test_the_limit_on_failed_authentications_may_be_lifted(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("passthrough: {limits: {max_failed_authentications: null}}")
    limits = load(file=str(file), environ=BASE).limits
    assert (limits.max_failed_authentications, Limits().max_failed_authentications) == (None, 60)


def master_key(settings: Settings) -> str:
    assert settings.master_key is not None
    return settings.master_key.reveal()


def server_key(settings: Settings) -> str:
    key = default_server(settings).api_key
    assert key is not None
    return key.reveal()


@pytest.mark.parametrize(
    ("own", "litellms", "read"),
    [
        ("VLLM_PASSTHROUGH_MASTER_KEY", "LITELLM_MASTER_KEY", master_key),
        ("VLLM_PASSTHROUGH_LITELLM_MASTER_KEY", "LITELLM_MASTER_KEY", master_key),
        ("VLLM_PASSTHROUGH_API_KEY", "HOSTED_VLLM_API_KEY", server_key),
        (
            "VLLM_PASSTHROUGH_HOSTED_VLLM_API_KEY",
            "HOSTED_VLLM_API_KEY",
            server_key,
        ),
    ],
)
def test_the_gateways_own_variable_wins_over_litellms(own: str, litellms: str, read: Callable[[Settings], str]) -> None:
    assert read(load(file=None, environ=BASE | {litellms: "theirs"})) == "theirs"
    assert read(load(file=None, environ=BASE | {litellms: "theirs", own: "ours"})) == "ours"
    assert read(load(file=None, environ=BASE | {litellms: "theirs", own: ""})) == "theirs"


@pytest.mark.parametrize("name", ["VLLM_PASSTHROUGH_API_BASE", "VLLM_PASSTHROUGH_HOSTED_VLLM_API_BASE"])
def test_the_server_can_be_named_by_the_gateways_own_variable(name: str) -> None:
    assert default_server(load(file=None, environ=BASE | {name: "http://other"})).name == "other:80"


def test_the_database_can_be_named_by_the_gateways_own_variable() -> None:
    environ = BASE | {"DATABASE_URL": "sqlite:///a", "VLLM_PASSTHROUGH_DATABASE_URL": "sqlite:///b"}
    assert load(file=None, environ=environ).database_url == Secret("sqlite:///b")


def test_empty_variables_count_as_unset() -> None:
    environ = BASE | {"DATABASE_URL": "", "LITELLM_MASTER_KEY": "", "HOSTED_VLLM_API_KEY": ""}
    assert load(file=None, environ=environ) == load(file=None, environ=BASE)


def test_the_file_wins_over_the_environment(load_text: Loader) -> None:
    environ = BASE | {"LITELLM_MASTER_KEY": "sk-env", "DATABASE_URL": "sqlite:///env", "HOSTED_VLLM_API_KEY": "env"}
    settings = load_text(
        """
        general_settings: {master_key: sk-file, database_url: "sqlite:///file"}
        passthrough: {api_base: "http://file:1", api_key: file}
        """,
        environ,
    )
    assert settings.master_key == Secret("sk-file")
    assert settings.database_url == Secret("sqlite:///file")
    assert default_server(settings).name == "file:1"
    assert default_server(settings).api_key == Secret("file")


def test_the_command_line_wins_over_the_file(load_text: Loader) -> None:
    text = "passthrough: {listen: 'unix:/run/file.sock'}"
    assert load_text(text, BASE).listen == ("unix:/run/file.sock",)
    assert load_text(text, BASE, listen=["unix:/a", "unix:/b"]).listen == ("unix:/a", "unix:/b")


def test_what_the_file_leaves_null_comes_from_the_environment(load_text: Loader) -> None:
    text = "general_settings: {master_key: null, database_url: }\npassthrough: {api_base: , api_key: ''}"
    environ = BASE | {"LITELLM_MASTER_KEY": "sk-env", "HOSTED_VLLM_API_KEY": "k"}
    settings = load_text(text, environ)
    assert settings.master_key == Secret("sk-env")
    assert default_server(settings).api_key == Secret("k")


@pytest.mark.parametrize("text", ["", "# nothing\n", "model_list:\ngeneral_settings:\npassthrough:\n", "---\n"])
def test_empty_files_and_empty_sections_are_no_settings(load_text: Loader, text: str) -> None:
    assert load_text(text, BASE) == load(file=None, environ=BASE)


def test_a_value_may_stand_in_the_environment_whatever_its_type(load_text: Loader) -> None:
    settings = load_text(
        """
        general_settings: {master_key: os.environ/KEY}
        passthrough:
          path_aliases: os.environ/ALIASES
          listen: [os.environ/LISTEN]
          limits: {max_body_bytes: os.environ/SIZE}
          timeouts: {idle: os.environ/IDLE}
        """,
        BASE | {"KEY": "sk-k", "ALIASES": "False", "LISTEN": "unix:/x", "SIZE": "77", "IDLE": "1.5"},
    )
    assert settings.master_key == Secret("sk-k")
    assert settings.path_aliases is False
    assert settings.listen == ("unix:/x",)
    assert type(settings.listen[0]) is str
    assert settings.limits.max_body_bytes == 77
    assert settings.timeouts.idle == 1.5


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}])
def test_a_reference_to_an_unset_variable_names_it(problems_of: Refusal, environ: dict[str, str]) -> None:
    (line,) = problems_of("general_settings: {master_key: os.environ/KEY}", environ)
    assert line.startswith("general_settings.master_key: the environment variable KEY is not set")


def test_a_reference_counts_only_as_the_whole_value(load_text: Loader) -> None:
    settings = load_text("passthrough: {log: {file: logs/os.environ/KEY}}", BASE | {"KEY": "x"})
    assert settings.log.file == "logs/os.environ/KEY"


def test_what_a_variable_holds_is_not_looked_up_again() -> None:
    environ = BASE | {"LITELLM_MASTER_KEY": "os.environ/OTHER", "OTHER": "x"}
    assert load(file=None, environ=environ).master_key == Secret("os.environ/OTHER")


def test_an_unset_variable_of_a_setting_that_is_not_used_does_no_harm(load_text: Loader) -> None:
    settings = load_text("litellm_settings: {cache_params: {password: os.environ/REDIS_PASSWORD}}", BASE)
    assert settings.warnings == ("litellm_settings.cache_params: not implemented yet: ignored",)


def test_environment_variables_of_the_file_lie_over_the_environment(load_text: Loader) -> None:
    settings = load_text(
        """
        environment_variables:
          LITELLM_MASTER_KEY: sk-block
          PORT: 5000
          COPY: os.environ/ORIGINAL
          HOSTED_VLLM_API_BASE:
        general_settings: {database_url: os.environ/COPY}
        passthrough: {limits: {max_body_bytes: os.environ/PORT}}
        """,
        BASE | {"LITELLM_MASTER_KEY": "sk-env", "ORIGINAL": "sqlite:///o"},
    )
    assert settings.master_key == Secret("sk-block")
    assert settings.limits.max_body_bytes == 5000
    assert settings.database_url == Secret("sqlite:///o")
    assert default_server(settings).name == "gpu:8000"


def test_a_misspelt_variable_is_warned_of_with_the_nearest_name() -> None:
    settings = load(file=None, environ=BASE | {"VLLM_PASSTHROUGH_MASTR_KEY": "sk-1"})
    assert settings.warnings == (
        "VLLM_PASSTHROUGH_MASTR_KEY: not a known variable: ignored; did you mean 'VLLM_PASSTHROUGH_MASTER_KEY'?",
    )


def test_a_refused_variable_is_named(problems_of: Refusal) -> None:
    assert problems_of("", {"LITELLM_MASTER_KEY": "two words"}) == [
        "LITELLM_MASTER_KEY: must be visible ASCII characters without spaces, as it is sent in a header"
    ]


PUBLIC = "tcp:4000:interface=0.0.0.0"


@pytest.mark.parametrize("listen", [[PUBLIC], ["unix:/x", "tcp:4000"]])
def test_open_mode_on_other_addresses_is_refused_with_both_ways_out(problems_of: Refusal, listen: list[str]) -> None:
    (line,) = problems_of(listen=listen)
    assert line.startswith("--listen: is open to other machines while there is no master key")
    assert "LITELLM_MASTER_KEY" in line
    assert "allow_anonymous: true" in line


def test_open_mode_of_the_file_is_refused_at_its_path(problems_of: Refusal) -> None:
    (line,) = problems_of(f"passthrough: {{listen: '{PUBLIC}'}}")
    assert line.startswith("passthrough.listen: is open")


def test_in_open_mode_not_every_web_page_may_use_the_gateway(problems_of: Refusal, load_text: Loader) -> None:
    text = "passthrough: {allowed_origins: ['*']}"
    (line,) = problems_of(text)
    assert line.startswith("passthrough.allowed_origins: lets every web page use the servers")
    assert load_text(text, BASE | {"LITELLM_MASTER_KEY": "sk-1"}).allowed_origins == ("*",)


def test_origins_are_written_as_browsers_do(load_text: Loader) -> None:
    text = "passthrough: {allowed_origins: ['HTTPS://A.example:443', 'http://b:80', 'https://c:80', 'app://d']}"
    assert load_text(text, BASE).allowed_origins == ("https://a.example", "http://b", "https://c:80", "app://d")


def test_each_way_out_of_the_refused_open_mode_works(load_text: Loader) -> None:
    assert load_text("passthrough: {allow_anonymous: true}", BASE, listen=[PUBLIC]).master_key is None
    assert load_text("", BASE | {"LITELLM_MASTER_KEY": "sk-1"}, listen=[PUBLIC]).listen == (PUBLIC,)


@pytest.mark.parametrize(
    "text",
    [
        "general_settings: {master_ky: sk-1}",
        "general_settings: {master-key: sk-1}",
        "general_settings: {masterKey: sk-1}",
        "litellm_settings: {master_key: sk-1}",
        "router_settings: {Master_Key: sk-1}",
        "passthrough: {master_key: sk-1}",
        "master_key: sk-1",
        "general_setings: {master_key: sk-1}",
        "include: [other.yaml]",
    ],
)
def test_a_master_key_that_would_be_overlooked_keeps_the_gateway_from_starting(problems_of: Refusal, text: str) -> None:
    (line,) = problems_of(text)
    assert "did you mean" in line or "move it to general_settings" in line or "put everything into this one" in line


def test_without_any_server_the_error_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError) as refusal:
        load(file=None, environ={})
    assert str(refusal.value) == (
        "no vLLM server is configured (set HOSTED_VLLM_API_BASE, or write model_list in the file; "
        "to try without one: --quickstart)"
    )


def test_a_default_api_base_serves_only_where_none_is_named(load_text: Loader) -> None:
    given = "http://demo:1"
    listed = "model_list: [{model_name: a, litellm_params: {model: hosted_vllm/a, api_base: 'http://gpu:8000'}}]"
    assert default_server(load_text("", default_api_base=given)).name == "demo:1"
    assert default_server(load_text("", BASE, default_api_base=given)).name == "gpu:8000"
    assert load_text(listed, default_api_base=given).default_server is None
    assert (
        load_text(listed.replace(", api_base: 'http://gpu:8000'", ""), default_api_base=given).models[0].server.name
        == "demo:1"
    )


def test_a_default_database_serves_only_where_none_is_named() -> None:
    assert load(file=None, environ=BASE, default_database_url="sqlite:///d").database_url == Secret("sqlite:///d")


def test_everything_that_is_wrong_is_told_at_once(problems_of: Refusal) -> None:
    lines = problems_of(
        """
        general_settings: {master_key: 1234, database_url: "mysql://u:p@h/d"}
        model_list:
          - {model_name: 'a?', litellm_params: {model: hosted_vllm/a, weight: 0}}
          - {litellm_params: {model: hosted_vllm/b, api_bse: "http://b"}}
        passthrough: {limits: {max_body_bytes: 1.5}, timeouts: {conect: 3}}
        """,
        {"VLLM_PASSTHROUGH_API_KEY": "a b"},
    )
    assert [line.split(": ")[0] for line in lines] == [
        "general_settings.master_key",
        "general_settings.database_url",
        "model_list[0].model_name",
        "model_list[0].litellm_params.weight",
        "model_list[1].litellm_params.api_bse",
        "model_list[1].model_name",
        "passthrough.limits.max_body_bytes",
        "passthrough.timeouts.conect",
        "VLLM_PASSTHROUGH_API_KEY",
    ]
