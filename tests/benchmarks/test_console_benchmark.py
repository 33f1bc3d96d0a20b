"""What the console costs: the tables, what the windows ask, and the command with tiny loads and no browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.console.report import Figures, Gateway, Load, PageCost, markdown
from benchmarks.console.windows import TEN, WATCHED
from twisted_vllm.admin.web.all_pages import PAGES

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 180.0

needs_programs = pytest.mark.skipif(
    shutil.which("wrk") is None
    or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
    or not sys.platform.startswith("linux"),
    reason="needs wrk, nginx and /proc",
)


def figures() -> Figures:
    """What a run might find."""
    gateway = Gateway(
        workers=1,
        streams=2_000,
        without=[Load(100.0, 9_000, 9.0, 20), Load(200.0, 5_000, 12.0, 30)],
        watched=[Load(101.0, 8_000, 10.0, 40), Load(204.0, 4_000, 14.0, 50)],
        idle_ms=4.0,
        open_ms=9.0,
        asked=30.0,
        memory=96 << 20,
        memory_after=118 << 20,
        pages={"Live": PageCost("/ui/live", 9.5, 36_800, 8_400, 192.0, 140.0, 2.0)},
    )
    return Figures({"Live": 3, "Keys": 1}, browser=True, gateways=[gateway], notes=["Something was noted."])


def test_shares_are_those_of_the_same_round() -> None:
    assert figures().gateways[0].shares() == pytest.approx([0.01, 0.02])
    text = markdown(figures())
    assert "| 1 | 2,000 | 2 | 150.0 | 152.5 | +1.5% | 7,000 | 6,000 | 10.5 | 12.0 | 25 | 45 |" in text
    assert "| 1 | 2,000 | 4.0 | 9.0 | 0.50% | 30 | 96 | 118 |" in text
    assert "| Live | 9.5 | 36.8 | 8.4 | 192 | 140 | 2.0 |" in text
    assert "4 windows of Chromium: 3 Live, 1 Keys" in text
    assert text.endswith("- Something was noted.")


def test_quartiles_stand_beside_the_share_of_many_rounds() -> None:
    found = figures()
    found.gateways[0].without = [Load(100.0, 9_000, 9.0, 20)] * 5
    found.gateways[0].watched = [Load(100.0 + more, 9_000, 9.0, 20) for more in range(5)]
    assert "| +2.0% (+1.0% … +3.0%) |" in markdown(found)


def test_what_windows_ask_are_pages_of_the_console() -> None:
    known = {page.path for page in PAGES if page.method == "GET"}
    for name, page in WATCHED.items():
        asked = {path.partition("?")[0] for path in (page.path, *page.once, *page.polls, *page.events)}
        assert asked <= known, name
        assert all(page.asks(path) for path in asked)
        assert not page.asks("/ui/somewhere-else")
    assert len(TEN) == 10


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.console", *arguments],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_programs
def test_the_command_measures_a_gateway_with_and_without_watchers(tmp_path: Path) -> None:
    small = ["--plain", "--workers=1", "--streams=0", "--rounds=1", "--seconds=1", "--connections=8"]
    done = run(tmp_path, *small, "--idle-seconds=2.5", "--loads=1", f"--json={tmp_path}/console.json")
    assert done.returncode == 0, done.stderr
    assert "answered 4" not in done.stdout
    [gateway] = json.loads((tmp_path / "console.json").read_text())["gateways"]
    assert len(gateway["without"]) == len(gateway["watched"]) == 1
    assert gateway["watched"][0]["cpu_us"] > 0
    assert {"Overview", "Live", "Servers", "Usage", "Keys", "Requests"} <= set(gateway["pages"])
    assert all(0 < page["again"] < page["received"] < 150_000 for page in gateway["pages"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["console.json"]


def test_an_unknown_page_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--windows=Everything")
    assert done.returncode == 2
    assert "Overview,Live" in done.stderr
