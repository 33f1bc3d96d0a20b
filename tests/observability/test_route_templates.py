"""The gateway's own paths are shown as routes: no key stands in them."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.admin.app import ROUTES
from twisted_vllm.observability.route_templates import RouteTemplates

#: a parameter of a path, as Klein writes it
PARAMETER = re.compile(r"<\w+:(\w+)>")
TEMPLATES = RouteTemplates(route.path for route in ROUTES)


@pytest.mark.parametrize("path", [route.path for route in ROUTES])
def test_every_route_is_shown_as_itself(path: str) -> None:
    shown = PARAMETER.sub(r"{\1}", path)
    assert TEMPLATES.show(path) == shown
    assert TEMPLATES.show(PARAMETER.sub("sk-0123456789abcdef", path)) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/key/sk-$uper!Secret~Key/regenerate", "/key/{key}/regenerate"),
        ("/key/a%2Fb/regenerate", "/key/{key}/regenerate"),
        ("/key/a/b/regenerate", "/key/{key}/{key}/regenerate"),
        ("/key/secret/regenerat", "/key/{key}/{key}"),
        ("/key/secret", "/key/{key}"),
        ("/key/", "/key/"),
        ("/key//secret/", "/key//{key}/"),
        ("//key/secret", "//key/{key}"),
        ("/KEY/secret", "/KEY/{key}"),
        ("/%6Bey/secret", "/%6Bey/{key}"),
        ("/key%2Fsecret", "/key/{key}"),
        ("/key%252Fsecret/regenerate", "/key/{key}/regenerate"),
        ("/key;secret", "/key/{key}"),
        ("/key=secret", "/key/{key}"),
        ("/key\\secret", "/key/{key}"),
        ("/x/../key/secret", "/x/../key/{key}"),
        ("/v1/models/a%2Fb", "/v1/models/{model_id}"),
        ("/nothing/here", "/nothing/here"),
        ("", ""),
    ],
)
def test_what_may_be_a_key_is_shown_as_one(path: str, shown: str) -> None:
    assert TEMPLATES.show(path) == shown


def test_without_routes_a_path_stays() -> None:
    assert RouteTemplates().show("/key/secret") == "/key/secret"


@given(
    st.text(min_size=1).map(lambda text: f"-{text}-0123456789"),
    st.integers(0, 3),
    st.sampled_from(["", "/", "/regenerate"]),
)
def test_no_key_of_any_characters_is_shown(key: str, encodings: int, rest: str) -> None:
    spelled = key
    for _ in range(encodings):
        spelled = quote(spelled, safe="")
    shown = TEMPLATES.show(f"/key/{spelled}{rest}")
    assert set(shown.split("/")) <= {"", "key", "{key}", "regenerate"}
