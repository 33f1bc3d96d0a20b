"""The rules of the house that a linter cannot hold: who may import whom, what stays pure, what the documents name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "twisted_vllm"
MAX_LINES = 300

#: what each part may import: tap -> service -> {gateway, admin} -> {access, ledger, limits, observe, store, wire} ->
#: config -> plain values
PLAIN = {"config", "errors", "money"}
MIDDLE = {"access", "ledger", "limits", "observe", "store", "wire"} | PLAIN
MAY_IMPORT = {
    "errors": set[str](),
    "money": set[str](),
    "config": PLAIN,
    # who has limits is said by what limits them
    "access": PLAIN | {"limits"},
    "ledger": PLAIN,
    "limits": PLAIN,
    "observe": PLAIN,
    "wire": PLAIN,
    # the store keeps the records of access and of the ledger, and what limits them
    "store": PLAIN | {"access", "ledger", "limits"},
    "gateway": MIDDLE,
    "admin": MIDDLE,
    # a stand-in for vLLM must not share the gateway's reading of HTTP, or their errors would agree
    "simulator": PLAIN,
    "quickstart": PLAIN,
    "starting": PLAIN,
    "stopping": PLAIN | {"wire"},
    "books": MIDDLE | {"gateway", "starting"},
    "parts": MIDDLE | {"gateway", "admin", "books", "stopping"},
    "service": MIDDLE | {"gateway", "admin", "starting", "stopping", "parts"},
    "tap": MIDDLE | {"service", "quickstart", "simulator", "starting", "stopping"},
}

#: what decides, without a reactor, a clock or I/O
PURE_PACKAGES = ("access", "config")
PURE_MODULES = (
    *(
        f"twisted_vllm.gateway.{name}"
        for name in (
            *("admission", "bodies", "form_scan", "forwarded", "members", "multipart"),
            *("paths", "routing", "slots", "splices"),
        )
    ),
    *(f"twisted_vllm.limits.{name}" for name in ("local", "periods", "values")),
    *(
        f"twisted_vllm.ledger.{name}"
        for name in (
            *(
                "counts",
                "document",
                "estimate",
                "prices",
                "readers",
                "scan",
                "sse",
                "stream_filter",
                "streams",
                "values",
            ),
        )
    ),
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
    found = set()
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


def part_of(module: str) -> str | None:
    """The second component of a name in our package: the part of the house."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if first == "twisted_vllm" else None


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


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part for module in MODULES if (part := part_of(module))} <= set(MAY_IMPORT)


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


def test_what_decides_knows_no_twisted() -> None:
    pure = [module for module in MODULES if part_of(module) in PURE_PACKAGES or module in PURE_MODULES]
    assert set(PURE_MODULES) <= set(pure)
    impure = {
        f"{module}: {importer} imports {imported}"
        for module in pure
        for importer, imported in everything_behind(module)
        if imported.partition(".")[0] in ("twisted", "treq", "klein")
    }
    assert sorted(impure) == []


def test_only_tap_imports_the_reactor() -> None:
    importers = [module for module in MODULES if "twisted.internet.reactor" in imports_of(module)]
    assert [module for module in importers if module.rpartition(".")[2] != "tap"] == []


def test_tap_imports_the_reactor_only_when_it_is_called() -> None:
    for module in MODULES:
        top_level = [node for node in ast.parse(MODULES[module].read_text()).body if isinstance(node, ast.ImportFrom)]
        imported = {f"{node.module}.{alias.name}" for node in top_level for alias in node.names}
        assert "twisted.internet.reactor" not in imported, f"{module} breaks --reactor"


def test_no_module_is_longer_than_a_reader_s_patience() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_packages_are_all_listed_for_the_wheel() -> None:
    listed = set(re.findall(r"^    (twisted[\w.]*)$", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE))
    assert listed == {name_of(path) for path in PACKAGE.rglob("__init__.py")} | {"twisted.plugins"}
    assert list((REPOSITORY / "twisted").rglob("__init__.py")) == []


def test_the_architecture_names_only_what_exists_and_every_package() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    named = set(
        re.findall(r"(?<![\w./])((?:twisted_vllm|twisted/plugins|tests|benchmarks|docs|config)/[\w./-]*\w/?)", text)
    )
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []
    for package in sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        assert re.search(rf"`twisted_vllm/{package}/?`", text), f"ARCHITECTURE.md does not name {package}"


def test_nothing_names_a_path_of_somebody_s_machine() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in sorted(REPOSITORY.rglob("*"))
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path != Path(__file__)
        if not SKIPPED_DIRECTORIES & set(path.relative_to(REPOSITORY).parts)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
