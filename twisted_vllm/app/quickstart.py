"""``--quickstart``: defaults for everything that a newcomer has not configured yet.

The master key and the database are kept in a directory of their own. Where no vLLM server is named, the built-in
simulator runs in the same process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from twisted_vllm.config.listen import split
from twisted_vllm.config.load import variables_of

#: where what was made is kept, below the directory that twistd is started in
DIRECTORY = ".run"

_MASTER_KEY_NAMES = variables_of("master_key")
_API_BASE_NAMES = variables_of("api_base")


@attrs.frozen
class Quickstart:
    """What was decided.

    Attributes:
        environ: the environment, with a master key.
        master_key: the key that was made, now or at an earlier start; None where one was given.
        database_url: the database where none is named.
        simulator: the listening socket of the simulator, or None where a server was named.
    """

    environ: Mapping[str, str] = attrs.field(repr=False)
    master_key: str | None = attrs.field(repr=False)
    database_url: str
    simulator: socket.socket | None

    @property
    def api_base(self) -> str | None:
        """The simulator's address."""
        return None if self.simulator is None else f"http://127.0.0.1:{self.simulator.getsockname()[1]}"


def prepare(
    environ: Mapping[str, str],
    *,
    has_file: bool,
    make_key: Callable[[], str],
    directory: Path | None = None,
) -> Quickstart:
    """Decide what `environ` leaves open.

    Args:
        environ: the environment.
        has_file: whether there is a configuration file; it may name servers, so no simulator is started beside it.
        make_key: returns a new master key.
        directory: where to keep what is made.

    Raises:
        OSError: the directory cannot be written, or no port is free.
    """
    # absolute, as twistd may change to --rundir before the database is opened
    directory = (directory or Path(DIRECTORY)).absolute()
    directory.mkdir(mode=0o700, exist_ok=True)
    key = None
    if not has_file and not any(environ.get(name) for name in _MASTER_KEY_NAMES):
        key = _kept_key(directory / "master-key", make_key)
        environ = {**environ, _MASTER_KEY_NAMES[0]: key}
    simulator = None
    if not has_file and not any(environ.get(name) for name in _API_BASE_NAMES):
        simulator = socket.socket()
        simulator.bind(("127.0.0.1", 0))
        simulator.listen(128)
        simulator.setblocking(False)
    return Quickstart(environ, key, f"sqlite:///{directory / 'twisted_vllm.sqlite3'}", simulator)


def _kept_key(path: Path, make_key: Callable[[], str]) -> str:
    """Return the key in `path`; make it at the first start, readable by its owner alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_text("ascii").strip()
        if kept:
            return kept
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    key = make_key()
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


def welcome(chosen: Quickstart, listen: str) -> str:
    """Return what to tell the newcomer: the key where it was made here, and the first request to try.

    Args:
        chosen: what was decided.
        listen: the first endpoint string.
    """
    if chosen.master_key is not None:
        bearer = chosen.master_key
        lines = [f"Master key: {chosen.master_key}   (kept in {DIRECTORY}/master-key)"]
    else:
        name = next((name for name in _MASTER_KEY_NAMES if chosen.environ.get(name)), None)
        bearer = f"${name}" if name else "$MASTER_KEY"
        lines = ["Master key: the one that you configured"]
    if chosen.simulator is not None:
        lines.append("vLLM:       a built-in simulator; set HOSTED_VLLM_API_BASE to use a real server")
    lines += [
        "Try it:",
        f"  curl {_base_url(listen)}/vllm/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {bearer}" -H "Content-Type: application/json" \\',
        """    -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}'""",
        "A virtual key for somebody else:",
        f'  curl -X POST {_base_url(listen)}/key/generate -H "Authorization: Bearer {bearer}" -d "{{}}"',
    ]
    return "\n".join(lines) + "\n"


def _base_url(listen: str) -> str:
    """Return what curl takes to reach an endpoint string from this machine."""
    kind, arguments, named = split(listen)
    first = arguments[0] if arguments else ""
    if kind == "unix":
        return f"--unix-socket {named.get('address', first)} http://localhost"
    host = named.get("interface", "")
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if kind == "ssl" else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{named.get('port', first)}"
