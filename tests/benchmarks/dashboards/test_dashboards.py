"""The dashboards in config/grafana: up to date, as Grafana needs them, and of metrics that there are."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.dashboards.__main__ import DASHBOARDS, FOLDER, main
from benchmarks.dashboards.grafana import text
from benchmarks.dashboards.picture import IMAGES, PICTURES, expr_of
from tests.benchmarks.dashboards.grafana_schema import (
    Dashboard,
    DataSourceVariable,
    Organize,
    Placed,
    QueryVariable,
    Row,
    Table,
)

REPOSITORY = Path(__file__).parents[3]
#: the metrics that the documents name with their labels
DOCUMENTED: dict[str, set[str]] = {}
for page in ("metrics", "operations", "sinks"):
    if (file := REPOSITORY / "docs" / f"{page}.md").exists():
        for metric, labels in re.findall(r"`(vllm_passthrough_\w+)(?:\{([\w,]+)\})?`", file.read_text("utf-8")):
            DOCUMENTED.setdefault(metric, set()).update(filter(None, labels.split(",")))
#: of vLLM 0.32
OF_VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
}
OF_PROCESSES = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
SELECTOR = re.compile(r"\b([a-z_]+:?[a-z_]+|ALERTS)\{([^}]*)\}")
LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"')
#: what Prometheus itself adds
OF_SCRAPES = {"instance", "job"}


def read(name: str) -> Dashboard:
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Dashboard)


def expressions(name: str) -> list[str]:
    dashboard = read(name)
    return [
        *(target.expr for panel in dashboard.panels if not isinstance(panel, Row) for target in panel.targets),
        *(annotation.expr for annotation in dashboard.annotations.entries),
    ]


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    assert {file.stem for file in FOLDER.glob("*.json")} == set(DASHBOARDS)


def test_a_file_that_is_not_is_named_and_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 0
    (tmp_path / "fleet.json").write_text("{}")
    assert main(["--folder", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().err == "fleet.json is out of date: run make dashboards\n"
    assert main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / "fleet.json").read_text() == (FOLDER / "fleet.json").read_text()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_can_read_them(name: str) -> None:
    dashboard = read(name)
    ids = [panel.id for panel in dashboard.panels]
    assert len(set(ids)) == len(ids)
    for one, other in itertools.combinations(dashboard.panels, 2):
        assert not overlap(one, other), f"{one.title} and {other.title}"
    assert all(panel.gridPos.x + panel.gridPos.w <= 24 for panel in dashboard.panels)
    for panel in dashboard.panels:
        if isinstance(panel, Row):
            continue
        letters = [target.refId for target in panel.targets]
        assert len(set(letters)) == len(letters)
        assert all(target.instant != target.range for target in panel.targets)
        values = [step.value for step in panel.fieldConfig.defaults.thresholds.steps]
        rest = [value for value in values[1:] if value is not None]
        assert values[0] is None and rest == sorted(rest) and len(rest) == len(values) - 1


def overlap(one: Placed, other: Placed) -> bool:
    a, b = one.gridPos, other.gridPos
    return a.x < b.x + b.w and b.x < a.x + a.w and a.y < b.y + b.h and b.y < a.y + a.h


@pytest.mark.parametrize("name", DASHBOARDS)
def test_their_variables_are_those_that_they_use(name: str) -> None:
    dashboard = read(name)
    source, *others = dashboard.templating.entries
    assert isinstance(source, DataSourceVariable) and source.name == "datasource"
    queries = [variable for variable in others if isinstance(variable, QueryVariable)]
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(name)))) - {"__rate_interval", "__range"}
    assert used == {variable.name for variable in queries}
    assert all(variable.query.query == variable.definition for variable in queries)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_columns_of_tables_have_the_names_of_their_questions(name: str) -> None:
    for panel in read(name).panels:
        if isinstance(panel, Table):
            [organize] = [each.options for each in panel.transformations if isinstance(each, Organize)]
            several = len(panel.targets) > 1
            columns = {f"Value #{target.refId}" if several else "Value" for target in panel.targets}
            assert columns == {column for column in organize.renameByName if column.startswith("Value")}
            assert set(organize.indexByName) == set(organize.renameByName)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_their_metrics_and_labels_are_documented(name: str) -> None:
    """`tests/end_to_end/test_gateway_metrics.py` compares the documents with a running gateway."""
    for expr in expressions(name):
        selectors = SELECTOR.findall(expr)
        assert selectors, expr
        for metric, matchers in selectors:
            if metric in OF_VLLM | OF_PROCESSES or metric == "ALERTS":
                continue
            family = re.sub(r"_bucket$", "", metric)
            assert family in DOCUMENTED, f"{metric} in {expr}"
            assert set(LABEL.findall(matchers)) <= DOCUMENTED[family] | OF_SCRAPES, f"{metric}{{{matchers}}}"
        grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expr) for label in labels.split(", ")}
        labels = {label for metric, _ in selectors for label in DOCUMENTED.get(re.sub("_bucket$", "", metric), ())}
        of_vllm = {"server"} if any(metric in OF_VLLM for metric, _ in selectors) else set()
        assert grouped <= labels | of_vllm | OF_SCRAPES | {"le"}, expr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_page_that_a_panel_names_exists(name: str) -> None:
    pages = set(re.findall(r"\bdocs/[\w-]+\.md", (FOLDER / f"{name}.json").read_text("utf-8")))
    assert pages and sorted(page for page in pages if not (REPOSITORY / page).exists()) == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    every = [expr_of(expr, "1m", 3600) for name in DASHBOARDS for expr in expressions(name)]
    rules = [{"record": f"dashboards:expression:{number}", "expr": expr} for number, expr in enumerate(every)]
    file = tmp_path / "rules.json"
    # JSON is YAML
    file.write_bytes(msgspec.json.encode({"groups": [{"name": "dashboards", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(every)} rules found" in checked.stdout


def test_links_to_the_documentation_are_there_if_its_address_is_given() -> None:
    one = next(iter(DASHBOARDS.values()))
    links = msgspec.json.decode(text(one, "https://docs.example/gateway/"), type=Dashboard).links
    assert [link.url for link in links] == ["", "https://docs.example/gateway/observability.md"]


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_show_the_panels_that_there_are(name: str) -> None:
    """A panel that was renamed needs new pictures: ``make picture``."""
    file = IMAGES / f"dashboard-{name}.svg"
    assert file.stat().st_size < 300_000
    shown = {each.text for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")}
    rows = PICTURES[name]
    panels = read(name).panels
    heads = [index for index, panel in enumerate(panels) if isinstance(panel, Row)]
    drawn = panels if rows is None or rows >= len(heads) else panels[: heads[rows]]
    assert {panel.title for panel in drawn} <= shown
