"""The caches for what clients and servers name."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from tests.test_architecture import MODULES
from twisted_vllm.bounded_cache import BoundedCache

#: the functions whose results `functools` keeps, and why their arguments are bounded. Whoever adds one says it here.
MEMOISED = {
    "admin.app._document": "no arguments",
    "admin.app._route_list": "no arguments",
    "admin.web.assets.read_assets": "no arguments",
    "admin.web.templates.make_environment": "no arguments",
    "admin.app._routes": "no arguments",
    "admin.parsing._types_of": "the classes of queries",
    "api_routes._memoised": "paths up to MEMOISED_LENGTH; a few methods",
    "auth.policy._granted": "administrators' texts, which the key in memory has too",
    "auth.policy._model_pattern": "administrators' texts, which the key in memory has too",
    "field_policy.media_hosts._compiled": "the operator's",
    "bodies.request_tags._tags_in": "header values up to _LONGEST_VALUE",
    "config.model_ids._derived": "the operator's secret, and those before a reload",
    "config.name_patterns._compiled": "the configuration's patterns",
    "config.text_patterns.compiled": "the operator's",
    "config.servers.server": "the servers of one file, while it is read",
    "field_policy.policy._interned": "administrators' texts, which the key in memory has too",
    "field_policy.policy._policy_of": "administrators' texts, which the key in memory has too",
    "field_policy.rules._interned": "administrators' texts, which the key in memory has too",
    "field_policy.rules.parse_path": "up to 600 characters: others raise an error, which is not kept",
    "mounts._memoised": "paths up to MEMOISED_LENGTH",
    "observability.logging.lines._whole_second": "numbers",
    "observability.contents.stream_texts._decoders": "two classes",
    "observability.client_text._clean": "texts cut to READ_LIMIT",
    "observability.client_text._clean_path": "paths cut to READ_LIMIT",
    "proxy.forwarded._memoised_trust": "addresses up to MAX_ADDRESS_LENGTH",
    "proxy.paths._memoised": "targets up to MEMOISED_LENGTH",
    "ratelimit.periods._length": "up to 11 characters: others raise an error, which is not kept",
    "storage.grants._effective": "administrators' texts, which the key in memory has too",
    "storage.grants._fields": "administrators' texts, which the key in memory has too",
    "storage.grants._labels": "administrators' texts, which the key in memory has too",
    "storage.grants._limits": "administrators' texts, which the key in memory has too",
    "storage.grants._names": "administrators' texts, which the key in memory has too",
    "storage.usage.bulk_insert._statement": "numbers",
    "storage.usage.steps._month": "numbers",
    "usage.readers.registry.reading": "headers cut to MAX_CONTENT_TYPE",
}


def memoised_in(module: str) -> set[str]:
    """Return the functions of a module whose results are kept: decorated ones, and names that a cache is bound to."""
    tree = ast.parse(MODULES[module].read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "functools"]
    names = {alias.asname or alias.name for node in imports for alias in node.names if alias.name.endswith("cache")}

    def is_memoising(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in names

    found = []
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Import) and node.names[0].name == "functools"), f"import its names in {module}"
        if isinstance(node, ast.FunctionDef):
            found += [node.name for each in node.decorator_list if any(map(is_memoising, ast.walk(each)))]
        elif isinstance(node, ast.Assign) and any(map(is_memoising, ast.walk(node.value))):
            found += [ast.unparse(target).removeprefix("self.") for target in node.targets]
    assert len(found) == sum(map(is_memoising, ast.walk(tree))), f"bind each cache in {module} to a name of its own"
    return {f"{module.removeprefix('twisted_vllm.')}.{name}" for name in found}


def test_every_memoised_function_says_why_its_arguments_are_bounded() -> None:
    assert set().union(*map(memoised_in, MODULES)) == set(MEMOISED)


def test_a_full_cache_drops_its_oldest_entry() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2, 10)
    for number, key in enumerate("abca"):
        cache.keep(key, number, 1)
    assert list(cache.newest_first()) == [("a", 3), ("c", 2)]
    cache.keep("c", 4, 1)
    assert list(cache.newest_first()) == [("a", 3), ("c", 4)]


def test_what_is_too_large_is_not_kept_and_replaces_what_was() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2, 10)
    cache.keep("a", 1, 10)
    cache.keep("b", 1, 11)
    assert ("a" in cache, "b" in cache) == (True, False)
    cache.keep("a", 2, 11)
    assert cache.get("a") is None


@given(st.lists(st.tuples(st.text(max_size=20), st.integers())), st.integers(1, 5), st.integers(0, 10))
def test_a_cache_never_holds_more_than_its_bound(kept: list[tuple[str, int]], entries: int, size: int) -> None:
    cache: BoundedCache[str, int] = BoundedCache(entries, size)
    for key, value in kept:
        cache.keep(key, value, len(key))
        assert cache.get(key) == (value if len(key) <= size else None)
        assert len(cache) <= entries
    assert sum(len(key) for key, _ in cache.newest_first()) <= entries * size
