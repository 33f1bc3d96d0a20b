"""``python -m benchmarks.console.pictures``: draws every page of the console with the data of a mixed load.

It starts a gateway, in front of servers that are given and of simulated ones, gives it users, teams, budgets and keys,
sends requests of all kinds, and takes the pictures while they run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chromium import chromium, find_chromium
from benchmarks.client import Target
from benchmarks.console.pictures.household import move_in
from benchmarks.console.pictures.traffic import background_load, kinds
from benchmarks.dashboards.picture import IMAGES
from benchmarks.dashboards.world import CHAT, Simulator, administer
from benchmarks.options import number, server_at
from benchmarks.peers import RunningGateway, first_model, run_gateway_of
from benchmarks.processes import CannotStart, end_on_sigterm
from benchmarks.run import say

FOLDER = IMAGES / "console"
#: seconds to the first token and between two, of each simulated server: the second one is drained, the last one stops
_PACES = ((0.2, 0.03), (0.25, 0.035), (0.3, 0.05))
#: of the load's time, when the last simulated server stops
_STOPS_AT = 0.7
_PRICES = {"input_cost_per_token": "0.000004", "output_cost_per_token": "0.000016"}


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.console.pictures",
        description="Draws every page of the console, light and dark, wide and on a phone, with data of a mixed load.",
    )
    add = parser.add_argument
    add("--minutes", type=number(0.1, 600), default=15.0, metavar="M", help="of load before the pictures [%(default)s]")
    add("--scale", type=number(0.01, 100), default=1.0, metavar="X", help="multiplies the rates [%(default)s]")
    add("--server", metavar="URL", help="a real vLLM, as in http://127.0.0.1:8000; without it, all are simulated")
    add("--model", metavar="NAME", help="its model; default: the first that it lists")
    add("--only", default="", metavar="NAMES", help="only these pictures")
    add("--folder", type=Path, default=FOLDER, metavar="FOLDER", help="where they go [docs/images/console]")
    chosen = parser.parse_args(arguments)
    if not chosen.folder.is_dir():
        parser.error(f"there is no folder {chosen.folder}: make it first")
    end_on_sigterm()
    try:
        draw(chosen)
    except CannotStart as error:
        print(f"benchmarks.console.pictures: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.console.pictures: interrupted", file=sys.stderr)
        return 130
    return 0


def draw(chosen: argparse.Namespace) -> None:
    """Run everything, and write the pictures.

    Raises:
        CannotStart: something does not start, or is not installed.
    """
    program = find_chromium()
    if program is None:
        raise CannotStart("Chromium is not installed (Debian: apt-get install chromium)")
    # only here: the others need no Playwright
    from benchmarks.console.pictures.montage import montage
    from benchmarks.console.pictures.shots import SHOTS, Photographer, find_places

    real = None if chosen.server is None else server_at(chosen.server, None)
    wanted = set(filter(None, chosen.only.split(",")))
    shots = [shot for shot in SHOTS if not wanted or shot.name in wanted]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="console-pictures-")))
        simulators = [Simulator(directory, index, *pace) for index, pace in enumerate(_PACES, 1)]
        for simulator in simulators:
            simulator.start()
            stack.callback(simulator.stop)
        model = CHAT if real is None else chosen.model or first_model(real)
        if model is None:
            raise CannotStart(f"{chosen.server} does not list its models: name one with --model")
        gateway = stack.enter_context(_gateway(directory, simulators, real, model))
        household = move_in(gateway)

        def target_of(alias: str) -> Target:
            return Target("127.0.0.1", gateway.port, "", household.keys.get(alias, "sk-of-nobody-0123456789"))

        seconds = chosen.minutes * 60
        outcome = stack.enter_context(background_load(kinds(model, CHAT), target_of, seconds, chosen.scale))
        say(f"{chosen.minutes:g} minutes of load")
        time.sleep(seconds * _STOPS_AT)
        simulators[-1].stop()
        drained = {"server": f"127.0.0.1:{simulators[1].port}", "reason": "new driver"}
        administer(gateway, "POST", "/server/drain", drained)
        time.sleep(seconds * (1 - _STOPS_AT))
        for (kind, status), count in sorted(outcome.statuses.items()):
            say(f"{kind}: {count} answers of status {status}")
        first = f"127.0.0.1:{simulators[0].port}" if real is None else f"{real.host}:{real.port}"
        places = find_places(gateway, household, first, model)
        browser = stack.enter_context(chromium(program))
        photographer = Photographer(browser, gateway, household.keys)
        for shot in shots:
            picture = montage(browser, photographer.take(shot, places.address(shot)))
            file = chosen.folder / f"{shot.name}.webp"
            file.write_bytes(picture)
            print(f"wrote {file}, {len(picture):,} bytes", flush=True)


@contextmanager
def _gateway(
    directory: Path, simulators: Sequence[Simulator], real: Target | None, model: str
) -> Iterator[RunningGateway]:
    def entry(name: str, base: str) -> dict[str, object]:
        limits = {"max_parallel_requests": 24}
        return {
            "model_name": name,
            "litellm_params": {"model": f"hosted_vllm/{name}", "api_base": base, **_PRICES, **limits},
        }

    models = [entry(CHAT, f"http://127.0.0.1:{simulator.port}") for simulator in simulators]
    if real is not None:
        models.insert(0, entry(model, f"http://{real.host}:{real.port}{real.base}"))
    config = {
        "model_list": models,
        "general_settings": {
            "database_url": f"sqlite:///{directory}/gateway.sqlite",
            "store_prompts_in_spend_logs": True,
        },
        "passthrough": {
            "health": {"interval": 2, "timeout": 1},
            "log": {"format": "json", "file": "requests.log"},
        },
    }
    with run_gateway_of(config, {}, directory) as gateway:
        yield gateway


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
