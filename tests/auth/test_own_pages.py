"""A link leads to a page of the console, whatever somebody wrote into it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.own_pages import HOME, LONGEST_PAGE, own_page


@pytest.mark.parametrize("page", ["/ui", "/ui/keys", "/ui/keys?page=2&search=a%20b", "/ui/requests/chatcmpl-1.2"])
def test_a_page_of_the_console_is_returned_to(page: str) -> None:
    assert own_page(page) == page


@pytest.mark.parametrize(
    "page",
    [
        *("", "/", "//evil.example.com", "https://evil.example.com/ui", "/uix", "/ui\\..\\x", "/ui/../key/list"),
        *(
            "/ui//evil.example.com",
            "/ui/%2e%2e/vllm",
            "/ui/%2E./vllm",
            "/ui/x%2f..%2f..%2fvllm",
            "/ui/\r\nset-cookie: a=b",
            "/ui/ä",
        ),
        *("javascript:alert(1)", "/ui#part", '/ui/"onload=', " /ui", "/ui/" + "x" * LONGEST_PAGE, "/ui/.", "\t/ui"),
    ],
)
def test_nothing_else_is_returned_to(page: str) -> None:
    assert own_page(page) == HOME


@given(st.text(alphabet="/ui.\\%2eEfF:?#@ \tax", max_size=20))
def test_a_page_never_leaves_the_console(text: str) -> None:
    page = own_page(f"/ui{text}")
    parts = urlsplit(f"https://gateway.example.com{page}")
    assert parts.netloc == "gateway.example.com"
    assert parts.path == "/ui" or parts.path.startswith("/ui/")
    assert ".." not in parts.path.replace("%2e", ".").split("/")
