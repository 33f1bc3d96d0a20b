"""The console of a gateway with workers: a session holds at all of them, and its end too."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from tests.end_to_end.process_harness import Connection, served
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE
from tests.end_to_end.workers_harness import ANSWER, Workers, started


def _answer(connection: Connection) -> None:
    while connection.read_head():
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with served(_answer) as server, started(Workers(tmp_path_factory.mktemp("gateway"), server.port)) as found:
        yield found


def ask(
    gateway: Workers, method: str, path: str, cookie: str = "", form: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Ask over a connection of its own, so that any worker may answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    headers = {"Cookie": cookie} if cookie else {}
    if form is not None:
        headers |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{gateway.port}"}
    try:
        connection.request(method, path, None if form is None else urlencode(form), headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def sign_in(gateway: Workers) -> str:
    status, headers, _ = ask(gateway, "POST", "/ui/sign-in", form={"key": MASTER_KEY})
    assert status == 303
    return headers["set-cookie"].partition(";")[0]


def test_a_session_holds_at_all_workers_and_ends_at_all_of_them(gateway: Workers) -> None:
    cookie = sign_in(gateway)
    # each connection goes to one of the two
    assert {ask(gateway, "GET", "/ui", cookie)[0] for _ in range(20)} == {200}
    page = ask(gateway, "GET", "/ui", cookie)[2].decode()
    proof = re.search(r'name="anti-forgery" content="(\w+)"', page)
    assert proof is not None
    status, headers, _ = ask(gateway, "POST", "/ui/sign-out", cookie, {"anti_forgery": proof[1]})
    assert (status, headers["location"]) == (303, "/ui/sign-in?reason=signed_out")
    assert {ask(gateway, "GET", "/ui", cookie)[0] for _ in range(20)} == {303}


def test_a_worker_that_starts_later_knows_what_was_ended(gateway: Workers) -> None:
    cookie = sign_in(gateway)
    page = ask(gateway, "GET", "/ui", cookie)[2].decode()
    proof = re.search(r'name="anti-forgery" content="(\w+)"', page)
    assert proof is not None
    ask(gateway, "POST", "/ui/sign-out", cookie, {"anti_forgery": proof[1]})
    gateway.wait_until_replaced(gateway.kill(1))
    assert {ask(gateway, "GET", "/ui", cookie)[0] for _ in range(20)} == {303}


def test_the_log_has_no_cookie_and_no_key(gateway: Workers) -> None:
    cookie = sign_in(gateway)
    ask(gateway, "GET", "/ui", cookie)
    ask(gateway, "POST", "/ui/sign-in", form={"key": "sk-wrong-0123456789abcdef"})
    text = (gateway.directory / "gateway.log").read_text()
    assert "/ui" in text
    for secret in (cookie.partition("=")[2], MASTER_KEY, "sk-wrong-0123456789abcdef"):
        assert secret not in text
