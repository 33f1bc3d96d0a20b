"""The stack of ``config/compose``: what it names exists, and nothing in it is open or unbounded."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from benchmarks.free_ports import free_port
from twisted_vllm.cli.main import main
from twisted_vllm.config.load import load, variables
from twisted_vllm.config.problems import FILE_SUFFIX
from twisted_vllm.config.settings import Settings

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "config" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text("utf-8")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")


def interpolated(text: str) -> Any:
    return yaml.safe_load(_VARIABLE.sub(lambda found: found[2] or "", text).replace("$$", "$"))


STACK = interpolated(TEXT)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
GATEWAY = SERVICES["gateway"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the folder of settings with the secrets of the stack."""
    copy = tmp_path_factory.mktemp("stack") / "config"
    shutil.copytree(REPOSITORY / "config", copy, ignore=shutil.ignore_patterns("secrets", ".env"))
    prepare(copy)
    return copy / "compose"


def prepare(folder: Path) -> str:
    done = subprocess.run(
        ["sh", "compose/prepare"], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings_of(prepared: Path) -> Settings:
    """Return the gateway's settings as the container would have them."""
    environ = {
        name: str(prepared / "secrets" / Path(value).name) if name.endswith(FILE_SUFFIX) else value
        for name, value in GATEWAY["environment"].items()
    }
    return load(file=str(prepared / "gateway.yaml"), environ={**environ, "VLLM_PASSTHROUGH_LISTEN": "tcp:4000"})


@pytest.mark.parametrize("files", [("compose.yaml",), ("gpu.yaml",)])
def test_the_files_are_of_the_compose_specification(files: tuple[str, ...]) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    if not program.exists():
        pytest.skip("check-jsonschema is not installed: make test installs it")
    command: list[str | Path] = [program, "--builtin-schema", "vendor.compose-spec", *(FOLDER / name for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["simulator", "vllm"])
def test_docker_compose_itself_takes_the_files(prepared: Path, profile: str) -> None:
    command = ["docker", "compose"]
    found = shutil.which("docker") and subprocess.run([*command, "version"], capture_output=True, check=False)
    if not found or found.returncode:
        if shutil.which("docker-compose") is None:
            pytest.skip("docker compose is not installed")
        command = ["docker-compose"]
    more = ["-f", "gpu.yaml"] if profile == "vllm" else []
    done = subprocess.run(
        [*command, "-f", "compose.yaml", *more, "--profile", profile, "config", "--quiet"],
        cwd=prepared,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_prepare_makes_each_secret_once_and_differently(prepared: Path, tmp_path: Path) -> None:
    secrets = {path.name: path.read_text() for path in (prepared / "secrets").iterdir()}
    assert set(secrets) == set(STACK["secrets"])
    for name, secret in STACK["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    assert stat.S_IMODE((prepared / "secrets").stat().st_mode) == 0o700
    # a container has other users than the machine
    assert {stat.S_IMODE(path.stat().st_mode) for path in (prepared / "secrets").iterdir()} == {0o444}
    assert prepare(prepared.parent) == ""
    shutil.copytree(FOLDER, tmp_path / "compose", ignore=shutil.ignore_patterns("secrets", ".env"))
    prepare(tmp_path)
    for name in set(secrets) - {"hf_token"}:
        assert (tmp_path / "compose" / "secrets" / name).read_text() != secrets[name], name
    made = [text.strip() for name, text in secrets.items() if name.endswith(("_key", "_password"))]
    assert len(set(made)) == len(made)
    assert all(len(text) >= 64 for text in made)


def test_no_secret_ships() -> None:
    tracked = subprocess.run(["git", "ls-files", "config"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("this copy has no history")
    assert [name for name in tracked.stdout.splitlines() if "/secrets/" in name or name.endswith("/.env")] == []
    assert not re.search(r"(?i)(password|secret|token|key)\w*: [\"']?[^\s{\"'/]*[0-9][^\s/]{6,}", TEXT)


def test_the_variables_have_the_defaults_that_the_example_names() -> None:
    example = dict(
        line.split("=", 1) for line in (FOLDER / "env.example").read_text().splitlines() if line and line[0] != "#"
    )
    used = dict(_VARIABLE.findall(TEXT))
    # which profiles start is read by docker compose itself
    assert example == {**used, "COMPOSE_PROFILES": ""}
    assert set(dict(_VARIABLE.findall((FOLDER / "gpu.yaml").read_text()))) <= set(used)


def test_each_mounted_file_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name}: {volume}"
                assert volume.endswith(":ro"), f"{name}: {volume}"
            else:
                assert source in STACK["volumes"], f"{name}: {volume}"
        assert set(service.get("secrets", ())) <= set(STACK["secrets"])
        text = json.dumps(service) + "".join(
            (FOLDER / volume.split(":")[0]).read_text() for volume in service.get("volumes", ()) if ".yml:" in volume
        )
        named = set(re.findall(r"/run/secrets/([a-z_]+)", text))
        assert named == set(service.get("secrets", ())), name


def test_each_service_is_confined_and_bounded() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert service["logging"]["options"]["max-size"], name
        assert not {"privileged", "cap_add", "pid", "ipc", "network_mode"} & set(service), name
        # vLLM compiles kernels wherever its libraries like
        assert service.get("read_only") is True or name == "vllm", name
        assert "healthcheck" in service, name
        assert re.search(r":[^:]*[0-9]", service["image"]) or "vllm-passthrough" in service["image"], name


def test_only_the_gateway_and_grafana_are_published_and_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:4000:4000"], "grafana": ["127.0.0.1:3000:3000"]}
    with_models = {name for name, service in SERVICES.items() if "models" in service["networks"]}
    assert with_models == {"gateway", "vllm", "simulator"}
    assert STACK["networks"]["data"] == STACK["networks"]["metrics"] == {"internal": True}
    assert {network for service in SERVICES.values() for network in service["networks"]} == set(STACK["networks"])


def test_who_is_waited_for_has_a_health_check_and_a_profile_that_starts() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert "profiles" not in SERVICES[other], f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], other


def test_the_gateway_starts_with_what_it_gets(prepared: Path) -> None:
    settings = settings_of(prepared)
    assert settings.warnings == ()
    assert settings.listen == ("tcp:4000",)
    assert settings.master_key is not None
    assert settings.salt_key is not None
    assert "@postgres:5432/vllm_passthrough" in settings.database_url.reveal()
    assert settings.redis is not None
    assert settings.redis.name == "redis://redis:6379/0"
    known = {name for each in variables() for name in each.environment}
    assert {name.removesuffix(FILE_SUFFIX) for name in GATEWAY["environment"]} <= known
    password = (prepared / "secrets" / "postgres_password").read_text().strip()
    assert f":{password}@" in settings.database_url.reveal()


def test_both_servers_are_where_the_gateway_looks(prepared: Path) -> None:
    [entry] = settings_of(prepared).models
    assert entry.server.url == b"http://model:8000"
    for name in ("vllm", "simulator"):
        assert SERVICES[name]["networks"]["models"]["aliases"] == ["model"]
    assert "--listen=tcp:8000" in SERVICES["simulator"]["entrypoint"]
    served = SERVICES["vllm"]["command"]
    model = served[served.index("--served-model-name") + 1]
    assert f"--model={model}" in SERVICES["simulator"]["entrypoint"]
    assert entry.model_name == model


def test_a_model_is_fetched_once_into_the_volume() -> None:
    [volume] = SERVICES["vllm"]["volumes"]
    kept = volume.split(":")[1]
    for name in ("HF_HOME", "VLLM_CACHE_ROOT"):
        assert Path(SERVICES["vllm"]["environment"][name]).is_relative_to(kept), name


def test_a_stop_waits_longer_than_the_drain(prepared: Path) -> None:
    settings = settings_of(prepared)
    assert seconds(GATEWAY["stop_grace_period"]) >= settings.drain_delay + settings.drain_timeout + 10


def seconds(text: str) -> float:
    number, unit = text[:-1], text[-1]
    return float(number) * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("name", ["gateway", "prometheus-key", "simulator"])
def test_commands_have_options_that_the_image_knows(name: str, prepared: Path) -> None:
    service = SERVICES[name]
    told: list[str] = [str(each) for each in service["command"]]
    if name == "simulator":
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *service["entrypoint"][1:]]
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "--token-interval" in done.stdout) == (0, True), done.stdout + done.stderr
        return
    told = [each.replace("/run/secrets", str(prepared / "secrets")) for each in told]
    told = [each.replace("http://gateway:4000", f"http://127.0.0.1:{free_port()}") for each in told]
    if name == "gateway":
        # it would become the gateway: --help reads what stands before it
        told += ["--help"]
    ended = CliRunner().invoke(main, told, prog_name="vllm-passthrough")
    # the key's command gets as far as the gateway, which is not there
    assert ended.exit_code == (0 if name == "gateway" else 3), ended.output


def test_the_image_has_the_command_of_the_health_check() -> None:
    assert GATEWAY["healthcheck"]["test"] == ["CMD", "vllm-passthrough", "health"]
    assert CliRunner().invoke(main, ["health", "--help"]).exit_code == 0


def test_prometheus_takes_its_file_and_asks_where_the_gateway_listens(prepared: Path, tmp_path: Path) -> None:
    written = (prepared / "prometheus.yml").read_text()
    found = yaml.safe_load(written)
    for job in found["scrape_configs"]:
        assert job["static_configs"] == [{"targets": ["gateway:4000"]}]
        assert job["authorization"] == {"credentials_file": "/run/secrets/prometheus_key"}
    example = yaml.safe_load((REPOSITORY / "config" / "prometheus" / "prometheus.yml").read_text())
    assert [job["job_name"] for job in found["scrape_configs"]] == [
        job["job_name"] for job in example["scrape_configs"]
    ]
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    (tmp_path / "prometheus.yml").write_text(written.replace("/run/secrets", str(prepared / "secrets")))
    shutil.copy(REPOSITORY / "config" / "prometheus" / "alerts.yml", tmp_path)
    done = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    mounted = {target: FOLDER / source for source, target, _ in (each.split(":") for each in mounts("grafana"))}
    provisioning = "/etc/grafana/provisioning"
    [source_file] = mounted[f"{provisioning}/datasources"].iterdir()
    [source] = yaml.safe_load(source_file.read_text())["datasources"]
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert source["url"] == "http://prometheus:9090"
    scrapes = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"] == {"timeInterval": scrapes}
    [provider_file] = mounted[f"{provisioning}/dashboards"].iterdir()
    [provider] = yaml.safe_load(provider_file.read_text())["providers"]
    assert provider["type"] == "file"
    dashboards = [path for path in mounted[provider["options"]["path"]].iterdir() if path.suffix == ".json"]
    assert len(dashboards) == 3
    for path in dashboards:
        [first] = [each for each in json.loads(path.read_text())["templating"]["list"] if each["name"] == "datasource"]
        # a variable without a choice takes the default source of this type
        assert (first["type"], first["query"]) == ("datasource", source["type"])
    # https://grafana.com/docs/grafana/latest/administration/provisioning/ names these fields
    assert set(source) <= {"name", "uid", "type", "access", "url", "isDefault", "jsonData", "editable"}
    assert set(provider) <= {"name", "folder", "type", "updateIntervalSeconds", "allowUiUpdates", "options"}


def mounts(name: str) -> list[str]:
    return [each for each in SERVICES[name]["volumes"] if each.startswith(".")]


def test_shells_of_health_checks_are_well_formed() -> None:
    for name, service in SERVICES.items():
        test = service["healthcheck"].get("test", ())
        if test and test[0] == "CMD-SHELL":
            done = subprocess.run(["sh", "-n", "-c", test[1]], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            assert shlex.split(test[1])
    assert os.access(FOLDER / "prepare", os.X_OK)
