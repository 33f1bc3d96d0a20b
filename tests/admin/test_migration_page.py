"""The page about LiteLLM names every path of LiteLLM, and says truly which of them exist here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from twisted_vllm.admin.app import ROUTES as ADMIN_ROUTES
from twisted_vllm.api_routes import ROUTES as VLLM_ROUTES

PAGE = Path(__file__).parents[2] / "docs" / "migrate-from-litellm.md"
#: the paths of LiteLLM, one a line
LITELLM = Path(__file__).with_name("litellm_routes.txt")

#: where vLLM's routes are served beside their own paths
_MOUNTS = re.compile(r"^(?:/vllm|/openai/deployments/\{\}|/engines/\{\}|/openai)(?=/)")
_PARAMETER = re.compile(r"\{[^}]*\}|<[^>]*>")


def plain(path: str) -> str:
    """Return a path with {} in place of each parameter."""
    return _PARAMETER.sub("{}", path)


def litellm_paths() -> list[str]:
    return [line for line in LITELLM.read_text().splitlines() if line.startswith("/")]


def rows(heading: str) -> Iterator[str]:
    """The paths in the first column of the tables below a heading of the page."""
    text = PAGE.read_text()
    _, found, rest = text.partition(f"\n### {heading}\n")
    assert found
    for line in re.split(r"\n#{2,3} ", rest)[0].splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def own_paths() -> set[str]:
    """The paths of the gateway's own routes."""
    return {plain(route.path) for route in ADMIN_ROUTES}


def vllm_paths() -> set[str]:
    """The paths of vLLM's routes, with and without /v1."""
    paths = {plain(row.path) for row in VLLM_ROUTES}
    return paths | {path.removeprefix("/v1") for path in paths}


def matches(pattern: str, path: str) -> bool:
    if pattern.endswith("/…"):
        return f"{path}/".startswith(f"{pattern.removesuffix('…')}")
    return pattern == path


EXISTING = ("The same", "Another shape")


@pytest.mark.parametrize("heading", EXISTING)
def test_what_is_said_to_exist_exists(heading: str) -> None:
    served = own_paths() | vllm_paths() | {"/vllm/{}"}
    listed = list(rows(heading))
    assert listed
    assert [path for path in listed if path not in served and _MOUNTS.sub("", path) not in served] == []


def test_what_is_said_to_be_missing_is_missing() -> None:
    own = own_paths()
    existing = {path for heading in EXISTING for path in rows(heading)}
    wrong = [
        path
        for pattern in rows("Not here")
        for path in own & set(litellm_paths())
        if matches(pattern, path) and path not in existing
    ]
    assert wrong == []
    assert [pattern for pattern in rows("Not here") if pattern in own] == []


def test_every_path_of_litellm_has_its_row() -> None:
    patterns = [path for heading in (*EXISTING, "Not here") for path in rows(heading)]
    assert [path for path in litellm_paths() if not any(matches(each, path) for each in patterns)] == []


def test_every_path_that_both_have_is_said_to_exist() -> None:
    existing = {path for heading in EXISTING for path in rows(heading)}
    both = (own_paths() | vllm_paths()) & set(litellm_paths())
    assert sorted(both - existing) == []


def test_no_path_has_two_rows() -> None:
    patterns = [path for heading in (*EXISTING, "Not here") for path in rows(heading)]
    assert sorted({path for path in patterns if patterns.count(path) > 1}) == []
