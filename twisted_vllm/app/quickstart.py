"""``--quickstart``: defaults for everything that is not configured yet.

The master key and the database are stored in a directory of their own. If no vLLM server is configured, the built-in
simulator runs in the same process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import attrs

from twisted_vllm.config.listen import split
from twisted_vllm.config.load import variables_of
from twisted_vllm.config.problems import FILE_SUFFIX

#: the directory for the key and the database, below twistd's working directory
DIRECTORY = ".run"

_MASTER_KEY_NAMES = variables_of("master_key")
_API_BASE_NAMES = variables_of("api_base")


@attrs.frozen
class Quickstart:
    """The chosen defaults.

    Attributes:
        environ: the environment, with a master key.
        master_key: the generated key, from now or an earlier start; None if one is configured.
        database_url: the default database.
        simulator: the simulator's listening socket; None if a server is configured.
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
    """Choose defaults for what `environ` does not configure.

    Args:
        environ: the environment.
        has_file: whether there is a configuration file; it may name servers, so the simulator is not started.
        make_key: returns a new master key.
        directory: where to store the key and the database.

    Raises:
        OSError: the directory cannot be written, or no port is free.
    """
    # absolute, as twistd may change to --rundir before the database is opened
    directory = (directory or Path(DIRECTORY)).absolute()
    directory.mkdir(mode=0o700, exist_ok=True)
    key = None
    if not has_file and _set_one(environ, _MASTER_KEY_NAMES) is None:
        key = _stored_key(directory / "master-key", make_key)
        environ = {**environ, _MASTER_KEY_NAMES[0]: key}
    simulator = None
    if not has_file and _set_one(environ, _API_BASE_NAMES) is None:
        simulator = socket.socket()
        simulator.bind(("127.0.0.1", 0))
        simulator.listen(128)
        simulator.setblocking(False)
    return Quickstart(environ, key, f"sqlite:///{directory / 'twisted_vllm.sqlite3'}", simulator)


def _set_one(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """Return which of the variables, or of those that name a file with its value, is set."""
    return next((each for name in names for each in (name, name + FILE_SUFFIX) if environ.get(each)), None)


def _stored_key(path: Path, make_key: Callable[[], str]) -> str:
    """Return the key in `path`; generate it at the first start, with mode 0600."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        stored = path.read_text("ascii").strip()
        if stored:
            return stored
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    key = make_key()
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


def welcome(chosen: Quickstart, listen: str) -> str:
    """Return the text to print at start: the generated key, and a first request to try.

    Args:
        chosen: the chosen defaults.
        listen: the first endpoint string.
    """
    if chosen.master_key is not None:
        bearer = chosen.master_key
        lines = [f"Master key: {chosen.master_key}   (kept in {DIRECTORY}/master-key)"]
    else:
        name = _set_one(chosen.environ, _MASTER_KEY_NAMES)
        bearer = f"${name}" if name and not name.endswith(FILE_SUFFIX) else "$MASTER_KEY"
        lines = ["Master key: the one that you configured"]
    if chosen.simulator is not None:
        lines.append("vLLM:       a built-in simulator; set HOSTED_VLLM_API_BASE to use a real server")
    lines += [
        "Try it:",
        f"  curl {_base_url(listen)}/vllm/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {bearer}" -H "Content-Type: application/json" \\',
        """    -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}'""",
        "A virtual key for somebody else:",
        f'  curl {_base_url(listen)}/key/generate -H "Authorization: Bearer {bearer}" \\',
        """    -H "Content-Type: application/json" -d '{}'""",
    ]
    if not _base_url(listen).startswith("--unix-socket"):
        lines.append(f"The console:  {_base_url(listen)}/ui   (sign in with the master key)")
    return "\n".join(lines) + "\n"


def _base_url(listen: str) -> str:
    """Return curl's arguments to reach an endpoint from this machine."""
    kind, arguments, named = split(listen)
    first = arguments[0] if arguments else ""
    if kind == "unix":
        return f"--unix-socket {named.get('address', first)} http://localhost"
    host = named.get("interface", "")
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if kind == "ssl" else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{named.get('port', first)}"
