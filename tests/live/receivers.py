"""Real receivers of traces: Arize Phoenix and MLflow, each in a virtual environment of its own.

    python -m tests.live.receivers DIRECTORY

installs both (about 2 GB, a few minutes) and says what to set:

``PHOENIX_BIN``: the program ``phoenix``; ``MLFLOW_BIN``: the program ``mlflow``. Without one, the tests that need it
are skipped. The tests start and stop them, each with a directory of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks.free_ports import free_port
from tests.live.live_gateway import PATIENCE, ask, json_request, wait_until

PACKAGES = {"phoenix": ("arize-phoenix>=20.26", "PHOENIX_BIN"), "mlflow": ("mlflow>=3.6", "MLFLOW_BIN")}
#: seconds until a receiver serves: both import for long, and make their databases
START_PATIENCE = 180.0


def program(name: str) -> str:
    """Return a receiver's program, or skip the test."""
    package, variable = PACKAGES[name]
    found = os.environ.get(variable, "")
    if not found:
        pytest.skip(f"this test needs {package}: set {variable} (python -m tests.live.receivers DIRECTORY installs it)")
    return found


@contextmanager
def serving(
    arguments: Sequence[str], directory: Path, is_ready: Callable[[], bool], **variables: str
) -> Iterator[None]:
    """Run a program until it serves, and stop it at the end."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    log = directory / "receiver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=directory,
            env={**environment, "HOME": str(directory), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def serves() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return is_ready()
        except OSError:
            return False

    try:
        wait_until(serves, f"{arguments[0]} serves", START_PATIENCE)
        yield
    finally:
        # with the processes that it started
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@attrs.frozen
class Phoenix:
    """A running Phoenix.

    Attributes:
        url: its base; OTLP over HTTP and its own APIs.
        grpc_url: OTLP over gRPC.
    """

    url: str
    grpc_url: str

    def graphql(self, query: str, **variables: Any) -> Any:
        """Ask its GraphQL API."""
        answer = ask(self.url, "POST", "/graphql", **json_request({"query": query, "variables": variables}))
        assert answer.status == 200, answer.body
        assert "errors" not in answer.json, answer.json["errors"]
        return answer.json["data"]

    def price(self, model: str, prompt: float, completion: float) -> None:
        """Tell it what a model costs, in US dollars for a million tokens: it takes no costs from spans."""
        self.graphql(
            "mutation($input: CreateModelMutationInput!) { createModel(input: $input) { model { id } } }",
            input={
                "name": model,
                "namePattern": f"^{model}$",
                "costs": [
                    {"tokenType": "input", "costPerMillionTokens": prompt, "kind": "PROMPT"},
                    {"tokenType": "output", "costPerMillionTokens": completion, "kind": "COMPLETION"},
                ],
            },
        )

    def spans(self, project: str) -> list[dict[str, Any]]:
        """Return the spans of a project by its REST API; none before it has the project."""
        answer = ask(self.url, "GET", f"/v1/projects/{project}/spans?limit=100")
        return list(answer.json["data"]) if answer.status == 200 else []

    def cost(self, span: str) -> float:
        """Return the cost of a span and of those below it, in US dollars."""
        query = "query($id: ID!) { node(id: $id) { ... on Span { trace { costSummary { total { cost } } } } } }"
        found = self.graphql(query, id=span)["node"]["trace"]["costSummary"]["total"]["cost"]
        return float(found or 0.0)


@contextmanager
def phoenix(directory: Path) -> Iterator[Phoenix]:
    """Run Phoenix."""
    path = program("phoenix")
    port, grpc_port, other_port = free_port(), free_port(), free_port()
    found = Phoenix(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{grpc_port}")
    with serving(
        [path, "serve"],
        directory,
        lambda: ask(found.url, "GET", "/healthz").status == 200,
        PHOENIX_WORKING_DIR=str(directory),
        PHOENIX_HOST="127.0.0.1",
        PHOENIX_PORT=str(port),
        PHOENIX_GRPC_PORT=str(grpc_port),
        PHOENIX_PROMETHEUS_PORT=str(other_port),
        PHOENIX_TELEMETRY_ENABLED="false",
    ):
        yield found


@attrs.frozen
class MlFlow:
    """A running MLflow.

    Attributes:
        url: its base; OTLP over HTTP and its own API.
    """

    url: str

    def traces(self) -> list[dict[str, Any]]:
        """Return the traces of the default experiment, the newest first."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
        body = {"locations": [place], "max_results": 50}
        answer = ask(self.url, "POST", "/api/3.0/mlflow/traces/search", **json_request(body))
        assert answer.status == 200, answer.body
        return list(answer.json.get("traces", []))

    def metadata(self, trace: dict[str, Any], name: str) -> Any:
        """Return a figure of a trace, which is JSON in text."""
        return json.loads(trace["trace_metadata"][f"mlflow.trace.{name}"])


@contextmanager
def mlflow(directory: Path) -> Iterator[MlFlow]:
    """Run MLflow with a database, which OTLP needs."""
    path = program("mlflow")
    port = free_port()
    found = MlFlow(f"http://127.0.0.1:{port}")
    with serving(
        [
            *(path, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
            *("--artifacts-destination", str(directory / "artifacts")),
        ],
        directory,
        lambda: ask(found.url, "GET", "/health").status == 200,
        MLFLOW_DISABLE_TELEMETRY="true",
    ):
        yield found


def main(directory: str) -> None:
    """Install both below a directory, and say what to set."""
    for name, (package, variable) in PACKAGES.items():
        place = Path(directory, name).absolute()
        if not place.exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin" / "pip"), "install", "--quiet", package], check=True)
        sys.stdout.write(f"export {variable}={place / 'bin' / name}\n")


if __name__ == "__main__":
    main(sys.argv[1])
