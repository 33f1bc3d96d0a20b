"""The wheel and the source distribution, the same bytes whoever builds them.

``make wheel`` builds the commit that is checked out into ``dist``. The version is that of the commit's tag, ``v1.2.3``;
a commit after a tag is a development version of the next release. What is not committed is not built.

Two things make a build differ from another: times, which are the commit's here (``SOURCE_DATE_EPOCH``, see
https://reproducible-builds.org/specs/source-date-epoch/), and the builder's own settings (umask, user, order of files),
which setuptools keeps out of a wheel but not out of a source distribution. So that one is packed again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
#: what another clone of the project takes for the version, where it has no history
PRETENDED = "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_TWISTED_VLLM"


def build(destination: Path, revision: str = "HEAD", repository: Path = REPOSITORY) -> tuple[Path, Path]:
    """Build the wheel and the source distribution of a commit.

    Args:
        destination: the directory that gets them; it is made.
        revision: the commit, in any spelling of git's.
        repository: the clone that has it.

    Returns:
        The source distribution and the wheel.

    Raises:
        subprocess.CalledProcessError: git or setuptools failed; both have said why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        _run(["git", "clone", "--quiet", "--no-checkout", str(repository), str(source)])
        commit = _output(["git", "-C", str(repository), "rev-parse", f"{revision}^{{commit}}"])
        _run(["git", "-C", str(source), "checkout", "--quiet", "--detach", commit])
        epoch = time_of(commit, source)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        environment.pop(PRETENDED, None)
        built = Path(scratch, "built")
        for kind in ("--sdist", "--wheel"):
            command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(built), str(source)]
            _run(command, environment)
        [sdist] = built.glob("*.tar.gz")
        [wheel] = built.glob("*.whl")
        destination.mkdir(parents=True, exist_ok=True)
        packed = destination / sdist.name
        packed.write_bytes(pack_again(sdist.read_bytes(), epoch))
        return packed, Path(shutil.copy(wheel, destination / wheel.name))


def time_of(revision: str, repository: Path = REPOSITORY) -> int:
    """Return when a commit was made, in seconds since 1970."""
    return int(_output(["git", "-C", str(repository), "log", "-1", "--format=%ct", revision]))


def pack_again(archive: bytes, epoch: int) -> bytes:
    """Return a gzipped tar archive with the same files and nothing of the machine that packed it.

    Args:
        archive: the archive.
        epoch: the time that every file gets, in seconds since 1970.
    """
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as old,
        # no name and no time in gzip's header
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def digest(file: Path) -> str:
    """Return a file's SHA-256, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    # a wheel keeps the modes of its files
    done = subprocess.run(command, env=environment, umask=0o022, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> int:
    """Build, and print what was built with its SHA-256."""
    parser = argparse.ArgumentParser(prog="make wheel", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="the directory [default: dist]")
    parser.add_argument("--revision", default="HEAD", help="the commit, branch or tag [default: HEAD]")
    options = parser.parse_args()
    changed = _output(["git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no"])
    if changed and options.revision == "HEAD":
        print("make wheel: changes that are not committed are left out", file=sys.stderr)
    try:
        built = build(options.output, options.revision)
    except subprocess.CalledProcessError as error:
        print(f"make wheel: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1
    for file in built:
        print(f"{digest(file)}  {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
