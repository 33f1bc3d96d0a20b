"""The page of the requests in flight: what it shows whom, what it asks the API, and how its list comes."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.web.web_harness import Browser, ConsoleGateway, words
from tests.observability.live_rows import live_request
from twisted_vllm.admin.web.pages.live import INTERVAL, LIMITS, SORTS, STATES
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut, Whose
from twisted_vllm.observability.request_states import State


@attrs.define
class FakeLive:
    """What is in flight, and what was asked."""

    was_cut: WasCut = attrs.field(factory=lambda: WasCut([live_request("r")]))
    asked: list[LiveQuery | Cut] = attrs.Factory(list)

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        self.asked.append(query)
        return succeed(LiveReport(1.0, 2, 1, [live_request("r<b>")], [("streaming", 1)]))

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        self.asked.append(cut)
        return succeed(self.was_cut)


class World:
    """A console, and what is in flight."""

    def __init__(self) -> None:
        self.live = FakeLive()
        self.gateway = ConsoleGateway(live=self.live)
        self.gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False})
        self.gateway.post("/user/new", {"user_id": "eve", "user_role": "proxy_admin_viewer", "auto_create_key": False})
        self.member = self.gateway.make_key(user_id="ada")["key"]
        self.viewer = self.gateway.make_key(user_id="eve")["key"]
        self.nobody = self.gateway.make_key()["key"]

    def browser(self, key: str = MASTER_KEY) -> Browser:
        return self.gateway.browser(key)

    def stream(self, browser: Browser, query: str = "") -> tuple[Any, list[bytes]]:
        """Ask for the list; return the response, and what comes of it."""
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        asked = self.gateway.ask(
            "GET", f"/ui/live/events?{query}", None, headers={"cookie": cookie, "accept": "text/event-stream"}
        )
        self.gateway.deliver()
        responses: list[Any] = []
        asked.addCallback(responses.append)
        came: list[bytes] = []
        responses[0].collect(came.append)
        self.gateway.deliver()
        return responses[0], came


@pytest.fixture
def world() -> World:
    return World()


def test_the_page_knows_every_state() -> None:
    assert set(STATES) == set(State.__args__)  # type: ignore[attr-defined]  # a Literal


def test_an_administrator_has_all_filters_and_may_cut(world: World) -> None:
    answer = world.browser().get("/ui/live")
    assert answer.status == 200
    shown = words(answer)
    for each in ("Model", "Key", "Team", "User", "Server", "State", "Order", "Cut this request?", "By server"):
        assert each in shown
    assert b"data-may-cut" in answer.body


def test_a_member_has_no_servers_and_may_cut_and_a_viewer_may_not(world: World) -> None:
    page = world.browser(world.member).get("/ui/live")
    assert "erver" not in words(page).partition("Model")[2]
    assert b"data-may-cut" in page.body
    for key in (world.viewer, world.nobody):
        page = world.browser(key).get("/ui/live")
        assert (b"data-may-cut" in page.body, "Cut this request?" in words(page)) == (False, False)


def test_filters_of_the_address_stand_in_the_form_and_unknown_ones_are_left_out(world: World) -> None:
    browser = world.browser()
    body = browser.get("/ui/live?model=%22%3E%3Cb%3E&state=queued&sort=-tokens&limit=500&key=ada").body
    assert b'value="&#34;&gt;&lt;b&gt;"' in body
    for value in (b"queued", b"-tokens", b"500"):
        assert b'value="%b" selected' % value in body
    body = browser.get("/ui/live?state=asleep&sort=bytes&limit=10000&other=x").body
    assert b'value="-age" selected' in body and b'value="100" selected' in body


def test_the_list_is_what_the_api_answers_and_comes_every_two_seconds(world: World) -> None:
    response, came = world.stream(world.browser())
    assert response.code == 200
    assert response.headers.getRawHeaders("content-type") == ["text/event-stream; charset=utf-8"]
    assert len(came) == 2
    found = msgspec.json.decode(came[1].removeprefix(b"data: "))
    assert (found["total"], found["requests"][0]["request_id"]) == (2, "r<b>")
    for number in range(3):
        world.gateway.clock.advance(INTERVAL)
        world.gateway.deliver()
        assert len(came) == 3 + number


@pytest.mark.parametrize("sort", SORTS)
def test_filters_reach_the_api(world: World, sort: str) -> None:
    world.stream(world.browser(), f"model=m&key=ada&team_id=t&user_id=u&server=s&state=queued&sort={sort}&limit=50")
    by = "tokens" if "tokens" in sort else "age"
    expected = LiveQuery(None, "queued", "m", "ada", "t", "u", "s", by, not sort.startswith("-"), 50)  # type: ignore[arg-type]
    assert set(world.live.asked) == {expected}
    assert "50" in LIMITS


def test_a_member_asks_for_its_own_alone_whatever_the_address_says(world: World) -> None:
    world.stream(world.browser(world.member), "server=gpu-1:8000&user_id=eve")
    [whose] = {each.whose for each in world.live.asked}
    assert whose is not None
    assert whose.user_id == "ada"
    assert {each.server for each in world.live.asked if isinstance(each, LiveQuery)} == {""}


def test_the_list_ends_with_the_session(world: World) -> None:
    browser = world.browser(world.member)
    _, came = world.stream(browser)
    world.gateway.post("/key/block", {"key": world.member})
    before = len(came)
    world.gateway.clock.advance(INTERVAL)
    world.gateway.deliver()
    assert len(came) == before


def test_a_cut_is_the_api_s(world: World) -> None:
    browser = world.browser(world.member)
    answer = browser.post("/ui/live/cut", {"request_id": "r", "reason": " too long "}, accept="application/json")
    assert (answer.status, answer.json["status"]) == (200, "success")
    [cut] = world.live.asked
    assert isinstance(cut, Cut)
    assert (cut.request_id, isinstance(cut.whose, Whose)) == ("r", True)
    [entry] = world.gateway.get("/audit/list?object_type=request").json["audit_logs"]
    assert (entry["action"], entry["after"]["reason"]) == ("request/cut", "too long")


def test_a_cut_that_fails_says_why_and_one_without_proof_is_refused(world: World) -> None:
    world.live.was_cut = WasCut([])
    browser = world.browser()
    answer = browser.post("/ui/live/cut", {"request_id": "gone"}, accept="application/json")
    assert answer.status == 404
    assert "`gone`" in answer.json["error"]["message"]
    asked = list(world.live.asked)
    assert browser.post("/ui/live/cut", {"request_id": "r"}, proof="x" * 43).status == 403
    assert world.live.asked == asked
    viewer = world.browser(world.viewer)
    assert viewer.post("/ui/live/cut", {"request_id": "r"}).status == 403
