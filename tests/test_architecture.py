"""The rules of the house that a linter cannot hold: who may import whom, what stays pure, what the documents name."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "twisted_vllm"

PLAIN = {
    *("api_routes", "bounded_cache", "client_address", "config", "errors", "field_policy", "histogram", "http.headers"),
    *("money", "mounts"),
    *("observability.tracing.names", "observability.tracing.told_contents"),
}
VALUES = PLAIN | {"auth", "bodies", "context", "lifecycle", "ratelimit", "usage"}
SERVICES = VALUES | {"http", "identification", "observability", "storage", "upstreams", "upstreams.shared", "workers"}

#: what each part may import. A part is the longest prefix of a module's name that stands here.
MAY_IMPORT = {
    "errors": set[str](),
    "money": set[str](),
    "bounded_cache": set[str](),
    "client_address": set[str](),
    "histogram": set[str](),
    "api_routes": {"errors"},
    "mounts": {"api_routes"},
    "http.headers": {"errors"},
    "field_policy": {"errors"},
    "config": PLAIN,
    "bodies": PLAIN,
    "ratelimit": PLAIN,
    # a principal carries its limits
    "auth": PLAIN | {"ratelimit"},
    # seconds of audio are measured in the uploaded form
    "usage": PLAIN | {"bodies"},
    "context": PLAIN | {"auth", "bodies", "ratelimit", "usage"},
    "lifecycle": {"context"},
    "http": PLAIN | {"context", "lifecycle"},
    # what is told of a request has its usage, its prompt and its answer
    "observability": PLAIN | {"auth", "bodies", "context", "lifecycle", "ratelimit", "usage"},
    # an entry's limits are windows, as those of keys
    "upstreams": PLAIN | {"bodies", "context", "http", "lifecycle", "ratelimit"},
    "upstreams.shared": PLAIN | {"http", "ratelimit", "upstreams", "workers"},
    # processes talk over sockets as those of the data path
    "workers": PLAIN | {"http"},
    "storage": PLAIN | {"auth", "ratelimit", "usage"},
    # it waits for the database and for an issuer
    "identification": PLAIN | {"auth", "ratelimit", "storage", "upstreams"},
    # the S3 client is that of the sinks
    "usage_export": PLAIN | {"observability", "storage", "usage"},
    "proxy": SERVICES,
    "admin": SERVICES | {"usage_export"},
    # a stand-in for vLLM must not share the gateway's reading of HTTP, or their errors would agree
    "simulator": PLAIN - {"api_routes", "field_policy", "histogram", "http.headers", "mounts"},
    # it takes what the admin API takes, and calls its checks
    "litellm_import": SERVICES | {"admin"},
    "app": SERVICES | {"proxy", "admin", "litellm_import", "simulator", "usage_export"},
    "cli": SERVICES | {"proxy", "admin", "litellm_import", "simulator", "usage_export", "app"},
    "__main__": {"cli"},
}

#: what decides: no reactor, no clock, no I/O
PURE = (
    *("api_routes", "auth", "bodies", "bounded_cache", "client_address", "config", "field_policy"),
    *("http.client.addresses", "http.headers", "http.server.held_bodies", "http.web_pages"),
    *("histogram", "money", "mounts"),
    *("observability.contents.answer", "observability.contents.beginnings", "observability.contents.folding"),
    *("observability.contents.modes", "observability.contents.redaction", "observability.contents.rendering"),
    *("observability.contents.routes", "observability.contents.stream_texts"),
    *("proxy.admission", "proxy.background_charge", "proxy.chosen_servers", "proxy.fan_out", "proxy.forwarded"),
    *("proxy.paths", "proxy.response_ids"),
    *("ratelimit.allowance", "ratelimit.memory", "ratelimit.minute_counts", "ratelimit.periods"),
    *("upstreams.bounded_load", "upstreams.breaker", "upstreams.discovered", "upstreams.entry_limits"),
    *("upstreams.fair_queue", "upstreams.health_report", "upstreams.kv_index", "upstreams.kv_messages"),
    *("upstreams.kv_prompts", "upstreams.kv_sequence", "upstreams.latency", "upstreams.load_reports"),
    *("upstreams.merged_metrics", "upstreams.policies", "upstreams.prefix_choice", "upstreams.prefix_table"),
    *("upstreams.recent_requests", "upstreams.rendezvous", "upstreams.resolv_conf", "upstreams.response_places"),
    *("upstreams.retry_budget", "upstreams.router", "upstreams.service_rate"),
    *("upstreams.shared.breaker", "upstreams.shared.claims", "upstreams.shared.entry_windows"),
    *("upstreams.shared.fair_shares", "upstreams.shared.leased_limits", "upstreams.shared.places"),
    *("usage.estimate", "usage.generation_rate", "usage.pricing", "usage.readers", "usage.records"),
    *("usage.days", "usage.repeated_rows"),
)

#: paths of one person's machine
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|Users|tmp/work|home/(?!USER\b)\w+)/[\w.]")
TEXT_SUFFIXES = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".service", ".socket", ".sh", ""}
SKIPPED_DIRECTORIES = {
    ".git",
    ".venv",
    "build",
    "dist",
    "__pycache__",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".run",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules that a module imports, anywhere in it; ``from a import b`` is ``a.b`` where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                is_module = longer in MODULES or longer == "twisted.internet.reactor"
                found.add(longer if is_module else str(node.module))
    return frozenset(found)


def starts_with(module: str, prefix: str) -> bool:
    return f"{module}.".startswith(f"twisted_vllm.{prefix}.")


def part_of(module: str) -> str | None:
    """The part of the house that a module of ours belongs to."""
    return max((part for part in MAY_IMPORT if starts_with(module, part)), key=len, default=None)


def everything_behind(module: str) -> Iterator[tuple[str, str]]:
    """Pairs of an importing module of ours and what it imports, for everything that importing this module loads."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for imported in imports_of(current):
            yield current, imported
            if imported in MODULES:
                waiting.append(imported)


def test_every_module_has_its_place_in_the_order() -> None:
    assert [module for module in MODULES if part_of(module) is None and module != "twisted_vllm"] == []


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    back = [
        f"{module} imports {imported}"
        for module in MODULES
        if part_of(module) == part
        for imported in sorted(imports_of(module))
        if part_of(imported) not in {None, part} | MAY_IMPORT[part]
    ]
    assert back == []


def test_no_imports_go_round_in_circles() -> None:
    """Imports inside functions and under ``TYPE_CHECKING`` count as well."""
    circles = graphlib.TopologicalSorter(
        {module: {name for name in imports_of(module) if name in MODULES} for module in MODULES}
    )
    try:
        circles.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_what_decides_knows_no_twisted() -> None:
    pure = [module for module in MODULES if any(starts_with(module, prefix) for prefix in PURE)]
    assert all(any(starts_with(module, prefix) for module in pure) for prefix in PURE)
    impure = {
        f"{module}: {importer} imports {imported}"
        for module in pure
        for importer, imported in everything_behind(module)
        if imported.partition(".")[0] in ("twisted", "treq", "klein")
    }
    assert sorted(impure) == []


def test_only_the_edges_import_the_reactor() -> None:
    importers = {module for module in MODULES if "twisted.internet.reactor" in imports_of(module)}
    assert importers == {"twisted_vllm.app.tap", "twisted_vllm.app.processes.worker", "twisted_vllm.simulator.tap"}


def test_tap_imports_the_reactor_only_when_it_is_called() -> None:
    for module in MODULES:
        top_level = [node for node in ast.parse(MODULES[module].read_text()).body if isinstance(node, ast.ImportFrom)]
        imported = {f"{node.module}.{alias.name}" for node in top_level for alias in node.names}
        assert "twisted.internet.reactor" not in imported, f"{module} breaks --reactor"


def test_the_packages_are_all_listed_for_the_wheel() -> None:
    listed = set(re.findall(r"^    (twisted[\w.]*)$", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE))
    assert listed == {name_of(path) for path in PACKAGE.rglob("__init__.py")} | {
        "twisted.plugins",
        # the folder config
        "twisted_vllm.files",
    }
    assert list((REPOSITORY / "twisted").rglob("__init__.py")) == []


def test_the_architecture_names_only_what_exists_and_every_package() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    named = set(
        re.findall(r"(?<![\w./])((?:twisted_vllm|twisted/plugins|tests|benchmarks|docs|config)/[\w./-]*\w/?)", text)
    )
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []
    for package in sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        assert re.search(rf"`twisted_vllm/{package}/?`", text), f"ARCHITECTURE.md does not name {package}"


def is_skipped(path: Path) -> bool:
    # .venv-3.13 is that of another Python
    return any(part in SKIPPED_DIRECTORIES or part.startswith(".venv-") for part in path.parts)


def test_nothing_names_a_path_of_somebody_s_machine() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in sorted(REPOSITORY.rglob("*"))
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__)
        if not is_skipped(path.relative_to(REPOSITORY))
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
