"""The files of a release: who builds them gets the same, and they are what PyPI and its users expect."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools.release import audit, bill, checks, dependencies, distributions, licences

REPOSITORY = Path(__file__).parents[2]


def git(*arguments: str, cwd: Path) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *arguments],
        cwd=cwd,
        env={**os.environ, **identity},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as one commit of what lies here, with the tag of a release."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("needs git and the project's history")
    source = tmp_path_factory.mktemp("clone")
    git("init", "--quiet", cwd=source)
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).splitlines():
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    git("add", "--all", cwd=source)
    git("commit", "--quiet", "--message", "all of it", cwd=source)
    git("tag", "v1.2.3", cwd=source)
    return source


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return distributions.build(tmp_path_factory.mktemp("built"), repository=clone)


def test_the_version_is_that_of_the_tag(built: tuple[Path, Path]) -> None:
    assert [file.name for file in built] == ["twisted_vllm-1.2.3.tar.gz", "twisted_vllm-1.2.3-py3-none-any.whl"]
    assert checks.is_release(built[1])


def test_a_commit_after_a_tag_is_a_development_version_of_the_next_release(clone: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    git("clone", "--quiet", str(clone), str(later), cwd=tmp_path)
    git("commit", "--quiet", "--allow-empty", "--message", "one more", cwd=later)
    said = subprocess.run(
        [sys.executable, "-m", "setuptools_scm"], cwd=later, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "1.2.4.dev1"


def test_another_machine_builds_the_same_bytes(
    clone: Path, built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    # a release that is built elsewhere must not take its version from there
    monkeypatch.setenv(distributions.PRETENDED, "9.9.9")
    previous = os.umask(0o077)
    try:
        again = distributions.build(tmp_path, repository=clone)
    finally:
        os.umask(previous)
    assert [distributions.digest(file) for file in again] == [distributions.digest(file) for file in built]


def test_what_is_not_committed_is_not_built(clone: Path, built: tuple[Path, Path], tmp_path: Path) -> None:
    (clone / "twisted_vllm" / "left_over.py").write_text("SECRET = 1\n")
    try:
        again = distributions.build(tmp_path, repository=clone)
    finally:
        (clone / "twisted_vllm" / "left_over.py").unlink()
    assert distributions.digest(again[1]) == distributions.digest(built[1])


def test_the_wheel_of_the_source_distribution_is_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    epoch = str(int((source / "setup.cfg").stat().st_mtime))
    done = subprocess.run(
        command, env={**os.environ, "SOURCE_DATE_EPOCH": epoch}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == built[1].name

    def contents(file: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    assert contents(wheel) == contents(built[1])


def test_the_source_distribution_has_what_is_needed_to_test_and_read_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"Makefile", "tests/conftest.py", "docs/README.md", "config/example.yaml", "LICENSE", ".ci/run"} <= names
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}


def test_twine_check_wheel_contents_and_pyroma_find_nothing(built: tuple[Path, Path]) -> None:
    assert checks.check(*built) == []


def test_a_release_that_lacks_its_description_is_refused(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel = tmp_path / built[1].name
    with zipfile.ZipFile(built[1]) as whole, zipfile.ZipFile(wheel, "w") as part:
        for name in whole.namelist():
            data = whole.read(name)
            part.writestr(name, data.partition(b"\n\n")[0] + b"\n\n" if name.endswith("/METADATA") else data)
    assert any("twine" in problem for problem in checks.check(built[0], wheel))


def test_each_licence_goes_with_ours_and_the_page_is_of_now() -> None:
    needed = list(dependencies.dependencies())
    assert len(needed) > 40
    assert [each.name for each in needed if not licences.is_allowed(licences.licence_of(each.found))] == []
    # a backport is needed on the oldest Python alone
    if sys.version_info[:2] == (3, 11):
        assert licences.PAGE.read_text("utf-8") == licences.page(needed), "make licences"


@pytest.mark.parametrize("licence", ["GPL-3.0-only", "MIT AND AGPL-3.0-only", "MIT OR Proprietary", "unknown"])
def test_a_licence_that_nobody_has_read_is_not_allowed(licence: str) -> None:
    assert not licences.is_allowed(licence)


def test_the_bill_of_materials_names_the_gateway_its_dependencies_and_its_javascript() -> None:
    made = bill.bill_of(Path(sys.executable), 1_700_000_000)
    assert made["bomFormat"] == "CycloneDX"
    assert made["metadata"]["component"]["name"] == dependencies.PROJECT
    assert made["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    names = {each["name"] for each in made["components"]}
    assert {each.name for each in dependencies.dependencies()} | {"htmx.org", "uplot"} <= names
    assert dependencies.PROJECT not in names


class Advisories(BaseHTTPRequestHandler):
    """OSV's interface, with one vulnerability in Jinja2."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = {
            "id": "PYSEC-1",
            "summary": "a hole",
            "affected": [],
            "aliases": [],
            "modified": "2026-01-01T00:00:00Z",
        }
        answer = {"vulns": [known]} if asked["package"]["name"].lower() == "jinja2" else {}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_known_vulnerability_fails_the_audit_and_is_named(
    advisories: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = audit.main(["--vulnerability-service", "osv", "--osv-url", advisories])
    told = capsys.readouterr()
    assert status == 1
    assert "audit: jinja2" in told.out.lower()
    assert "PYSEC-1" in told.out
    assert "not audited" not in told.err


def test_an_audit_that_reaches_nobody_says_so_and_fails_only_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:1/v1/query"]
    assert audit.main(nobody) == 0
    told = capsys.readouterr()
    assert "not audited" in told.err
    assert "no known vulnerability" not in told.out
    assert audit.main(["--strict", *nobody]) == 1
