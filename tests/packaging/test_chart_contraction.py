"""The chart contracts the schema only where no pod of another version runs, which it asks the cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.packaging.rendered_chart import CHART, VALUES, run_helm

IMAGE = "registry.example.com/gateway:1.2.3"
PATH = "/apis/apps/v1/namespaces/llm/statefulsets/gateway-vllm-passthrough"
GROUP = {"groupVersion": "apps/v1", "version": "v1"}


def resource(kind: str) -> dict[str, Any]:
    name = kind.lower()
    return {"name": f"{name}s", "singularName": name, "namespaced": True, "kind": kind, "verbs": ["get"]}


CORE = [resource(kind) for kind in ("ConfigMap", "Service", "ServiceAccount", "Pod")]

Start = Callable[[str, str], str]


@pytest.fixture
def cluster() -> Iterator[Start]:
    """Return what starts an API server that knows one StatefulSet, and nothing else; it returns its URL."""
    with ExitStack() as stack:

        def start(image: str, revision: str) -> str:
            answers: dict[str, Any] = {
                "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
                "/api": {"kind": "APIVersions", "versions": ["v1"]},
                "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": CORE},
                "/apis": {
                    "kind": "APIGroupList",
                    "groups": [{"name": "apps", "versions": [GROUP], "preferredVersion": GROUP}],
                },
                "/apis/apps/v1": {
                    "kind": "APIResourceList",
                    "groupVersion": "apps/v1",
                    "resources": [resource("StatefulSet")],
                },
                PATH: {
                    "apiVersion": "apps/v1",
                    "kind": "StatefulSet",
                    "metadata": {
                        "name": "gateway-vllm-passthrough",
                        "namespace": "llm",
                        "labels": {"app.kubernetes.io/managed-by": "Helm"},
                        "annotations": {
                            "meta.helm.sh/release-name": "gateway",
                            "meta.helm.sh/release-namespace": "llm",
                        },
                    },
                    "spec": {"template": {"spec": {"containers": [{"name": "gateway", "image": image}]}}},
                    "status": {"currentRevision": "one", "updateRevision": revision},
                },
            }

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    found = answers.get(self.path.partition("?")[0])
                    missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
                    body = json.dumps(found or missing).encode()
                    self.send_response(200 if found else 404)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def upgrade(url: str, step: str) -> tuple[int, str]:
    image = "image.repository=registry.example.com/gateway,image.tag=1.2.3"
    more = ("--set", f"{image},migration.step={step}", "--dry-run=server", "--disable-openapi-validation")
    done = run_helm(
        "template",
        "gateway",
        CHART,
        "--namespace",
        "llm",
        "--values",
        VALUES["workers"],
        *more,
        "--kube-apiserver",
        url,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("image", "revision", "message"),
    [
        ("registry.example.com/gateway:1.2.2", "one", "pods run registry.example.com/gateway:1.2.2, and this upgrade"),
        (IMAGE, "two", "pods of the former version still run"),
    ],
)
def test_it_is_refused_while_pods_of_another_version_run(
    cluster: Start, image: str, revision: str, message: str
) -> None:
    url = cluster(image, revision)
    status, said = upgrade(url, "contract")
    assert status != 0
    assert message in said
    assert upgrade(url, "expand")[0] == 0


def test_it_runs_after_an_upgrade_that_changes_no_version(cluster: Start) -> None:
    status, said = upgrade(cluster(IMAGE, "one"), "contract")
    assert status == 0, said
    assert "helm.sh/hook: post-upgrade" in said
    assert "args: [migrate, contract]" in said
