"""The documents keep their word: links resolve, and what they name exists in the program."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from docs.site import markdown
from docs.site.markdown import Block
from docs.site.reference.__main__ import FILES
from twisted_vllm.app import settings_source
from twisted_vllm.app.tap import Options
from twisted_vllm.config.load import DOCUMENT
from twisted_vllm.errors import GatewayError

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = markdown.documents()
NAMES = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
EXAMPLE = REPOSITORY / "config" / "example.yaml"

#: a fenced block: its language and its text
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^()\s]+)\)")
NAMED_FILE = re.compile(r"`((?:twisted_vllm|twisted/plugins|tests|benchmarks|config|docs|\.ci)/[\w./-]*\w)`")
#: settings as the documents write them, in full or without `passthrough.` where the block's name says enough
NAMED_SETTING = re.compile(
    r"`((?:passthrough|limits|timeouts|ledger|tenant_routes|general_settings|litellm_settings)\.[a-z_.]+[a-z_])[`:]"
)
#: what a configuration of the gateway consists of
BLOCKS = {each.name for each in DOCUMENT.settings}
#: documents that show YAML of Prometheus and Grafana too
OF_OTHER_PROGRAMS = {"docs/metrics.md", "docs/observability.md"}
PROMTOOL = shutil.which("promtool")
#: settings of LiteLLM's that the migration page names because they are not used
MIGRATION = "docs/migrate-from-litellm.md"
#: it is made from the declarations, and names each setting in a table
REFERENCE = "docs/configuration.md"


def read(name: str) -> str:
    return (REPOSITORY / name).read_text("utf-8")


def fenced(name: str, *languages: str) -> list[Block]:
    return [block for block in markdown.blocks(REPOSITORY / name) if block.language in languages]


def blocks(name: str, language: str) -> list[str]:
    return [block.text for block in fenced(name, language)]


def all_fenced(*languages: str) -> list[Any]:
    """Return the blocks of all documents, as parameters."""
    found = [block for name in NAMES for block in fenced(name, *languages)]
    return [pytest.param(block, id=f"{block.document}:{block.line}") for block in found]


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", FENCED.sub("", path.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


def rows(text: str, heading: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading, without its two head lines."""
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_anchor_resolves(name: str) -> None:
    broken = []
    for target in LINK.findall(FENCED.sub("", read(name))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (REPOSITORY / name).parent / file if file else REPOSITORY / name
        if not path.exists() or (anchor and anchor not in anchors(path.resolve())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_exists(name: str) -> None:
    assert [file for file in NAMED_FILE.findall(read(name)) if not (REPOSITORY / file).exists()] == []


@pytest.mark.parametrize("name", ["docs/accounting.md", "docs/security-model.md"])
def test_every_promise_names_tests_that_exist(name: str) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+test_\w+\.py)`", read(name))
    assert len(named) > 15
    assert [file for file in named if not (REPOSITORY / "tests" / file).exists()] == []


def test_every_document_below_docs_is_in_its_index() -> None:
    for index in (REPOSITORY / "docs" / "README.md", REPOSITORY / "docs" / "decisions" / "README.md"):
        named = set(LINK.findall(index.read_text("utf-8")))
        others = {path.name for path in index.parent.glob("*.md")} - {"README.md"}
        assert sorted(others - named) == []


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "sh")])
def test_shell_commands_use_targets_and_options_that_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    options = {f"--{option.rstrip('=')}" for option in Options().longOpt}
    for block in blocks(name, "sh"):
        commands = re.sub(r"\s+#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
        assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
        for arguments in re.findall(r"twistd -n vllm-passthrough(.*)$", commands, re.MULTILINE):
            assert set(re.findall(r"--[a-z-]+", arguments)) <= options


@cache
def options_of_target(target: str) -> frozenset[str]:
    """The options that a make target's program takes as ARGS."""
    recipe = read("Makefile").partition(f"\n{target}: ")[2].partition("\n\n")[0]
    [module] = re.findall(r"python -m ([\w.]+)", recipe)
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    return frozenset(re.findall(r"--[a-z-]+", done.stdout))


def test_arguments_of_make_are_options_of_its_programs() -> None:
    used = [
        (target, option)
        for name in NAMES
        for target, arguments in re.findall(r"make ([a-z-]+) ARGS=(\"[^\"]*\"|\S+)", read(name))
        for option in re.findall(r"--[a-z-]+", arguments)
    ]
    assert len(used) > 20
    assert [(target, option) for target, option in used if option not in options_of_target(target)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "yaml")])
def test_configuration_in_a_document_can_be_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-of-the-documents")
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://gpu-1:8000")
    for variable in ("OIDC_CLIENT_SECRET", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.setenv(variable, "of-the-documents")
    for variable in ("SLACK_WEBHOOK_URL", "FINANCE_WEBHOOK_URL", "ONCALL_WEBHOOK_URL", "TEAM_WEBHOOK_URL"):
        monkeypatch.setenv(variable, "https://chat.example.com/hook")
    # the files of certificates that an example names are not there
    monkeypatch.setattr(settings_source, "read_all", lambda *_: {})
    for block in fenced(name, "yaml"):
        written = yaml.safe_load(block.text)
        for mark in block.marks:
            # a block that shows a part names where it stands
            for part in reversed(mark.removeprefix("below ").split(".") if mark.startswith("below ") else []):
                written = {part: written}
        if not isinstance(written, dict) or not set(written) <= BLOCKS:
            assert block.document in OF_OTHER_PROGRAMS, block
            continue
        file = tmp_path / "config.yaml"
        file.write_text(block.text if "below" not in str(block.marks) else yaml.safe_dump(written), "utf-8")
        with pytest.raises(SystemExit) as ended:
            Options().parseOptions(["--config", str(file), "--check"])
        assert ended.value.code == 0, ended.value.code
        # an example of fallbacks shows no models
        said = re.sub(r"warning: .*: no entry of model_list is named .*", "", capsys.readouterr().out)
        assert "warning:" not in said


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
@pytest.mark.parametrize("block", all_fenced("yaml", "promql"))
def test_prometheus_accepts_what_is_written_for_it(block: Block, tmp_path: Path) -> None:
    if block.language == "promql":
        expressions = [line for line in block.text.splitlines() if line and not line.startswith("#")]
        rules = [{"record": f"documented:{index}", "expr": text} for index, text in enumerate(expressions)]
        content, check = {"groups": [{"name": "documented", "rules": rules}]}, ["check", "rules"]
    else:
        content, check = yaml.safe_load(block.text), ["check", "config", "--syntax-only"]
        if isinstance(content, list) and "job_name" in content[0]:
            content = {"scrape_configs": content}
        if "scrape_configs" not in content:
            return
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    done = subprocess.run([str(PROMTOOL), *check, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", all_fenced("json", "toml", "python"))
def test_data_and_code_can_be_parsed(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif "lines of several places" not in block.marks:
        ast.parse(textwrap.dedent(block.text))


def test_code_that_is_shown_in_pieces_is_rare() -> None:
    pieces = [name for name in NAMES for block in fenced(name, "python") if "lines of several places" in block.marks]
    assert pieces == ["CONTRIBUTING.md"] * 4


def test_questions_for_duckdb_are_its_sql() -> None:
    questions = [text for block in fenced("docs/export.md", "sql") if "read_parquet" in (text := block.text)]
    assert questions
    for text in questions:
        assert duckdb.extract_statements(text)


@cache
def written_example() -> Any:
    return yaml.safe_load(EXAMPLE.read_text("utf-8"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (MIGRATION, REFERENCE)])
def test_every_setting_that_is_named_stands_in_the_example(name: str) -> None:
    written = written_example()
    unknown = []
    for setting in NAMED_SETTING.findall(read(name)):
        at: Any = written if setting.split(".")[0] in written else written["passthrough"]
        for part in setting.split("."):
            at = at.get(part, KeyError) if isinstance(at, dict) else KeyError
        if at is KeyError:
            unknown.append(setting)
    assert unknown == []


@pytest.mark.parametrize("name", FILES)
def test_reference_pages_say_what_the_declarations_say(name: str) -> None:
    assert read(name) == FILES[name](), "run make reference"


def test_the_page_of_errors_has_every_error() -> None:
    def every(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        yield kind
        for narrower in kind.__subclasses__():
            yield from every(narrower)

    table = {
        (int(status), code) for status, code in re.findall(r"^\| (\d+) \| \[`(\w+)`\]", read("docs/errors.md"), re.M)
    }
    assert table == {(kind.status, kind.code) for kind in every(GatewayError)}


def test_every_variable_that_the_program_reads_is_documented() -> None:
    page = read("docs/process.md")
    names = {
        text.strip("\"'")
        for path in (REPOSITORY / "twisted_vllm").rglob("*.py")
        for text in re.findall(r"environ(?:\.get\(|\[| if )[\"'](\w+)[\"']", path.read_text("utf-8"))
    }
    assert "NOTIFY_SOCKET" in names
    # set for Python and for processes of its own
    assert sorted(name for name in names - {"PYTHONHASHSEED"} if f"`{name}`" not in page) == []


def test_every_log_message_that_is_quoted_can_be_logged() -> None:
    texts = [
        node.value
        for path in (REPOSITORY / "twisted_vllm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = [message for first, *_ in rows(OPERATIONS, "By log message") for message in re.findall(r"`(.+?)`", first)]
    assert len(quoted) > 10
    assert [message for message in quoted if not any(message in text for text in texts)] == []


def test_every_bound_is_held_by_a_test_that_exists() -> None:
    known = {
        node.name
        for path in (REPOSITORY / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    page = read("docs/bounds.md")
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named - known == set()
    # one test holds the whole table of caches, and the text above it names it
    listed = re.sub(r"## What is remembered\n.*?(?=\n## )", "", page, flags=re.DOTALL)
    tables = [line.strip("|").split("|") for line in listed.splitlines() if line.startswith("|") and "---" not in line]
    inputs = [cells for cells in tables if cells[-1].strip() != "test"]
    assert len(inputs) > 40
    assert [cells[0] for cells in inputs if "test_" not in cells[-1]] == []
