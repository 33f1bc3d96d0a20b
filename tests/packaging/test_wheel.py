"""The wheel's contents, and twistd with the wheel installed and without the checkout."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import REPOSITORY, run


@pytest.fixture(scope="module")
def installed_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, and of this environment only the dependencies."""
    directory = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    python = directory / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=directory)
    [packages] = directory.glob("lib/python*/site-packages")
    # A line in a .pth file adds a directory, but does not read that directory's own .pth files: an editable install of
    # this very project stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def twistd(python: Path, *arguments: str, cwd: Path) -> str:
    return run(python, "-c", "from twisted.scripts.twistd import run; run()", *arguments, cwd=cwd)


def test_the_wheel_holds_every_module_and_both_plugins_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "twisted_vllm"
    modules = {
        str(path.relative_to(REPOSITORY)) for kind in ("*.py", "*.lua", "py.typed") for path in package.rglob(kind)
    }
    console = package / "admin" / "web"
    for folder in (console / "templates", console / "assets"):
        modules |= {str(path.relative_to(REPOSITORY)) for path in folder.rglob("*") if path.is_file()}
    plugins = {"twisted/plugins/vllm_passthrough.py", "twisted/plugins/vllm_simulator.py"}
    configuration = REPOSITORY / "config"
    files = {
        f"twisted_vllm/files/{path.relative_to(configuration)}"
        for path in configuration.rglob("*")
        if path.is_file() and path.parent.name != "secrets" and path.name != ".env"
        # the chart is an archive of its own: make chart
        if "helm" not in path.relative_to(configuration).parts
    }
    assert {name for name in names if ".dist-info/" not in name} == modules | plugins | files
    assert any(name.startswith("twisted_vllm/storage/migrations/versions/0") for name in names)


def test_the_wheel_carries_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [license_name] = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(license_name).decode().startswith("MIT License")


def test_twistd_lists_the_plugins_of_an_installed_wheel(installed_python: Path, tmp_path: Path) -> None:
    commands = [
        line.split()[0] for line in twistd(installed_python, "--help", cwd=tmp_path).splitlines() if line.strip()
    ]
    assert "vllm-passthrough" in commands
    assert "vllm-simulator" in commands


@pytest.mark.parametrize("command", ["vllm-passthrough", "vllm-simulator"])
def test_an_installed_command_explains_itself(installed_python: Path, tmp_path: Path, command: str) -> None:
    assert "--listen" in twistd(installed_python, command, "--help", cwd=tmp_path)


def test_the_installed_package_is_not_the_checkout_s(installed_python: Path, tmp_path: Path) -> None:
    where = run(installed_python, "-c", "import twisted_vllm; print(twisted_vllm.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed_python.parents[1]))
