"""What of a server's head is changed for the client: its address, and the id of a second attempt."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.proxy.gateway_fakes import server
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.proxy.client_head import for_client, own_location

SERVER = server()  # gpu-1:8000
BASED = server(base_path=b"/base")


def context(**changes: Any) -> RequestContext:
    made = RequestContext(Peer("192.0.2.1", False), 10.0)
    made.request_id = b"the-client-s"
    made.server = SERVER
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://gpu-1:8000/v1/models", b"/vllm/v1/models"),
        (b"https://GPU-1:8000/v1/models?a=%2F#b", b"/vllm/v1/models?a=%2F#b"),
        (b"HTTP://gpu-1:8000", b"/vllm"),
        (b"http://gpu-1:8000?a=1", b"/vllm?a=1"),
        (b"http://user:secret@gpu-1:8000/v1", b"/vllm/v1"),
        (b"//gpu-1:8000/v1/models", b"/vllm/v1/models"),
        (b"/v1/models", b"/vllm/v1/models"),
        (b"/v1//models", b"/vllm/v1//models"),
        (b"models", b"models"),
        (b"?page=2", b"?page=2"),
        (b"", b""),
        (b"https://login.example/v1", b"https://login.example/v1"),
        (b"//login.example/v1", b"//login.example/v1"),
        (b"http://gpu-1:8000@login.example/v1", b"http://gpu-1:8000@login.example/v1"),
        (b"http://gpu-1:80000/v1", b"http://gpu-1:80000/v1"),
        (b"mailto:a@gpu-1:8000", b"mailto:a@gpu-1:8000"),
    ],
)
def test_the_server_s_address_becomes_the_gateway_s_path(value: bytes, expected: bytes) -> None:
    assert own_location(value, SERVER, b"/vllm") == expected


@pytest.mark.parametrize("base", [b"", b"http://gpu-1:8000"])
def test_the_server_s_base_path_is_not_the_client_s(base: bytes) -> None:
    assert own_location(base + b"/base/v1/models", BASED, b"/vllm") == b"/vllm/v1/models"
    assert own_location(base + b"/base?a", BASED, b"/vllm") == b"/vllm?a"
    assert own_location(base + b"/basement", BASED, b"/vllm") == b"/vllm/basement"


@pytest.mark.parametrize(("tls", "port", "url"), [(False, 80, b"http://gpu-1/a"), (True, 443, b"https://gpu-1/a")])
def test_a_server_on_the_default_port_may_leave_it_out(tls: bool, port: int, url: bytes) -> None:
    asked = attrs.evolve(SERVER, tls=tls, port=port)
    assert own_location(url, asked, b"/vllm") == b"/vllm/a"
    assert own_location(url, attrs.evolve(SERVER, port=8000), b"/vllm") == url


def test_an_address_of_ipv6_is_known() -> None:
    asked = attrs.evolve(SERVER, host="2001:db8::1", host_header=b"[2001:db8::1]:8000")
    assert own_location(b"http://[2001:DB8::1]:8000/a", asked, b"/vllm") == b"/vllm/a"


@pytest.mark.parametrize("status", [201, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", [b"Location", b"content-location"])
def test_the_head_of_a_redirect_is_changed_in_that_alone(status: int, name: bytes) -> None:
    headers = [(b"X-A", b"http://gpu-1:8000/"), (name, b"http://gpu-1:8000/v1/models"), (b"Content-Length", b"0")]
    head = ResponseHead(status, b"Over There", headers)
    changed = for_client(head, context(), b"/vllm")
    assert changed.relayed == [headers[0], (name, b"/vllm/v1/models"), headers[2]]
    assert (changed.status, changed.reason, changed.length) == (status, b"Over There", 0)


def test_other_heads_pass_as_they_are() -> None:
    ok = ResponseHead(404, b"Not Found", [(b"X-Request-Id", b"1")])
    assert for_client(ok, context(), b"/vllm") is ok
    elsewhere = ResponseHead(302, b"Found", [(b"Location", b"https://login.example/")])
    assert for_client(elsewhere, context(), b"/vllm") is elsewhere


def test_the_client_gets_its_own_id_back_from_a_second_attempt() -> None:
    head = ResponseHead(200, b"OK", [(b"X-Request-Id", b"second"), (b"Content-Length", b"2")])
    repeated = context(repeated_as="second")
    assert for_client(head, repeated, b"/vllm").relayed == [
        (b"X-Request-Id", b"the-client-s"),
        (b"Content-Length", b"2"),
    ]
