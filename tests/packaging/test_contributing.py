"""What a contributor starts with: make's targets, the hooks of commits, templates, the development container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
MAKEFILE = (REPOSITORY / "Makefile").read_text("utf-8")
TEMPLATES = REPOSITORY / ".github" / "ISSUE_TEMPLATE"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_make_tells_of_every_target_that_somebody_may_want() -> None:
    told = set(re.findall(r"@echo 'make ([a-z-]+)", MAKEFILE))
    [targets] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    # parts of `make test`, and what another target asks first
    asked = {"help", "style", "live-url", "same-python"}
    parts = asked | {name for name in targets.split() if name.startswith("test-") and name not in told}
    assert set(targets.split()) - parts == told


@pytest.mark.parametrize("name", ["fault.yml", "wish.yml"])
def test_a_form_of_an_issue_is_one_that_forges_accept(name: str) -> None:
    done = run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", TEMPLATES / name)
    assert done.returncode == 0, done.stdout
    form = yaml.safe_load((TEMPLATES / name).read_text("utf-8"))
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_the_configuration_of_issues_is_one_that_forges_accept() -> None:
    done = run(
        PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.github-issue-config", TEMPLATES / "config.yml"
    )
    assert done.returncode == 0, done.stdout


def test_a_form_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("name: x\ndescription: y\nbody:\n  - type: no-such-part\n")
    assert run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", wrong).returncode == 1


def test_the_hooks_of_commits_are_those_of_make_test() -> None:
    done = run(PROGRAMS / "pre-commit", "validate-config", ".pre-commit-config.yaml")
    assert done.returncode == 0, done.stdout
    [repository] = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    for program in re.findall(r"^\t\$\(BIN\)/(ruff \w+|mypy)", MAKEFILE.partition("\nstyle:")[2], re.MULTILINE)[:3]:
        assert any(entry.startswith(f".venv/bin/{program}") for entry in entries), program
    for entry in entries:
        for file in re.findall(r"tests/\S+", entry):
            assert (REPOSITORY / file).exists()


def test_the_development_container_prepares_itself_with_what_is_here() -> None:
    container = json.loads((REPOSITORY / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert container["postCreateCommand"] == "bash .devcontainer/prepare"
    script = (REPOSITORY / ".devcontainer" / "prepare").read_text("utf-8")
    for file in re.findall(r"(?:sudo |bash )(\.\S+)", script):
        assert os.access(REPOSITORY / file, os.X_OK), file
    for target in re.findall(r"^make (\S+)$", script, re.MULTILINE):
        assert f"{target.replace('.venv', '$(VENV)')}:" in MAKEFILE
