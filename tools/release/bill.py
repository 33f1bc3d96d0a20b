"""The bill of materials of a release (CycloneDX): the gateway, what a fresh installation brings, and its JavaScript.

A wheel and its extras are installed into a virtual environment of their own, so that nothing else of a machine gets in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.release.dependencies import PROJECT, runtime_extras

_VENDORED = Path(__file__).parents[2] / "twisted_vllm" / "admin" / "web" / "assets" / "vendor" / "vendored.toml"


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel with every extra into a new virtual environment, and return its Python.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([*pip, "install", f"{wheel}[{','.join(runtime_extras())}]"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", "pip", "setuptools"], check=True, stderr=subprocess.DEVNULL)
    return python


def bill_of(python: Path, epoch: int) -> Mapping[str, Any]:
    """Return the bill of materials of a Python's packages, the gateway as its main component.

    Args:
        python: the Python of a virtual environment.
        epoch: the time of the bill, in seconds since 1970.

    Raises:
        subprocess.CalledProcessError: the bill cannot be made, or is not valid; it has been said why.
    """
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate", str(python)]
    made = subprocess.run(
        command, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, stdout=subprocess.PIPE, check=True
    )
    bill: dict[str, Any] = json.loads(made.stdout)
    # an editable installation is found twice
    gateway = next(each for each in bill["components"] if each["name"] == PROJECT)
    bill["components"] = [each for each in bill["components"] if each["name"] != PROJECT] + _javascript()
    bill["metadata"]["component"] = {**gateway, "type": "application"}
    return bill


def _javascript() -> list[dict[str, Any]]:
    packages = tomllib.loads(_VENDORED.read_text("utf-8"))
    found = []
    for package in packages.values():
        # npm's own name stands in the address
        name = package["tarball"].split("/-/")[0].rpartition("/")[2]
        purl = f"pkg:npm/{name}@{package['version']}"
        licence = [{"license": {"id": package["licence"]}}]
        about = {"bom-ref": purl, "type": "library", "name": name, "version": package["version"]}
        found.append({**about, "purl": purl, "licenses": licence})
    return found
