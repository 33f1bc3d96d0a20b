"""``python -m benchmarks.dashboards.picture``: draws dashboards with real data of a mixed load.

It starts simulated servers, a gateway and a Prometheus of its own, applies the load, and draws what Prometheus has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from benchmarks.dashboards.__main__ import FOLDER
from benchmarks.dashboards.drawing import draw
from benchmarks.dashboards.mixed_load import apply_mixed_load
from benchmarks.dashboards.panel_data import Span
from benchmarks.dashboards.world import world
from benchmarks.options import server_at
from benchmarks.peers import first_model
from benchmarks.processes import CannotStart, end_on_sigterm
from benchmarks.prometheus import Prometheus, Series

IMAGES = FOLDER.parents[1] / "docs" / "images"

#: the dashboards of which there are pictures, and how many of their rows are shown
PICTURES: Mapping[str, int | None] = {"operations": 5, "tenants": None, "fleet": 3}

#: points of a line
_POINTS = 150
_INTERVAL = 2


@attrs.frozen
class Answers:
    """Answers the questions of a dashboard: all of its variables are *All*.

    Attributes:
        prometheus: who is asked.
        span: the time that is shown.
        window: what stands for ``$__rate_interval``.
    """

    prometheus: Prometheus
    span: Span
    window: str = "30s"

    def range(self, expr: str) -> list[Series]:
        """The course of an expression."""
        return self.prometheus.range(self._expr(expr), self.span.start, self.span.end, self.span.step)

    def instant(self, expr: str) -> list[Series]:
        """Its values at the end."""
        return self.prometheus.instant(self._expr(expr), self.span.end)

    def _expr(self, expr: str) -> str:
        return expr_of(expr, self.window, int(self.span.end - self.span.start))


def expr_of(expr: str, window: str, seconds: int) -> str:
    """Return PromQL, with what Grafana would put in place of its variables when all are *All*."""
    expr = expr.replace("$__rate_interval", window).replace("$__range", f"{seconds}s")
    return re.sub(r"\$\w+", ".*", expr)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboards.picture", description="Draws the dashboards with data of a mixed load."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, metavar="M", help="how long the load takes [%(default)s]")
    add("--scale", type=float, default=1.0, metavar="X", help="by how much its rates are multiplied [%(default)s]")
    add("--url", metavar="URL", help="a real vLLM beside the simulated servers, as in http://127.0.0.1:8000")
    add("--folder", type=Path, default=IMAGES, metavar="FOLDER", help="where the pictures go [docs/images]")
    chosen = parser.parse_args(arguments)
    if not chosen.folder.is_dir():
        parser.error(f"there is no folder {chosen.folder}: make it first")
    end_on_sigterm()
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="dashboards-")))
            _draw_all(directory, chosen)
    except CannotStart as error:
        print(f"picture: {error}", file=sys.stderr)
        return 1
    return 0


def _draw_all(directory: Path, chosen: argparse.Namespace) -> None:
    live = None if chosen.url is None else server_at(chosen.url, None)
    model = "" if live is None else first_model(live) or ""
    with world(directory, live=live, live_model=model, interval=f"{_INTERVAL}s") as running_world:
        began, seconds = time.time(), chosen.minutes * 60
        outcome = asyncio.run(apply_mixed_load(running_world, seconds, scale=chosen.scale))
        for (kind, status), count in sorted(outcome.statuses.items()):
            print(f"{kind}: {count} answers of status {status}")
        # the first seconds have no rates yet; the load's end has requests without new ones
        start, end = began + min(20.0, seconds / 10), began + seconds
        span = Span(start, end, max(_INTERVAL, round((end - start) / _POINTS)))
        for name, rows in PICTURES.items():
            dashboard: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
            file = chosen.folder / f"dashboard-{name}.svg"
            file.write_text(draw(dashboard, Answers(running_world.prometheus, span), span, rows=rows), "utf-8")
            print(f"wrote {file}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
