"""The Helm chart as Kubernetes gets it, rendered by Helm itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "config" / "helm" / "vllm-passthrough"
EXAMPLES = REPOSITORY / "config" / "helm" / "examples"
#: seconds that Helm is given
PATIENCE = 60

#: sets of values, by their names: the files, and what else is set
VALUES: Mapping[str, Path] = {
    "single": EXAMPLES / "single.yaml",
    "production": EXAMPLES / "production.yaml",
    **{path.stem: path for path in sorted((Path(__file__).parent / "chart_values").glob("*.yaml"))},
}
#: the least that must be named
LEAST = ("--set", "secrets.masterKey.existingSecret=keys")

#: libyaml where PyYAML has it: dashboards are large
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Document = dict[str, Any]


@cache
def helm() -> str:
    """Return Helm's path; without one, the test is skipped."""
    beside = Path(sys.executable).with_name("helm")
    found = os.environ.get("HELM") or (str(beside) if beside.exists() else shutil.which("helm"))
    if found is None:
        pytest.skip("helm is not installed: `make helm` fetches it")
    return found


def run_helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm, which neither reads nor writes what is the user's own."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    nowhere = dict.fromkeys(("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME"), "/nonexistent")
    return subprocess.run(
        [helm(), *map(str, arguments)],
        env={**kept, **nowhere},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@cache
def render(*options: str) -> Sequence[Document]:
    """Return the objects of the chart with these options of ``helm template``; they are shared, so change none."""
    done = run_helm("template", "gateway", CHART, "--namespace", "llm", *options)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, _Loader) if document]


def rendered(name: str) -> Sequence[Document]:
    """Return the objects of one of the sets of values."""
    return render("--values", str(VALUES[name]))


def refusal(*options: str) -> str:
    """Return what Helm says of values that it refuses."""
    done = run_helm("template", "gateway", CHART, *options)
    assert done.returncode != 0, done.stdout
    return done.stderr


def only(documents: Sequence[Document], kind: str, ending: str = "") -> Document:
    """Return the one object of a kind whose name ends so."""
    [found] = [each for each in documents if each["kind"] == kind and each["metadata"]["name"].endswith(ending)]
    return found


def pods(documents: Sequence[Document]) -> list[Document]:
    """Return what is said of pods: their labels as `metadata`, and their `spec`."""
    templates = [each["spec"]["template"] for each in documents if each["kind"] in ("StatefulSet", "Job")]
    return templates + [each for each in documents if each["kind"] == "Pod"]


def configuration(documents: Sequence[Document]) -> str:
    """Return the text of the gateway's configuration file."""
    [text] = [each["data"]["config.yaml"] for each in documents if "config.yaml" in each.get("data", {})]
    return str(text)


def gateway_pod(documents: Sequence[Document]) -> Document:
    """Return the spec of the gateway's pods."""
    spec: Document = only(documents, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def gateway_container(documents: Sequence[Document]) -> Document:
    """Return the gateway's container."""
    [container] = gateway_pod(documents)["containers"]
    return dict(container)
