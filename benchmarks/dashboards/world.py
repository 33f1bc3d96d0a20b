"""What a mixed load needs: simulated servers, a gateway in front of them, keys of teams, and a Prometheus."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import msgspec

from benchmarks.client import Target
from benchmarks.dashboards.teams import KEYS, TEAMS
from benchmarks.free_ports import free_port
from benchmarks.peers import REPOSITORY, RunningGateway, run_gateway_of
from benchmarks.processes import CannotStart, answers, ask, environment, running, wait_until_ready
from benchmarks.prometheus import Prometheus, prometheus

CHAT, EMBEDDING, LIVE = "qwen3-32b", "bge-m3", "live"
RULES = REPOSITORY / "config" / "prometheus" / "alerts.yml"


#: seconds to the first token and between two tokens, of each simulated server
_PACES = ((0.08, 0.02), (0.11, 0.026), (0.16, 0.034))


class Simulator:
    """A simulated vLLM that can die and come back.

    Attributes:
        port: where it listens.
    """

    def __init__(self, directory: Path, number: int, first_token: float, interval: float) -> None:
        """Choose a port; nothing runs yet."""
        self.port = free_port()
        self._directory = directory
        self._number = number
        self._pace = [f"--first-token={first_token}", f"--token-interval={interval}"]
        self._life = ExitStack()

    def start(self) -> None:
        """Start it, and wait until it serves.

        Raises:
            CannotStart: it does not.
        """
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
        arguments = ["vllm-simulator", f"--listen=tcp:{self.port}:interface=127.0.0.1", f"--model={CHAT}"]
        arguments += [f"--model={EMBEDDING}", *self._pace]
        log = self._directory / f"simulator-{self._number}.out"
        environ = environment(PYTHONPATH=str(REPOSITORY))
        process = self._life.enter_context(
            running([*twistd, *arguments], log, environ=environ, directory=self._directory)
        )
        wait_until_ready(process, log, lambda: answers(self.port, "/health"))

    def stop(self) -> None:
        """End it. Idempotent."""
        self._life.close()


@attrs.frozen
class World:
    """Everything, while it runs.

    Attributes:
        gateway: the gateway.
        servers: the simulated servers.
        prometheus: what watches both.
        keys: the keys by their aliases.
        models: the models that can be asked.
    """

    gateway: RunningGateway
    servers: Sequence[Simulator]
    prometheus: Prometheus
    keys: Mapping[str, str] = attrs.field(repr=False)
    models: frozenset[str]

    def target(self, alias: str) -> Target:
        """Where the owner of a key sends requests."""
        return Target("127.0.0.1", self.gateway.port, "", self.keys.get(alias, "sk-of-nobody-0123456789"))

    def ask(self, method: str, path: str, body: object = None) -> msgspec.Raw:
        """Ask the admin API with the master key.

        Raises:
            CannotStart: the answer is not 200.
        """
        return administer(self.gateway, method, path, body)


def administer(gateway: RunningGateway, method: str, path: str, body: object = None) -> msgspec.Raw:
    """Ask a gateway's admin API with the master key.

    Raises:
        CannotStart: the answer is not 200.
    """
    sent = None if body is None else msgspec.json.encode(body)
    status, answer = ask("127.0.0.1", gateway.port, method, path, key=gateway.master_key, body=sent)
    if status != 200:
        raise CannotStart(f"{method} {path} answered {status}: {answer[:200].decode(errors='replace')}")
    return msgspec.Raw(answer)


@contextmanager
def world(
    directory: Path, *, live: Target | None = None, live_model: str = "", interval: str = "2s", window: int = 10
) -> Iterator[World]:
    """Run everything.

    Args:
        directory: where all files are.
        live: a real vLLM that serves one more model; None for none.
        live_model: its model.
        interval: between two scrapes.
        window: how many requests a simulated server has in flight at most.

    Raises:
        CannotStart: something does not start.
    """
    with ExitStack() as stack:
        servers = [Simulator(directory, number, *pace) for number, pace in enumerate(_PACES, 1)]
        for server in servers:
            server.start()
            stack.callback(server.stop)
        config = _config(servers, live, live_model, window)
        variables = {} if live is None or live.key is None else {"HOSTED_VLLM_API_KEY": live.key}
        gateway = stack.enter_context(run_gateway_of(config, variables, directory))
        keys = dict(_make_keys(gateway))
        scrapes = list(_scrapes(gateway, servers, live, directory))
        rules = [RULES] if RULES.exists() else []
        watcher = stack.enter_context(prometheus(directory, scrapes, interval=interval, rules=rules))
        models = frozenset({CHAT, EMBEDDING} if live is None else {CHAT, EMBEDDING, live_model})
        yield World(gateway, servers, watcher, keys, models)


def _config(servers: Sequence[Simulator], live: Target | None, live_model: str, window: int) -> dict[str, object]:
    def entry(name: str, base: str, prompt: str, completion: str, **more: object) -> dict[str, object]:
        prices = {"input_cost_per_token": prompt, "output_cost_per_token": completion}
        return {
            "model_name": name,
            "litellm_params": {"model": f"hosted_vllm/{name}", "api_base": base, **prices, **more},
        }

    bases = [f"http://127.0.0.1:{server.port}" for server in servers]
    models = [entry(CHAT, base, "0.000004", "0.000016", max_parallel_requests=window) for base in bases]
    models.append(entry(EMBEDDING, bases[-1], "0.0000005", "0"))
    if live is not None:
        base = f"http://{live.host}:{live.port}{live.base}"
        models.append(entry(live_model, base, "0.000002", "0.000008"))
    return {
        "model_list": models,
        "passthrough": {
            "health": {"interval": 2, "timeout": 1},
            "metrics": {"key_labels": 20, "team_labels": 10},
            "log": {"format": "json", "file": "requests.log"},
        },
        "router_settings": {"routing_strategy": "prefix"},
    }


def _make_keys(gateway: RunningGateway) -> Iterator[tuple[str, str]]:
    for team, settings in TEAMS.items():
        administer(gateway, "POST", "/team/new", {"team_id": team, "team_alias": team, **settings})
    for alias, (team, settings) in KEYS.items():
        body = {"key_alias": alias, "team_id": team, **settings}
        answer = msgspec.json.decode(administer(gateway, "POST", "/key/generate", body))
        yield alias, str(answer["key"])


def _scrapes(
    gateway: RunningGateway, servers: Sequence[Simulator], live: Target | None, directory: Path
) -> Iterator[dict[str, object]]:
    """As docs/metrics.md says; all run on one machine, so ports become names of machines."""
    key = directory / "prometheus.key"
    key.write_text(gateway.master_key)
    key.chmod(0o600)
    places = [f"127.0.0.1:{server.port}" for server in servers]
    places += [] if live is None else [f"{live.host}:{live.port}"]
    named = [
        {
            "source_labels": ["server"],
            "regex": re.escape(place),
            "target_label": "server",
            "replacement": f"gpu-{number}:8000",
        }
        for number, place in enumerate(places, 1)
    ]
    common = {
        "authorization": {"credentials_file": str(key)},
        "static_configs": [{"targets": [f"127.0.0.1:{gateway.port}"], "labels": {"instance": "gateway-1:4000"}}],
        "metric_relabel_configs": named,
    }
    yield {"job_name": "vllm-passthrough", **common}
    yield {"job_name": "vllm", "metrics_path": "/metrics/upstreams", **common}
