"""The Helm chart: Kubernetes and the gateway take what it makes, and bad values are refused."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import attrs
import kubernetes_validate
import pytest
import yaml

import twisted_vllm.config
from tests.packaging.rendered_chart import (
    CHART,
    EXAMPLES,
    LEAST,
    REPOSITORY,
    VALUES,
    Document,
    configuration,
    gateway_container,
    gateway_pod,
    only,
    pods,
    refusal,
    render,
    rendered,
    run_helm,
)
from tests.self_signed import self_signed_pem
from twisted_vllm.app.tap import Options
from twisted_vllm.cli.main import main

#: the oldest version that the chart takes, one between, and the newest
KUBERNETES = ("1.27", "1.32", "1.37")
#: kinds that Kubernetes itself lacks
CUSTOM = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}
SETS = sorted(VALUES)
PRODUCTION = ("--values", str(EXAMPLES / "production.yaml"))
POSTGRESQL = ("--set", "database.type=postgresql,database.existingSecret=db")


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_to_criticise(name: str) -> None:
    done = run_helm("lint", "--strict", CHART, "--values", VALUES[name])
    assert (done.returncode, re.findall(r"^\[(?:WARNING|ERROR)\].*", done.stdout, re.MULTILINE)) == (0, []), done.stdout


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    documents = rendered(name)
    assert {each["kind"] for each in documents} > {"StatefulSet", "Service", "ConfigMap", "Pod"}
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_lacks_would_be_noticed() -> None:
    wrong = {**only(rendered("single"), "StatefulSet"), "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="spce"):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_every_value_is_explained_where_it_stands_and_known_to_the_schema() -> None:
    def names(value: Any, schema: Document, path: str) -> Iterator[str]:
        if isinstance(value, dict) and schema.get("additionalProperties") is False:
            for name, inner in value.items():
                yield from names(inner, schema["properties"][name], f"{path}.{name}")
            assert sorted(set(schema["properties"]) - set(value) - {"global", *_PROBES}) == [], path
        else:
            yield path

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert len(list(names(values, json.loads((CHART / "values.schema.json").read_text()), ""))) > 80


#: fields of probes that have no value by default
_PROBES = ("successThreshold", "initialDelaySeconds")


def test_the_set_with_everything_leaves_no_option_at_its_default() -> None:
    def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
        if isinstance(value, dict) and value and path[:1] not in (("config",), ("resources",)):
            for name, inner in value.items():
                yield from leaves(inner, (*path, name))
        else:
            yield path, value

    everything = yaml.safe_load(VALUES["everything"].read_text())
    defaults = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    tried = {path[:-depth] if depth else path for path, _ in leaves(everything) for depth in range(len(path))}
    alike = (("serviceAccount", "annotations"),)
    pod = ("startupProbe", "readinessProbe", "livenessProbe", "podSecurityContext", "securityContext", "autoscaling")
    assert [path for path in defaults if path not in tried and path not in alike and path[0] not in pod] == []


@pytest.mark.parametrize("name", SETS)
def test_the_gateway_accepts_its_configuration_without_a_warning(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = rendered(name)
    samples = {"DATABASE_URL": "postgresql://u:p@db:5432/g", "VLLM_PASSTHROUGH_REDIS_URL": "redis://redis:6379/0"}
    [secrets] = [each["projected"] for each in gateway_pod(documents)["volumes"] if each["name"] == "secrets"]
    for source in secrets["sources"]:
        [item] = source["secret"]["items"]
        (tmp_path / item["path"]).write_text(samples.get(item["path"], "of-the-test"))
    for variable in gateway_container(documents)["env"]:
        monkeypatch.setenv(variable["name"], variable["value"].replace("/etc/vllm-passthrough/secrets", str(tmp_path)))
    # the volume of the certificate
    for part in ("tls.crt", "tls.key"):
        (tmp_path / part).write_bytes(self_signed_pem())
    file = tmp_path / "config.yaml"
    file.write_text(configuration(documents).replace("/etc/vllm-passthrough/tls", str(tmp_path)))
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--config", str(file), "--check"])
    said = capsys.readouterr().out
    assert (ended.value.code, re.findall("warning:.*|ignored:.*", said)) == (0, []), said
    port = gateway_container(documents)["ports"][0]["containerPort"]
    assert re.search(rf"^listen: +(tcp|ssl):{port}\b", said, re.MULTILINE), said


@pytest.mark.parametrize("name", SETS)
def test_each_variable_is_one_of_the_gateways_or_named_by_the_configuration(name: str) -> None:
    documents = rendered(name)
    wanted = set(re.findall(r"os\.environ/(\w+)", configuration(documents)))
    reference = (REPOSITORY / "docs" / "configuration.md").read_text()
    known = wanted | set(re.findall(r"`([A-Z][A-Z_]+)`", reference))
    given = yaml.safe_load(VALUES[name].read_text()).get("environment", {})
    for pod in pods(documents):
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            named = {each["name"].removesuffix("_FILE") for each in container["env"]}
            assert sorted(named - known - set(given) - {"TMPDIR"}) == []
            # what the configuration names must be there where it is read
            assert any("--config" in argument for argument in container["args"]) == (wanted <= named) or not wanted


@pytest.mark.parametrize("name", SETS)
def test_each_command_exists_with_its_options(name: str) -> None:
    for pod in pods(rendered(name)):
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            assert container["command"] == ["vllm-passthrough"]
            word, *arguments = container["args"]
            context = main.make_context("vllm-passthrough", [word, "--help"], resilient_parsing=True)
            command = main.get_command(context, word)
            assert command is not None, word
            options = {option for parameter in command.params for option in parameter.opts}
            assert {each.split("=")[0] for each in arguments if each.startswith("--")} <= options


@pytest.mark.parametrize("name", SETS)
def test_no_secret_is_in_any_object_and_no_pod_has_a_token(name: str) -> None:
    documents = rendered(name)
    assert [each["kind"] for each in documents if each["kind"] == "Secret"] == []
    for pod in pods(documents):
        assert pod["spec"]["automountServiceAccountToken"] is False
        # else the variables of Services would be taken for settings
        assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", SETS)
def test_pods_are_confined_as_the_restricted_profile_asks(name: str) -> None:
    for pod in pods(rendered(name)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SETS)
def test_services_and_budgets_select_the_gateways_pods_and_policies_all_pods(name: str) -> None:
    documents = rendered(name)

    def selected(selector: dict[str, str]) -> set[str]:
        found = [each["metadata"]["labels"] for each in pods(documents)]
        return {each["app.kubernetes.io/component"] for each in found if selector.items() <= each.items()}

    gateway = {"gateway"}
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert selected(spec["selector"]) == gateway
        elif document["kind"] in ("PodDisruptionBudget", "StatefulSet"):
            assert selected(spec["selector"]["matchLabels"]) == gateway
        elif document["kind"] == "NetworkPolicy":
            assert selected(spec["podSelector"]["matchLabels"]) >= {"gateway", "test"}


@pytest.mark.parametrize("name", SETS)
def test_names_refer_to_objects_of_the_chart(name: str) -> None:
    documents = rendered(name)
    names = {(each["kind"], each["metadata"]["name"]) for each in documents}
    pod = gateway_pod(documents)
    assert ("Service", only(documents, "StatefulSet")["spec"]["serviceName"]) in names
    volumes = {each["name"] for each in pod["volumes"]} | {
        each["metadata"]["name"] for each in only(documents, "StatefulSet")["spec"].get("volumeClaimTemplates", [])
    }
    assert {each["name"] for each in gateway_container(documents)["volumeMounts"]} == volumes
    [config] = [each["configMap"]["name"] for each in pod["volumes"] if each["name"] == "config"]
    assert ("ConfigMap", config) in names
    for each in documents:
        if each["kind"] == "HorizontalPodAutoscaler":
            target = each["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in names
            assert "replicas" not in only(documents, "StatefulSet")["spec"]
        if each["kind"] == "HTTPRoute":
            [backend] = each["spec"]["rules"][0]["backendRefs"]
            ports = only(documents, "Service", backend["name"])["spec"]["ports"]
            assert [port["port"] for port in ports] == [backend["port"]]


def test_kubernetes_waits_longer_than_the_gateway_drains() -> None:
    assert gateway_pod(render(*LEAST))["terminationGracePeriodSeconds"] == 15 + 300 + 15
    # 7.5 + 60 + 30
    assert gateway_pod(rendered("everything"))["terminationGracePeriodSeconds"] == 98


def test_a_balancer_notices_within_the_delay_of_the_drain() -> None:
    probe = gateway_container(render(*LEAST))["readinessProbe"]
    longest = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert longest < yaml.safe_load(configuration(render(*LEAST)))["passthrough"]["drain_delay"]


def test_the_spool_is_on_a_volume_that_outlives_its_pod() -> None:
    stateful = only(render(*LEAST), "StatefulSet")["spec"]
    [claim] = stateful["volumeClaimTemplates"]
    mounts = {each["mountPath"]: each["name"] for each in gateway_container(render(*LEAST))["volumeMounts"]}
    assert mounts["/var/lib/vllm-passthrough"] == claim["metadata"]["name"]
    assert "--rundir=/var/lib/vllm-passthrough" in gateway_container(render(*LEAST))["args"]
    assert stateful["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_a_change_of_the_configuration_restarts_pods_and_nothing_else_does() -> None:
    def template(*options: str) -> Document:
        found: Document = only(render(*LEAST, *options), "StatefulSet")["spec"]["template"]
        return found

    changed = ("--set", "config.passthrough.drain_timeout=60")
    assert template()["metadata"]["annotations"] != template(*changed)["metadata"]["annotations"]
    assert template() == template("--set", "metrics.prometheusRule.enabled=true,podDisruptionBudget.enabled=false")
    kept = ("--set", "restartOnConfigChange=false")
    assert template(*kept)["metadata"] == template(*kept, *changed)["metadata"]


def test_alerts_and_dashboards_are_those_of_the_repository() -> None:
    documents = rendered("production")
    rules = yaml.safe_load((REPOSITORY / "config" / "prometheus" / "alerts.yml").read_text())
    assert only(documents, "PrometheusRule")["spec"] == rules
    for path in (REPOSITORY / "config" / "grafana").glob("*.json"):
        board = only(documents, "ConfigMap", f"-{path.stem}")
        assert json.loads(board["data"][f"vllm-passthrough-{path.stem}.json"]) == json.loads(path.read_text())
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_prometheus_gives_the_job_the_name_that_alerts_expect() -> None:
    gateway, servers = only(rendered("production"), "ServiceMonitor")["spec"]["endpoints"]
    assert {"targetLabel": "job", "replacement": "vllm-passthrough"} in gateway["relabelings"]
    assert (gateway["path"], servers["path"]) == ("/metrics", "/metrics/upstreams")
    assert gateway["authorization"]["credentials"] == {"name": "gateway-keys", "key": "METRICS_KEY"}
    [first] = [each for each in servers["relabelings"] if each.get("action") == "keep"]
    assert first["regex"] == only(rendered("production"), "StatefulSet")["metadata"]["name"] + "-0"


def test_pods_are_scaled_by_a_metric_of_the_gateway_that_the_adapter_serves(tmp_path: Path) -> None:
    [metric] = only(rendered("production"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"`{name}{{" in (REPOSITORY / "docs" / "metrics.md").read_text()
    [rule] = yaml.safe_load((EXAMPLES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert (rule["name"]["as"], f'__name__="{name}"' in rule["seriesQuery"]) == (name, True)
    if which("promtool") is None:
        pytest.skip("promtool is not installed: the rest of the test asks it")
    query = rule["metricsQuery"]
    for word, stands_for in (("GroupBy", "pod"), ("Series", name), ("LabelMatchers", 'namespace="llm",pod=~"a|b"')):
        query = query.replace(f"<<.{word}>>", stands_for)
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [{"record": "a:b", "expr": query}]}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_of_the_chart_has_files_and_no_links(tmp_path: Path) -> None:
    done = run_helm("package", CHART, "--destination", tmp_path, "--version", "1.2.3", "--app-version", "1.2.3")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "vllm-passthrough-1.2.3.tgz") as archive:
        assert [each.name for each in archive if not each.isfile()] == []
        alerts = archive.extractfile("vllm-passthrough/files/alerts.yml")
        assert alerts is not None
        assert alerts.read() == (REPOSITORY / "config" / "prometheus" / "alerts.yml").read_bytes()


def test_the_page_names_values_and_files_that_exist() -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    kept = ("passthrough", "limits")
    named = re.findall(r"`([a-z]\w+(?:\.\w+)+)(?::[^`]*|=[^`]*)?`", page)
    named += [each.split("=")[0] for given in re.findall(r"--set ([\w.=,/-]+)", page) for each in given.split(",")]
    unknown = []
    for name in named:
        at: Any = values
        for part in name.split("."):
            # below `config` stand the gateway's own settings, and in an empty mapping the user's names
            at = at.get(part, KeyError) if isinstance(at, dict) and at and at is not values["config"] else at
        if at is KeyError and not name.startswith(kept):
            unknown.append(name)
    assert (unknown, len(named) > 15) == ([], True)
    files = re.findall(r"(config/helm/[\w./-]*\w)", page)
    assert [file for file in files if not (REPOSITORY / file).exists()] == []


def test_what_the_page_installs_can_be_rendered_and_its_commands_can_be_read() -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    installs = re.findall(
        r"^helm --namespace llm install gateway config/helm/vllm-passthrough (.*)$", page, re.MULTILINE
    )
    assert installs
    for options in installs:
        found = [str(REPOSITORY / word) if word.startswith("config/") else word for word in options.split()]
        assert gateway_container(render(*found))["image"].startswith("registry.example.com/vllm-passthrough:")
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert set(re.findall(r"statefulset/([\w-]+)", page)) == {only(render(*LEAST), "StatefulSet")["metadata"]["name"]}


def secret_settings() -> set[str]:
    """The names of settings whose values are secrets, from their declarations."""
    found = set()
    for module in pkgutil.iter_modules(twisted_vllm.config.__path__, "twisted_vllm.config."):
        for each in vars(importlib.import_module(module.name)).values():
            if isinstance(each, type) and attrs.has(each):
                found |= {
                    field.metadata["setting"].name or field.name
                    for field in attrs.fields(each)
                    if "setting" in field.metadata and "Secret" in str(field.type)
                }
    return found


def test_each_setting_that_is_a_secret_is_refused_in_the_configuration() -> None:
    names = secret_settings()
    assert names >= {"api_key", "client_secret", "secret_access_key", "headers", "master_key", "database_url"}
    checks = (CHART / "templates" / "_checks.tpl").read_text()
    # a URL is no secret but for its password, for which all texts are searched
    assert sorted(name for name in names - {"url"} if name not in checks) == []


SERVER = "config.model_list[0].litellm_params"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (),
            "secrets.masterKey.existingSecret must name a Secret with the master key. Make one: kubectl create secret",
        ),
        ((*LEAST, "--set", "replicaCont=2"), "additional properties 'replicaCont' not allowed"),
        ((*LEAST, "--set", "replicaCount=two"), "at '/replicaCount': got string, want integer"),
        ((*LEAST, "--set", "replicaCount=2"), "several pods need one database"),
        ((*LEAST, "--set", "autoscaling.enabled=true"), "several pods need one database"),
        ((*LEAST, "--set", "database.type=postgresql"), "database.existingSecret must name the Secret"),
        ((*LEAST, "--set", "database.type=mysql"), "value must be one of 'sqlite', 'postgresql'"),
        ((*LEAST, "--set", "database.existingSecret=db"), "set database.type to postgresql"),
        ((*LEAST, "--set", "config.passthrough.drain_timeout=null"), "missing property 'drain_timeout'"),
        ((*LEAST, "--set", "config.passthrough.workers=auto"), "write a number"),
        ((*LEAST, "--set", "config.passthrough.listen=tcp:1"), "config.passthrough.listen is set by the chart"),
        ((*LEAST, "--set", "config.general_settings.master_key=sk-1"), "use secrets.masterKey"),
        ((*LEAST, "--set", "config.environment_variables.A=b"), "use environment, or secrets.environment"),
        ((*LEAST, "--set", f"{SERVER}.api_key=sk-1"), f"{SERVER}.api_key is a secret, and config is no place for one"),
        ((*LEAST, "--set", "config.passthrough.sinks[0].headers.authorization=x"), "headers.authorization is a secret"),
        ((*LEAST, "--set", "config.general_settings.alert_to_webhook_url.x[0]=https://h"), "x[0] is a secret"),
        ((*LEAST, "--set", "config.passthrough.sinks[0].url=https://u:p@h/"), "has a password in its URL"),
        ((*LEAST, "--set", "secrets.environment.A=b"), "at '/secrets/environment/A': got string, want object"),
        ((*LEAST, "--set", "secrets.environment.A.existingSecret=b"), "missing property 'key'"),
        ((*LEAST, "--set", "environment.API_TOKEN=b"), "invalid propertyName 'API_TOKEN'"),
        ((*LEAST, "--set", "persistence.size=ten"), "at '/persistence/size'"),
        ((*LEAST, "--set", "service.containerPort=80"), "minimum: got 80, want 1,024"),
        ((*LEAST, "--set", "image.digest=sha256:1"), "at '/image/digest'"),
        ((*LEAST, "--set", "podLabels.app\\.kubernetes\\.io/name=x"), "invalid propertyName"),
        ((*LEAST, "--set", "migration.enabled=true,migration.existingSecret=x"), "migration is for PostgreSQL"),
        ((*LEAST, *POSTGRESQL, "--set", "migration.enabled=true"), "migration.existingSecret must name"),
        ((*LEAST, "--set", "networkPolicy.enabled=true"), "networkPolicy.ingress names nobody"),
        (
            (*LEAST, "--set", "networkPolicy.enabled=true,networkPolicy.ingress.namespaces={a}"),
            "networkPolicy.egress.to names nobody",
        ),
        ((*PRODUCTION, "--set", "networkPolicy.egress.to[0].cidr=10.0.0.0/8"), "networkPolicy.egress.to[0] must have"),
        ((*LEAST, "--set", "httpRoute.enabled=true"), "httpRoute.parentRefs must name the Gateway"),
        ((*LEAST, "--set", "ingress.enabled=true"), "ingress.hosts must name a host"),
        ((*PRODUCTION, "--set", "autoscaling.minReplicas=20"), "minReplicas must not be more"),
        ((*LEAST, "--kube-version", "1.26.0"), "chart requires kubeVersion: >=1.27.0-0"),
    ],
)
def test_bad_values_are_refused_with_words_that_help(options: tuple[str, ...], message: str) -> None:
    said = refusal(*options)
    # Helm 3 says what a schema refuses in other words
    is_old = "specifications of the schema" in said and run_helm("version", "--short").stdout.startswith("v3.")
    assert is_old or message in said
