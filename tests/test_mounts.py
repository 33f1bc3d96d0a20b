"""Which paths of the gateway are vLLM's."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import ROUTES, ModelPlace, RouteClass, VllmRoute, classify, without_alias
from twisted_vllm.mounts import MOUNT, Mount, Mounts, is_at_root, prefix_of, route_below_mount

AT_ROOT = [row for row in ROUTES if row.route_class is RouteClass.INFERENCE]
ELSEWHERE = [row for row in ROUTES if row.route_class is not RouteClass.INFERENCE]
NAMING = [row for row in AT_ROOT if row.model is ModelPlace.BODY]

MOUNTS = Mounts()


def concrete(path: str) -> bytes:
    return path.replace("{id}", "resp_0a1b").replace("/*", "/below").encode()


def short(row: VllmRoute) -> bytes:
    return concrete(row.path.removeprefix("/v1") if row.alias else row.path)


@pytest.mark.parametrize("path", [b"/vllm", b"/vllm/", b"/vllm/v1/models", b"/vllm/../v1", b"/vllm//x", b"/vllm/%2e"])
def test_everything_below_vllm_is_the_server_s_byte_for_byte(path: bytes) -> None:
    for mounts in (MOUNTS, Mounts(root_routes=False, path_aliases=False)):
        assert mounts.find(path) == Mount(MOUNT, path.removeprefix(b"/vllm"))


@pytest.mark.parametrize("row", AT_ROOT, ids=lambda row: row.path)
def test_an_inference_route_is_at_the_root_by_each_of_its_names(row: VllmRoute) -> None:
    assert is_at_root(row)
    for path in (concrete(row.path), short(row)):
        for prefix in (b"", b"/openai"):
            found = MOUNTS.find(prefix + path)
            assert found == MOUNTS.find(prefix + path + b"/") == Mount(b"", path)
            assert without_alias(found.path) == concrete(row.path)
            assert Mounts(root_routes=False).find(prefix + path) is None


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row.path)
def test_no_other_route_is_at_the_root(row: VllmRoute) -> None:
    for path in (concrete(row.path), short(row), b"/openai" + concrete(row.path), b"/engines/m" + short(row)):
        assert MOUNTS.find(path) is None


def test_without_path_aliases_the_root_has_the_server_s_own_paths_alone() -> None:
    mounts = Mounts(path_aliases=False)
    assert mounts.find(b"/chat/completions") is None
    assert mounts.find(b"/openai/responses/resp_1") is None
    assert mounts.find(b"/v1/chat/completions") == Mount(b"", b"/v1/chat/completions")
    # these are names of their own
    assert mounts.find(b"/engines/m/chat/completions") == Mount(b"", b"/v1/chat/completions", "m")


@pytest.mark.parametrize("row", NAMING, ids=lambda row: row.path)
@pytest.mark.parametrize("before", [b"/engines/", b"/v1/engines/", b"/openai/deployments/"])
def test_a_path_may_name_the_model(before: bytes, row: VllmRoute) -> None:
    for model in ("m", "gpt-4o:free", "org/name", "a/b/c", "chat/completions"):
        path = before + model.encode() + short(row)
        assert MOUNTS.find(path) == Mount(b"", concrete(row.path), model)
        assert Mounts(root_routes=False).find(path) is None


@pytest.mark.parametrize("row", [row for row in AT_ROOT if row not in NAMING], ids=lambda row: row.path)
def test_a_path_names_no_model_for_a_route_whose_body_does_not(row: VllmRoute) -> None:
    assert MOUNTS.find(b"/engines/m" + short(row)) is None


@given(st.text(st.characters(exclude_categories=("C", "Z"))).filter(lambda name: name not in ("", ".", "..")))
def test_a_model_s_name_is_decoded_once(name: str) -> None:
    path = f"/openai/deployments/{quote(name, safe='')}/embeddings".encode()
    assert MOUNTS.find(path) == Mount(b"", b"/v1/embeddings", name)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/v1",
        b"/v1/",
        b"*",
        b"/vllmx",
        b"/VLLM/v1/models",
        b"/V1/chat/completions",
        b"/v1//chat/completions",
        b"//v1/chat/completions",
        b"/v1/chat/completions//",
        b"/v1/./chat/completions",
        b"/v1/x/../chat/completions",
        b"/v1/%2e/chat/completions",
        b"/v1/chat%2Fcompletions",
        b"/v1/%63hat/completions",
        b"/v1/chat/completions;x=1",
        b"/v1/chat/completions%0a",
        b"/v1/chat/completions\n",
        b"/v1\\chat\\completions",
        b"/v1/responses/..",
        b"/v1/responses/.",
        b"/v1/responses/%2e%2e",
        b"/v1/responses/a%2Fb",
        b"/v1/responses/../files",
        b"/v1/responses/a/b",
        b"/openai/openai/v1/completions",
        b"/engines",
        b"/engines//chat/completions",
        b"/engines/m//chat/completions",
        b"/engines/./chat/completions",
        b"/engines/../chat/completions",
        b"/engines/%2e%2E/chat/completions",
        b"/engines/a/../chat/completions",
        b"/engines/a;b/chat/completions",
        b"/engines/a%/chat/completions",
        b"/engines/a\\b/chat/completions",
        b"/engines/%ff/chat/completions",
        b"/engines/a%00/chat/completions",
        b"/engines/a%0Ab/chat/completions",
        b"/engines/m/chat%2Fcompletions",
        b"/engines/m/models",
        b"/engines/m/files",
        b"/engines/m/responses/resp_1",
        b"/openai/engines/m/chat/completions",
        b"/deployments/m/chat/completions",
        b"/openai/deployments/m/images/generations",
        b"/key/generate",
        b"/health",
        b"/metrics",
    ],
)
def test_what_is_no_plain_path_of_a_route_is_not_the_server_s(path: bytes) -> None:
    assert MOUNTS.find(path) is None


@given(st.binary(max_size=60) | st.text("/.%2eEv1chatompleins;?#\\", max_size=60).map(str.encode))
def test_whatever_is_found_at_the_root_is_one_inference_route(path: bytes) -> None:
    for candidate in (path, b"/v1/responses/" + path, b"/engines/" + path + b"/completions"):
        found = MOUNTS.find(candidate)
        if found is not None and found.prefix != MOUNT:
            route = classify(b"POST", without_alias(found.path))
            assert (route.certain, route.route_class) == (True, RouteClass.INFERENCE)
            assert found.model.isprintable()


def test_the_longest_path_is_read_in_milliseconds() -> None:
    for tail in (b"chat/completions", b"chat/completion", b"../completions"):
        started = time.thread_time()
        MOUNTS.find(b"/engines/" + b"a/" * 30_000 + tail)
        assert time.thread_time() - started < 0.1


def test_settings_may_change() -> None:
    mounts = Mounts()
    path = b"/openai/deployments/m/completions"
    assert mounts.find(path)
    mounts.reconfigure(root_routes=False, path_aliases=True)
    assert mounts.find(path) is None
    mounts.reconfigure(root_routes=True, path_aliases=True)
    assert mounts.find(path)


def test_a_redirect_stays_where_the_request_came() -> None:
    assert prefix_of(b"/vllm/v1/models/?a=1") == b"/vllm"
    assert prefix_of(b"/v1/chat/completions?x=/vllm") == b""


def test_who_misses_vllm_s_mount_learns_the_path() -> None:
    assert route_below_mount(b"/sleep") == "/vllm/sleep"
    assert route_below_mount(b"/load_lora_adapter") == "/vllm/v1/load_lora_adapter"
    assert route_below_mount(b"/v1/chat/completions") == "/vllm/v1/chat/completions"
    assert route_below_mount(b"/engines/m/completions") == "/vllm/v1/completions"
    # the route's own path, and nothing that a client wrote
    assert route_below_mount(b"/v1/responses/sk-1234567890123456") == "/vllm/v1/responses/{id}"
    for path in (b"/v1/files", b"/key/generat", b"/", b"", b"*"):
        assert route_below_mount(path) is None
