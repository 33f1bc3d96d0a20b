"""A Prometheus of one's own: started on a free port with its data in a folder, and asked by its HTTP API."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import attrs
import msgspec

from benchmarks.free_ports import free_port
from benchmarks.processes import CannotStart, answers, ask, environment, running, wait_until_ready

Labels = Mapping[str, str]


@attrs.frozen
class Series:
    """What Prometheus answers for one set of labels.

    Attributes:
        labels: its labels.
        points: times in Unix seconds, and values; those that are no number are left out.
    """

    labels: Labels
    points: tuple[tuple[float, float], ...]


class QueryRefused(Exception):
    """Prometheus cannot answer a question; the text says why."""


@attrs.frozen
class Prometheus:
    """A Prometheus that runs.

    Attributes:
        port: where it listens, on the loopback.
    """

    port: int

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Ask for the course of an expression.

        Raises:
            QueryRefused: it cannot be evaluated.
        """
        found = self._ask("query_range", {"query": expr, "start": start, "end": end, "step": step})
        return [_series(each.metric, each.values) for each in found]

    def instant(self, expr: str, at: float) -> list[Series]:
        """Ask for the values of an expression at one time.

        Raises:
            QueryRefused: it cannot be evaluated.
        """
        found = self._ask("query", {"query": expr, "time": at})
        return [_series(each.metric, [each.value] if each.value else []) for each in found]

    def _ask(self, what: str, arguments: Mapping[str, object]) -> list[_Found]:
        status, body = ask("127.0.0.1", self.port, "GET", f"/api/v1/{what}?{urlencode(arguments)}")
        answer = msgspec.json.decode(body, type=_Answer)
        if status != 200 or answer.data is None:
            raise QueryRefused(f"{answer.error} in {arguments['query']}")
        if answer.data.resultType not in ("matrix", "vector"):
            raise QueryRefused(f"{arguments['query']} is a {answer.data.resultType}, not series")
        return msgspec.convert(answer.data.result, list[_Found])


class _Found(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []
    value: tuple[float, str] | None = None


class _Data(msgspec.Struct):
    resultType: str
    result: list[object]


class _Answer(msgspec.Struct):
    data: _Data | None = None
    error: str = ""


def _series(labels: Labels, values: Sequence[tuple[float, str]]) -> Series:
    points = tuple((time, float(value)) for time, value in values)
    return Series(labels, tuple(point for point in points if math.isfinite(point[1])))


def find_prometheus() -> str | None:
    """Return the path of Prometheus' program."""
    return shutil.which("prometheus")


@contextmanager
def prometheus(
    folder: Path, scrapes: Sequence[Mapping[str, object]], *, interval: str = "5s", rules: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Run a Prometheus.

    Args:
        folder: where it keeps its configuration, its data and its output.
        scrapes: its ``scrape_configs``.
        interval: between two scrapes, and between two evaluations of the rules.
        rules: files with rules of alerts.

    Raises:
        CannotStart: it is not installed, or does not start.
    """
    program = find_prometheus()
    if program is None:
        raise CannotStart("prometheus is not on PATH (Debian: apt-get install prometheus)")
    port = free_port()
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": list(scrapes),
        "rule_files": [str(file.absolute()) for file in rules],
    }
    # JSON is YAML
    file = folder / "prometheus.yaml"
    file.write_text(json.dumps(config))
    file.chmod(0o600)
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = folder / "prometheus.out"
    with running(command, log, environ=environment(), directory=folder) as process:
        wait_until_ready(process, log, lambda: answers(port, "/-/ready"))
        yield Prometheus(port)
