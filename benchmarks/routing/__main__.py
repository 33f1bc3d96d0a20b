"""``python -m benchmarks.routing``: see ``--help`` and docs/performance.md."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from benchmarks.peers import find_program, first_model
from benchmarks.processes import CannotStart, end_on_sigterm
from benchmarks.routing.contestants import ALONE, Contestant, Fleet, contestants
from benchmarks.routing.options import RoutingOptions, parse
from benchmarks.routing.run import COLUMNS, measure
from benchmarks.routing.scenarios import Scenario
from benchmarks.routing.talking import Load
from benchmarks.run import say
from benchmarks.table import Row, figure, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    end_on_sigterm()
    try:
        with TemporaryDirectory(prefix="benchmarks-") as directory:
            run(options, Path(directory))
    except CannotStart as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


def run(options: RoutingOptions, directory: Path) -> None:
    """Measure, and print a table for each scenario.

    Raises:
        CannotStart: a server cannot be used.
    """
    model = options.load.model or first_model(options.servers[0])
    if model is None:
        raise CannotStart("the first server does not list its models (--model NAME, --key KEY)")
    load = attrs.evolve(options.load, model=model)
    fleet = Fleet(options.servers, model, options.events, options.block_size, options.tokenizer)
    program = find_program("vllm-router", options.router)
    everybody = contestants(program)
    unknown = set(options.contestants) - set(everybody)
    if unknown:
        raise CannotStart(f"there is no {', '.join(sorted(unknown))} here; there are {', '.join(everybody)}")
    chosen = {name: each for name, each in everybody.items() if not options.contestants or name in options.contestants}
    for scenario in options.scenarios:
        load = attrs.evolve(load, users=scenario.users(options.load.users))
        rounds, notes = _rounds(options, scenario, chosen, fleet, load, directory)
        title = f"{scenario.name}, {len(fleet.servers)} servers, {load.users} users, {load.turns} turns"
        print(f"\n{title}, median of {options.rounds}:\n")
        print(render(COLUMNS, _beside_one_server({name: _median(rows) for name, rows in rounds.items()})))
        if options.rounds > 1:
            print(f"\nhit ratio and busiest share of each round: {_each(rounds)}")
        for note in notes:
            print(f"\n{note}", flush=True)
    if program is None:
        print("\nvllm-router was not measured: pip install vllm-router in an environment of its own, --router PLACE.")


def _rounds(
    options: RoutingOptions,
    scenario: Scenario,
    chosen: Mapping[str, Contestant],
    fleet: Fleet,
    load: Load,
    directory: Path,
) -> tuple[dict[str, list[Row]], list[str]]:
    rounds: dict[str, list[Row]] = {}
    notes: list[str] = []
    for number in range(options.rounds):
        for name, contestant in chosen.items():
            if name == ALONE and scenario.leaves:
                continue
            place = directory / f"{scenario.name}-{number}-{name.replace(' ', '-')}"
            place.mkdir()
            try:
                row = measure(contestant, fleet, scenario, load, place)
            except CannotStart as error:
                if name == ALONE:
                    raise
                note = f"{name} was not measured: {error}"
                if note not in notes:
                    notes.append(note)
                continue
            say(f"{scenario.name} {number + 1} {name}: " + _text(row))
            rounds.setdefault(name, []).append(row)
    return rounds, notes


def _text(row: Row) -> str:
    return ", ".join(
        f"{each.title.replace(chr(10), ' ')} {figure(row.get(each.key), each.digits)}"
        for each in COLUMNS
        if each.key in row
    )


def _median(rows: Sequence[Row]) -> Row:
    middle: dict[str, float | None] = {}
    for column in COLUMNS:
        values = [value for row in rows if (value := row.get(column.key)) is not None]
        middle[column.key] = statistics.median(values) if values else None
    return middle


def _beside_one_server(rows: Mapping[str, Row]) -> Mapping[str, Row]:
    """Add the share of each hit ratio in that of one server alone, if that was measured."""
    limit = rows.get(ALONE, {}).get("hit")
    return {
        name: {**row, "of_alone": None if not limit or (hit := row.get("hit")) is None else hit / limit}
        for name, row in rows.items()
    }


def _each(rounds: Mapping[str, Sequence[Row]]) -> str:
    def cells(rows: Sequence[Row]) -> str:
        return " ".join(f"{figure(row.get('hit'), 3)}/{figure(row.get('share'), 0)}%" for row in rows)

    return "; ".join(f"{name} {cells(rows)}" for name, rows in rounds.items())


if __name__ == "__main__":
    sys.exit(main())
