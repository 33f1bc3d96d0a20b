"""``vllm-passthrough`` and its commands: what they print, and what they say of mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from twisted_vllm.app.tap import Options
from twisted_vllm.cli import entry, reference
from twisted_vllm.cli.config import files
from twisted_vllm.cli.main import main

CONFIGURATION = Path(__file__).parents[2] / "config"


def run(*arguments: str, **variables: str) -> Result:
    environment: Mapping[str, str | None] = {"HOSTED_VLLM_API_BASE": None, "LITELLM_MASTER_KEY": None, **variables}
    return CliRunner().invoke(main, arguments, prog_name="vllm-passthrough", env=environment)


def commands() -> list[str]:
    return main.list_commands(click.Context(main))


def test_help_names_each_command_and_imports_none() -> None:
    for name in [module for module in sys.modules if module == "twisted_vllm.cli.version"]:
        del sys.modules[name]
    shown = run("--help")
    assert shown.exit_code == 0
    for name in commands():
        assert f"\n  {name} " in shown.output
    assert "twisted_vllm.cli.version" not in sys.modules


@pytest.mark.parametrize("name", commands())
def test_each_command_explains_itself(name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: vllm-passthrough {name} ")
    assert "\nOptions:\n" in shown.output


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["rum"], "'rum' is not a command; did you mean run?"),
        (["chekc"], "'chekc' is not a command; did you mean check?"),
        (["xyz"], "'xyz' is not a command"),
        (["run", "--lsiten", "tcp:1"], "--lsiten is not an option; did you mean --listen?"),
        (["run", "--worker=2"], "--worker is not an option; did you mean --workers?"),
        (["run", "--port", "8000"], "write --listen tcp:8000:interface=127.0.0.1 for this machine alone"),
        (["check", "--num_workers", "4"], "--num_workers is LiteLLM's"),
        (
            ["check", "gateway.yaml"],
            "'gateway.yaml' is not an option; a configuration file is given with --config FILE",
        ),
        (["check", "--prob"], "--prob is not an option; did you mean --probe?"),
        (["run", "--uid", "nobody-at-all"], "there is no user 'nobody-at-all' on this machine"),
        (["run", "--gid", "nobody-at-all"], "there is no group 'nobody-at-all' on this machine"),
        (["run", "--umask", "9"], "'9' is not an octal number, such as 027"),
        (["run", "--pidfile", "/nowhere/gateway.pid"], "the directory /nowhere does not exist"),
        (["run", "--rundir", "/nowhere"], "Directory '/nowhere' does not exist"),
        (["run", "--reactor", "warp"], "'warp' is not one of"),
        (["migrate", "backwards"], "'backwards' is not one of 'expand', 'contract'"),
        (["config", "exampel"], "'exampel' is none of the files; did you mean example?"),
        (["config", "--output", "x"], "--output needs a name, one of compose/compose,"),
        (["config", "example", "--all", "x"], "--all goes without a name"),
    ],
)
def test_a_mistake_is_named_with_what_to_write(written: list[str], said: str) -> None:
    done = run(*written)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_version_and_versions_agree() -> None:
    one = run("--version").stdout.split()
    assert one[0] == "vllm-passthrough"
    table = run("version").stdout
    found = json.loads(run("version", "--json").stdout)
    assert found["vllm-passthrough"] == one[1]
    assert {"Python", "Twisted", "treq", "klein", "SQLite", "schema"} <= set(found)
    for name, value in found.items():
        assert f"{name} " in table
        assert value in table


def test_twistd_shows_our_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == run("--version").stdout


def test_the_files_of_the_folder_config_are_listed_and_printed_byte_for_byte() -> None:
    listed = run("config").stdout.split()
    paths = [path for path in CONFIGURATION.rglob("*") if path.is_file() and "helm" not in path.parts]
    assert len(listed) == len(paths)
    for name, path in files().items():
        assert CliRunner().invoke(main, ["config", name]).stdout_bytes == path.read_bytes()
    assert "model_list" in yaml.safe_load(run("config", "example").stdout)
    assert run("config", "alerts.yml").stdout == run("config", "prometheus/alerts").stdout


def test_a_file_is_written_and_none_is_overwritten_unasked(tmp_path: Path) -> None:
    target = tmp_path / "new" / "gateway.yaml"
    assert run("config", "example", "--output", str(target)).exit_code == 0
    assert target.read_bytes() == (CONFIGURATION / "example.yaml").read_bytes()
    target.write_text("mine\n")
    refused = run("config", "example", "--output", str(target))
    assert refused.exit_code == 1
    assert f"{target} exists: name another, or replace it with --force" in refused.stderr
    assert target.read_text() == "mine\n"
    assert run("config", "example", "--output", str(target), "--force").exit_code == 0
    assert target.read_text() != "mine\n"


def test_all_files_are_written_as_they_lie_in_the_folder(tmp_path: Path) -> None:
    assert run("config", "--all", str(tmp_path / "all")).exit_code == 0
    for path in CONFIGURATION.rglob("*"):
        if path.is_file() and "helm" not in path.parts:
            assert (tmp_path / "all" / path.relative_to(CONFIGURATION)).read_bytes() == path.read_bytes()


def test_check_prints_what_a_configuration_would_do(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "model_list:\n  - {model_name: m, litellm_params: {model: hosted_vllm/m, api_base: 'http://a:1'}}\n"
    )
    done = run("check", "--config", str(file), "--workers", "2", LITELLM_MASTER_KEY="sk-of-the-check")
    assert done.exit_code == 0
    assert "http://a:1" in done.stdout
    assert "a supervisor, a housekeeper and 2 workers" in done.stdout
    assert "sk-of-the-check" not in done.output


def test_check_refuses_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    done = run("check", "--config", str(tmp_path / "missing.yaml"))
    assert done.exit_code == 1
    # of standard error, which the runner does not tell apart for what ends a program
    assert "missing.yaml: cannot be read: No such file or directory" in done.output


def test_migrate_brings_a_new_database_to_the_schema(tmp_path: Path) -> None:
    variables = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite3",
        "LITELLM_MASTER_KEY": "sk-of-the-migration",
        "HOSTED_VLLM_API_BASE": "http://127.0.0.1:1",
    }
    done = run("migrate", **variables)
    assert done.exit_code == 0, done.output
    assert "schema 00" in done.stdout
    assert (tmp_path / "new.sqlite3").exists()


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13), (3, 15, 0), (4, 0, 0)])
def test_another_python_is_refused_in_one_line(version: tuple[int, int, int]) -> None:
    why = entry.refusal(version)
    assert why.startswith(f"vllm-passthrough needs Python 3.11 to 3.14, and this is Python {version[0]}.{version[1]} (")
    assert "\n" not in why


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 5), (3, 14, 0)])
def test_the_pythons_that_are_tested_are_accepted(version: tuple[int, int, int]) -> None:
    assert entry.refusal(version) == ""


def test_the_page_of_the_commands_is_of_now() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "make reference"
