"""Runs the shell blocks of a document as its reader would: from the first to the last, in one directory.

A reader has a gateway in front of a server. Here it is a simulator, on ports that are free instead of 4000 and 8000.
HTML comments directly above a block say what readers need not see:

- ``<!-- in config.yaml -->``: YAML that the page's gateway has in its configuration.
- ``<!-- not run: REASON -->``: the block needs what is not here.
- ``<!-- first: COMMAND -->``: what the text takes for granted, such as a team that exists; a shell command.
- ``<!-- needs: PROGRAM -->``: the block is run where this program is installed.
- ``<!-- answers: 404 -->``: what curl gets, where it is not a success.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from benchmarks.free_ports import free_port
from docs.site.markdown import REPOSITORY, Block
from tests.end_to_end.twistd_harness import answers, ask, wait_until

#: seconds that a block may take
PATIENCE = 30
MASTER_KEY = "sk-master-of-the-documents-0123"

#: a block whose last command serves until it is stopped
_SERVES = re.compile(
    r"^(?:\S+ )*\S*(?:make run|(?:twistd -n vllm-passthrough|vllm-passthrough run)"
    r"(?![^\n]* --(?:check|help|import-litellm))[^\n]*)\s*\Z",
    re.MULTILINE,
)
#: `export KEY=sk-...`: a value that an earlier answer showed
_SHOWN = re.compile(r"^export (\w+)=sk-(?:\.\.\.|…).*$", re.MULTILINE)
_PROMPTED = re.compile(r"^\$ ((?:.*\\\n)*.*\n)", re.MULTILINE)

#: curl shows the status to the test and the answer to the block, and remembers the answer
_SHELL = r"""
set -aeo pipefail
trap 'env -0 >"$STATE/environment"; pwd >"$STATE/directory"' EXIT
curl() {
    command curl --show-error "$@" --write-out '%{stderr}\n%{http_code}\n' 2>"$STATE/told" | tee "$STATE/answer"
    case "$EXPECTED" in *"$(tail -n 1 "$STATE/told")"*) ;; *)
        echo "curl answered $(cat "$STATE/told"): $(cat "$STATE/answer")" >&2; exit 97 ;;
    esac
}
answer() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$STATE/answer" "$1"; }
"""

#: the gateway's programs, which listen on a free port in place of 4000
_PROGRAM = """\
#!{python}
import sys
from {module} import {function}
sys.argv[0] = "{name}"
for command in ("vllm-passthrough", "run"):
    if command in sys.argv[1:] and "--check" not in sys.argv:
        sys.argv.insert(sys.argv.index(command, 1) + 1, "--listen=tcp:{port}:interface=127.0.0.1")
sys.exit({function}())
"""
_PROGRAMS = {
    "twistd": ("twisted.scripts.twistd", "run"),
    "vllm-passthrough": ("twisted_vllm.cli.entry", "main"),
}


@attrs.frozen
class Servers:
    """The simulators' ports; the documents call them `gpu-1`, `gpu-2` …, and vLLM on this machine."""

    ports: tuple[int, int]

    def settings(self) -> str:
        """Return the configuration of a reader who followed the pages about servers."""
        entries = [
            f"  - model_name: {name}\n    litellm_params: {{model: hosted_vllm/{model}, api_base: 'http://127.0.0.1:{port}'}}\n"
            for name, model, port in (
                ("simulated-model", "simulated-model", self.ports[0]),
                ("qwen", "qwen", self.ports[0]),
                ("qwen", "qwen", self.ports[1]),
                ("qwen-7b", "qwen", self.ports[0]),
            )
        ]
        return f"model_list:\n{''.join(entries)}general_settings:\n  master_key: os.environ/LITELLM_MASTER_KEY\n"


class Reader:
    """Follows one document.

    Attributes:
        ran: how many blocks were run.
    """

    def __init__(self, directory: Path, servers: Servers) -> None:
        self.ran = 0
        self._port = free_port()
        self._state = directory / "state"
        self._home = directory / "home"
        self._directory = directory / "checkout"
        for each in (self._state, self._home, self._directory):
            each.mkdir()
        self._make_checkout()
        (self._directory / "config.yaml").write_text(servers.settings())
        self._gateway: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        first, second = servers.ports
        self._places = {
            "http://127.0.0.1:4000": f"http://127.0.0.1:{self._port}",
            "http://localhost:4000": f"http://127.0.0.1:{self._port}",
            "127.0.0.1:8000": f"127.0.0.1:{first}",
            "gpu-1:8000": f"127.0.0.1:{first}",
            "gpu-2:8000": f"127.0.0.1:{second}",
            "gpu-9:8000": f"127.0.0.1:{second}",
            "9999": str(free_port()),
            "/srv/": f"{directory}/srv-",
        }
        self._environment: dict[str, str] = {
            "PATH": f"{self._directory / '.venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "STATE": str(self._state),
            "EXPECTED": "200 201 202 204",
            "GATEWAY": f"http://127.0.0.1:{self._port}",
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "MASTER_KEY": MASTER_KEY,
        }

    def _make_checkout(self) -> None:
        """Make what a reader has cloned: as much of it as the commands need."""
        programs = self._directory / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in ("Makefile", "setup.cfg", "pyproject.toml", "config", "benchmarks"):
            (self._directory / name).symlink_to(REPOSITORY / name)
        for name, (module, function) in _PROGRAMS.items():
            program = programs / name
            program.write_text(
                _PROGRAM.format(python=sys.executable, name=name, module=module, function=function, port=self._port)
            )
            program.chmod(0o755)
        python = programs / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        # newer than setup.cfg: make installs nothing
        for name in ("installed", "installed-dev"):
            (self._directory / ".venv" / name).touch()

    def start_gateway(self, blocks: Iterable[Block]) -> None:
        """Start what the readers of most pages have, with the settings of the page."""
        with (self._directory / "config.yaml").open("a") as file:
            file.writelines(self._placed(block.text) for block in blocks if "in config.yaml" in block.marks)
        self._serve("twistd -n --pidfile= vllm-passthrough --config config.yaml", keep_key=True)
        status, made = ask(self._port, "/key/generate", MASTER_KEY, "POST", "{}")
        assert status == 200, made
        self._environment["KEY"] = json.loads(made)["key"]

    def do(self, block: Block) -> None:
        """Run a block.

        Raises:
            AssertionError: it failed, or it did not print what the document shows.
        """
        for mark in block.marks:
            if mark.startswith("first: "):
                self._run(self._placed(mark.removeprefix("first: ")), block, {})
        text = self._placed(block.text)
        expected = [mark.removeprefix("answers: ") for mark in block.marks if mark.startswith("answers: ")]
        more = {"EXPECTED": expected[0]} if expected else {}
        if block.language == "console":
            self._converse(text, block)
        elif _SERVES.search(re.sub(r" +#.*", "", text.rstrip())):
            self._serve(text, keep_key="export" in text)
        else:
            self._run(text, block, more)
        self.ran += 1

    def _placed(self, text: str) -> str:
        for written, here in self._places.items():
            text = text.replace(written, here)

        def shown(found: re.Match[str]) -> str:
            if found[1] == "MASTER_KEY":
                return f"export MASTER_KEY={self._environment['MASTER_KEY']}"
            return f'export {found[1]}="$(answer key)"'

        text = _SHOWN.sub(shown, text)
        return text.replace("MASTER_KEY=sk-1234", f"MASTER_KEY={MASTER_KEY}")

    def _run(self, text: str, block: Block, more: Mapping[str, str]) -> str:
        done = subprocess.run(
            ["bash", "-c", f"{_SHELL}\n{text}"],
            cwd=self._directory,
            env={**self._environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, (
            f"{block.document}:{block.line}: exit {done.returncode}\n{text}\n{done.stdout}\n{done.stderr}"
        )
        pairs = (self._state / "environment").read_text().rstrip("\0").split("\0")
        kept = dict(pair.split("=", 1) for pair in pairs if not pair.startswith("BASH_FUNC"))
        self._environment = {**kept, "EXPECTED": self._environment["EXPECTED"]}
        self._directory = Path((self._state / "directory").read_text().rstrip("\n"))
        return done.stdout

    def _converse(self, text: str, block: Block) -> None:
        """Run a block that shows commands behind a prompt, and compare what they print with the rest of it."""
        commands = "".join(_PROMPTED.findall(text)) or self._environment["LAST_COMMANDS"]
        shown = _PROMPTED.sub("", text)
        # what is shown without a command is what the same command prints when it is repeated
        for _ in range(1 if _PROMPTED.search(text) else 5):
            printed = self._run(commands, block, {"EXPECTED": "200 401 403 404 409 429"})
            if printed.split("\n", 1)[0].strip() == shown.split("\n", 1)[0].strip():
                break
        self._environment["LAST_COMMANDS"] = commands
        have = [_form(line) for line in printed.splitlines()]
        missing = [line for line in shown.splitlines() if not any(re.fullmatch(_pattern(line), each) for each in have)]
        assert missing == [], f"{block.document}:{block.line} shows {missing}, and it printed:\n{printed}"

    def _serve(self, text: str, *, keep_key: bool) -> None:
        """Start what serves until it is stopped, in place of what served before."""
        self._stop(self._gateway)
        log = self._state / "gateway.log"
        # `make run` prints a key of its own where the reader has configured none
        environment = dict(self._environment)
        if not keep_key and "--config" not in text:
            del environment["LITELLM_MASTER_KEY"]
        with log.open("wb") as file:
            self._gateway = subprocess.Popen(
                ["bash", "-c", f"set -e\n{text}"],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        gateway = self._gateway
        wait_until(lambda: answers(self._port) or gateway.poll() is not None)
        assert gateway.poll() is None, log.read_text()
        printed = re.search(r"^Master key: (\S+)", log.read_text(), re.MULTILINE)
        if printed:
            self._environment["MASTER_KEY"] = printed[1]

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is None or process.poll() is not None:
            return
        # with what it started
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)

    def close(self) -> None:
        """Stop what runs."""
        self._stop(self._gateway)


def _form(line: str) -> str:
    """Return a line with its header's name in lower case."""
    name, colon, rest = line.rstrip().partition(": ")
    return f"{name.lower()}{colon}{rest}" if re.fullmatch(r"[\w-]+", name) else line.rstrip()


def _pattern(line: str) -> str:
    """Return what a printed line looks like: any number for a number, anything for an ellipsis; any value of a time."""
    name, colon, _ = line.partition(": ")
    if colon and re.fullmatch(r"[a-z-]+", name) and not line.startswith("x-vllm-passthrough-error"):
        return rf"{re.escape(name)}: .+"
    return re.sub(r"\d+", r"\\d+", re.sub(r"(?:\\ )?(?:(?:\\\.){3}|…)", ".*", re.escape(line)))


def parse_json(text: str) -> Any:
    """Return the value of a JSON block, whose ellipses stand for what it leaves out.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(text)
