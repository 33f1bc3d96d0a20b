"""docs/containers.md: each of its commands names what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.packaging.test_compose import FOLDER, SERVICES
from twisted_vllm.cli.main import main
from twisted_vllm.config.load import load, variables
from twisted_vllm.config.problems import FILE_SUFFIX

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "containers.md").read_text("utf-8")
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
IMAGE = "vllm-passthrough"
#: options of docker run, https://docs.docker.com/reference/cli/docker/container/run/, and whether they have a value
RUN = {
    **dict.fromkeys(("--rm", "--detach", "--read-only", "--init"), False),
    **dict.fromkeys(
        ("--name", "--restart", "--cap-drop", "--security-opt", "--stop-timeout", "--memory", "--cpus"), True
    ),
    **dict.fromkeys(("--ulimit", "--publish", "--volume", "--env", "--user", "--entrypoint"), True),
}
#: commands of docker compose and their options, https://docs.docker.com/reference/cli/docker/compose/
COMPOSE = {
    "up": {"--detach", "--wait", "--force-recreate"},
    "down": {"--volumes"},
    "logs": {"--follow", "--no-log-prefix"},
    "exec": {"-T"},
    "run": {"--rm", "--no-deps"},
    "kill": {"--signal"},
    "build": {"--pull"},
    "stop": set(),
    "start": set(),
    "ps": set(),
}


def commands(*begin: str) -> Iterator[list[str]]:
    """Return the page's commands that begin so, as a shell would split them."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    inline = re.findall(r"`(docker compose [^`]+)`", PAGE)
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *inline]:
        words = shlex.split(line)
        if tuple(words[: len(begin)]) == begin:
            yield words[len(begin) :]


def takes(arguments: list[str]) -> None:
    """Require that the command of the image takes these arguments."""
    ended = CliRunner().invoke(main, [*arguments, "--help"], prog_name="vllm-passthrough")
    assert ended.exit_code == 0, ended.output


def test_every_command_of_the_page_is_of_a_kind_that_is_looked_at() -> None:
    found = {(words[0], words[1] if words[0] == "docker" else "") for words in commands() if words}
    assert found == {
        *(("docker", each) for each in ("build", "run", "compose", "exec", "cp")),
        ("cd", ""),
        ("sh", ""),
        ("curl", ""),
    }


def test_a_container_is_run_with_options_that_exist_and_arguments_that_the_image_takes() -> None:
    seen = 0
    for words in commands("docker", "run"):
        while words[0].startswith("-"):
            option = words.pop(0)
            assert option in RUN, option
            value = words.pop(0) if RUN[option] else ""
            if option == "--env":
                name = value.split("=")[0].removesuffix(FILE_SUFFIX)
                assert name in {each for setting in variables() for each in setting.environment}, name
            if option == "--publish":
                assert value.endswith(":4000")
            if option == "--volume" and value.startswith("gateway:"):
                assert f"\nVOLUME {value.split(':')[1]}\n" in DOCKERFILE
        assert words.pop(0) == IMAGE
        takes(words)
        seen += 1
    assert seen == 4


def test_what_is_run_in_a_container_is_a_command_of_the_image() -> None:
    for container, program, *arguments in commands("docker", "exec"):
        assert f"--name {container} " in PAGE
        assert program == "vllm-passthrough"
        takes(arguments)
        # where the copy of the next line comes from
        [[source, target]] = commands("docker", "cp")
        assert source == f"{container}:{arguments[arguments.index('--output') + 1]}"
        assert target == "."


def test_a_build_has_arguments_and_extras_that_the_dockerfile_has() -> None:
    arguments = set(re.findall(r"^ARG ([A-Z_]+)", DOCKERFILE, re.MULTILINE))
    for words in commands("docker", "build"):
        assert words[-1] == "."
        for given in [words[place + 1] for place, word in enumerate(words) if word == "--build-arg"]:
            name, value = given.split("=")
            assert name in arguments
            if name == "EXTRAS":
                for extra in value.split():
                    assert (REPOSITORY / "tools" / "image" / "requirements" / f"{extra}.txt").exists()
    table = set(re.findall(r"`([A-Z_]+)`", PAGE.partition("| build argument |")[2].partition("```")[0]))
    assert table == arguments


def test_the_stack_is_driven_with_files_profiles_services_and_arguments_that_exist() -> None:
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    for words in commands("docker", "compose"):
        while words[0].startswith("--"):
            option, value = words.pop(0), words.pop(0)
            assert option in ("--profile", "--file"), option
            assert value in profiles if option == "--profile" else (FOLDER / value).exists(), value
        command = words.pop(0)
        assert command in COMPOSE, command
        rest = [word for word in words if word not in COMPOSE[command]]
        if command == "kill":
            rest.remove("SIGHUP")
        if command in ("exec", "run"):
            service, *inside = rest
            assert service in SERVICES
            if command == "exec" and service == "gateway":
                assert inside.pop(0) == "vllm-passthrough"
            if service == "gateway":
                takes(inside)
            else:
                assert inside[0] in ("pg_dump", "pg_restore", "dropdb", "createdb")
                user = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
                assert f"--username={user}" in inside
        else:
            assert set(rest) <= set(SERVICES), rest


def test_the_first_request_asks_for_the_model_of_the_stack() -> None:
    [words] = list(commands("curl"))
    assert words[0] == f"http://{SERVICES['gateway']['ports'][0].rpartition(':')[0]}/v1/chat/completions"
    model = yaml.safe_load(words[-1])["model"]
    assert model == yaml.safe_load((FOLDER / "gateway.yaml").read_text())["model_list"][0]["model_name"]


def test_the_proxys_settings_can_be_used(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(passthrough:.*?)```", PAGE, re.DOTALL)
    (tmp_path / "config.yaml").write_text(block)
    settings = load(file=str(tmp_path / "config.yaml"), environ={"HOSTED_VLLM_API_BASE": "http://gpu:8000"})
    assert len(settings.trusted_proxies) == 1


def test_nginx_takes_its_settings(tmp_path: Path) -> None:
    nginx = next((path for path in ("/usr/sbin/nginx", "/usr/bin/nginx") if Path(path).exists()), None)
    if nginx is None:
        pytest.skip("nginx is not installed")
    [block] = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    # what nginx documents for $connection_upgrade, which the page expects of a proxy that knows WebSockets
    upgrade = "map $http_upgrade $connection_upgrade { default upgrade; '' close; }"
    server = f"{upgrade} server {{ listen 127.0.0.1:1; {block} }}"
    text = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {server} }}"
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(
        [nginx, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
