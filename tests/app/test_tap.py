"""The command line of ``twistd vllm-passthrough``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.plugin import IPlugin
from twisted.python.usage import UsageError
from zope.interface.verify import verifyObject

from twisted.plugins.vllm_passthrough import vllm_passthrough
from twisted_vllm.app.quickstart import DIRECTORY
from twisted_vllm.app.service import GatewayService
from twisted_vllm.app.start_error import StartError, explain_start_errors
from twisted_vllm.app.tap import Options, makeService
from twisted_vllm.config.secret import Secret

BASE = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with a server and a key, and a directory of its own."""
    for name in list(os.environ):
        if name.startswith(("VLLM_", "LITELLM_", "HOSTED_VLLM_", "DATABASE_URL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", BASE)
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-master")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return monkeypatch


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_the_plugin_names_the_command() -> None:
    assert verifyObject(IPlugin, vllm_passthrough)
    assert vllm_passthrough.tapname == "vllm-passthrough"
    assert vllm_passthrough.options is Options


def test_the_environment_is_enough() -> None:
    settings = parse().settings
    assert settings is not None
    assert settings.master_key == Secret("sk-master")
    assert settings.listen == ("tcp:4000:interface=127.0.0.1",)


def test_listen_may_be_repeated_and_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("passthrough: {listen: 'tcp:1'}\n")
    settings = parse("--config=config.yaml", "--listen=tcp:2", "--listen", "unix:/run/x.sock").settings
    assert settings is not None
    assert settings.listen == ("tcp:2", "unix:/run/x.sock")


def test_check_says_what_it_would_do_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--check")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "default server: http://127.0.0.1:8000" in shown
    assert "sk-master" not in shown
    assert list(Path().iterdir()) == []


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model_list:\n  - model_name: m\n    litellm_params: {model: hosted_vllm/m, api_bas: 'http://x'}\n"
        "passthrough: {drain_timeot: 3}\n"
    )
    message = refusal("--config=config.yaml")
    assert message.startswith("The configuration cannot be used:\n")
    assert "  model_list[0].litellm_params.api_bas: is not a known setting; did you mean 'api_base'?" in message
    assert "  passthrough.drain_timeot: is not a known setting; did you mean 'drain_timeout'?" in message


def test_a_setting_of_litellms_that_would_restrict_somebody_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("litellm_settings: {max_user_budget: 100, drop_params: true}\n")
    refused = (
        "litellm_settings.max_user_budget: would limit what each user spends, which this gateway does not do "
        "(send the limits with each POST /user/new; then take this setting out)"
    )
    assert refusal("--config=config.yaml") == f"The configuration cannot be used:\n  {refused}"
    assert refusal("--config=config.yaml", "--check") == (
        "The configuration cannot be used:\n"
        f"  refused:        {refused}\n"
        "  ignored:        litellm_settings.drop_params: not implemented yet: ignored\n"
        "\n"
        "  It says in parentheses what to do. The gateway does not start."
    )


def test_a_check_counts_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(
        "model_list: [{model_name: a, litellm_params: {model: azure/a}}]\nlitellm_settings: {drop_params: true}\n"
    )
    with pytest.raises(SystemExit):
        parse("--config=config.yaml", "--check")
    assert capsys.readouterr().out.endswith(
        "warning:        model_list: every entry was skipped, so that no model of the list is served\n"
        "\n"
        "1 entry is skipped, 1 setting is ignored, 1 warning. What is ignored restricts nobody, and may stay in the "
        "file. The gateway would start.\n"
    )
    with pytest.raises(SystemExit):
        parse("--check")
    assert capsys.readouterr().out.endswith("\n\nEverything is used. The gateway would start.\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{sinks: [{name: a, type: file, path: missing/a.log}]}",
            "passthrough.sinks[0].path: cannot be opened: No such file or directory: ",
        ),
        ("{log: {file: missing/a.log}}", "passthrough.log.file: cannot be opened: No such file or directory: "),
        ("{log: {file: .}}", "passthrough.log.file: cannot be opened: Is a directory: "),
        (
            "{sinks: [{name: a, type: stdout}, {name: b, type: python, object: no_such_module_y.audit}]}",
            "passthrough.sinks[1].object: no_such_module_y cannot be imported: No module named no_such_module_y (",
        ),
    ],
)
def test_a_check_refuses_what_a_start_could_not_open(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(f"passthrough: {text}\n")
    assert f"refused:        {says}" in refusal("--config=config.yaml", "--check")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.yaml"]


def test_a_check_of_files_that_can_be_written_leaves_none_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sinks = "[{name: a, type: file, path: a.log}, {name: b, type: python, object: own.log_it}]"
    (tmp_path / "own.py").write_text("def log_it(kwargs, answer, start, end): ...\n")
    (tmp_path / "config.yaml").write_text(f"passthrough: {{log: {{file: b.log}}, sinks: {sinks}}}\n")
    with pytest.raises(SystemExit):
        parse("--config=config.yaml", "--check")
    assert capsys.readouterr().out.endswith("Everything is used. The gateway would start.\n")
    assert {each.name for each in tmp_path.iterdir()} - {"__pycache__"} == {"config.yaml", "own.py"}


def test_a_file_that_is_not_there_is_named() -> None:
    assert "nowhere.yaml: cannot be read: No such file or directory" in refusal("--config=nowhere.yaml")


@pytest.mark.parametrize("endpoint", ["tpc:4000", "tcp:4000:interfaec=127.0.0.1", "ssl:443:privateKey=missing.pem"])
def test_an_endpoint_that_cannot_be_used_is_named_before_anything_starts(endpoint: str) -> None:
    message = refusal(f"--listen={endpoint}", "--listen=nope:1")
    assert f"'{endpoint}' is not an endpoint that can be used" in message
    assert "'nope:1' is not an endpoint that can be used" in message


def test_without_a_master_key_only_this_machine_is_served(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("LITELLM_MASTER_KEY")
    assert parse("--listen=tcp:0:interface=127.0.0.1").settings is not None
    assert "set LITELLM_MASTER_KEY" in refusal("--listen=tcp:0")


def test_a_surplus_argument_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match=r"'config\.yaml' is not an option; a configuration file is given with --conf"):
        parse("config.yaml")


def test_check_and_quickstart_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="use one of them"):
        parse("--check", "--quickstart")
    assert not Path(DIRECTORY).exists()


def test_help_names_the_environment_and_lines_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    for wanted in ("--listen=", "--check", "--config=", "--quickstart", "LITELLM_MASTER_KEY", "DATABASE_URL"):
        assert wanted in shown
    assert "\n  HOSTED_VLLM_API_BASE=http://127.0.0.1:8000 twistd -n vllm-passthrough\n" in shown


def test_quickstart_needs_nothing(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("LITELLM_MASTER_KEY")
    environment.delenv("HOSTED_VLLM_API_BASE")
    options = parse("--quickstart")
    assert options.settings is not None and options.quickstart is not None
    assert options.settings.master_key == Secret((tmp_path / ".run" / "master-key").read_text().strip())
    assert options.settings.database_url == Secret(f"sqlite:///{tmp_path}/.run/twisted_vllm.sqlite3")
    assert options.settings.default_server is not None and options.quickstart.simulator is not None
    assert options.settings.default_server.port == options.quickstart.simulator.getsockname()[1]
    options.quickstart.simulator.close()


def test_quickstart_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")
    assert refusal("--quickstart").startswith("--quickstart cannot keep its files: ")


def test_the_service_is_made_and_nothing_is_opened_yet(reactor: Any) -> None:
    service = makeService(parse("--listen=tcp:0:interface=127.0.0.1"))
    assert verifyObject(IService, service)
    assert isinstance(service, GatewayService)
    assert list(Path().iterdir()) == []


def test_quickstart_welcomes_with_the_first_request_to_try(
    reactor: Any, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("LITELLM_MASTER_KEY")
    environment.delenv("HOSTED_VLLM_API_BASE")
    options = parse("--quickstart", "--listen=tcp:4321:interface=127.0.0.1")
    makeService(options)
    shown = capfd.readouterr().out
    assert options.quickstart is not None and options.quickstart.master_key is not None
    assert f"Bearer {options.quickstart.master_key}" in shown
    assert "curl http://127.0.0.1:4321/vllm/v1/chat/completions" in shown
    assert options.quickstart.simulator is not None
    options.quickstart.simulator.close()


def test_options_that_were_not_parsed_make_no_service(reactor: Any) -> None:
    with pytest.raises(ValueError, match="parse the options first"):
        makeService(Options())


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path: Path, reactor: Any) -> None:
    (tmp_path / "config.yaml").write_text("passthrough: {log: {file: missing/gateway.log}}\n")
    with pytest.raises(SystemExit, match=r"The log file cannot be opened: .*missing/gateway\.log"):
        makeService(parse("--config=config.yaml"))


def test_a_start_that_failed_is_one_line_and_other_errors_keep_their_traceback(
    capfd: pytest.CaptureFixture[str], environment: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    environment.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(error))
    environment.setattr(sys, "__stderr__", sys.stderr)
    explain_start_errors()
    sys.excepthook(StartError, StartError("no port"), None)
    other = ValueError("other")
    sys.excepthook(ValueError, other, None)
    assert capfd.readouterr().err == "vllm-passthrough cannot start: no port\n"
    assert seen == [other]
