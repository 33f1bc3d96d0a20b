"""The page of the requests in flight in a real browser, with real streams."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.browser_harness import (
    MASTER_KEY,
    ConsoleGateway,
    Visit,
    fits_the_width,
    gateway_with_simulator,
)
from tests.end_to_end.twistd_harness import wait_until

#: seconds between two tokens of the simulator
TOKEN = 0.1
MARKUP = "<img-src=x-onerror=alert(1)>"


class Stream:
    """A client of the gateway that reads a stream until its end.

    Attributes:
        received: what it got.
        ended: set when there is no more.
    """

    def __init__(self, gateway: ConsoleGateway, name: str, key: str = MASTER_KEY) -> None:
        body = {
            "model": "simulated-model",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "ignore_eos": True,
            "max_tokens": 20_000,
        }
        text = json.dumps(body)
        head = (
            f"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"X-Request-Id: {name}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        )
        self.received = b""
        self.ended = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", gateway.port))
        self._socket.sendall(head.encode())
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: b"data: " in self.received)

    def _read(self) -> None:
        try:
            while data := self._socket.recv(65_536):
                self.received += data
        except OSError:
            # it was cut
            pass
        self.ended.set()

    def leave(self) -> None:
        """Go before the stream ends."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(scope="module")
def gateway(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGateway]:
    """A gateway in front of a slow simulator, with a member, ada."""
    directory = tmp_path_factory.mktemp("live")
    with gateway_with_simulator(directory, options=(f"--token-interval={TOKEN}",)) as found:
        found.api("POST", "/user/new", {"user_id": "ada", "auto_create_key": False})
        found.api("POST", "/user/new", {"user_id": "eve", "user_role": "proxy_admin_viewer", "auto_create_key": False})
        yield found


@pytest.fixture
def stream(gateway: ConsoleGateway) -> Iterator[Callable[..., Stream]]:
    """Begin streams, which end with the test: ``stream(name, key)``."""
    with ExitStack() as stack:

        def begin(name: str, key: str = MASTER_KEY) -> Stream:
            made = Stream(gateway, name, key)
            stack.callback(made.leave)
            return made

        yield begin


@pytest.fixture(scope="module")
def ada(gateway: ConsoleGateway) -> str:
    """A key of a member."""
    made = gateway.api("POST", "/key/generate", {"key_alias": "ada's laptop", "user_id": "ada"})
    return str(made["key"])


def opened(window: Visit, query: str = "") -> Page:
    """Open the page, and wait for its list."""
    page = window.open(f"/ui/live{query}")
    expect(page.locator("#live-status")).to_have_text("updating")
    expect(page.locator("#live-shown")).to_contain_text("Showing")
    return page


def row(page: Page, name: str) -> Locator:
    return page.locator("#live-table tbody tr", has_text=name)


def rows(page: Page) -> Locator:
    return page.locator("#live-table tbody tr")


def test_streams_are_shown_and_go_on_without_a_reload(
    visit: Callable[..., Visit], stream: Callable[..., Stream], ada: str
) -> None:
    stream("of-master")
    stream("of-ada", ada)
    window = visit(MASTER_KEY)
    window.page.get_by_role("link", name="Live").click()
    page = window.page
    expect(rows(page)).to_have_count(2)
    of_ada = row(page, "of-ada")
    for words in ("ada's laptop", "ada", "simulated-model", "127.0.0.1", "Streaming"):
        expect(of_ada).to_contain_text(words)
    expect(page.locator("#live-matching")).to_have_text("2")
    expect(page.locator("#live-streaming")).to_have_text("2")
    window.assert_clean()
    # the same element is told more tokens
    of_ada.evaluate("row => (row.marked = true)")
    before = int(of_ada.locator("td").nth(6).inner_text())
    expect(of_ada.locator("td").nth(6)).not_to_have_text(str(before))
    assert int(of_ada.locator("td").nth(6).inner_text()) > before
    assert of_ada.evaluate("row => row.marked")


def test_an_administrator_cuts_a_stream_and_the_audit_log_says_why(
    visit: Callable[..., Visit], gateway: ConsoleGateway, stream: Callable[..., Stream], ada: str
) -> None:
    runaway, kept = stream("runaway", ada), stream("kept", ada)
    window = visit(MASTER_KEY)
    page = opened(window)
    page.get_by_role("button", name="Cut request runaway").click()
    dialog = page.get_by_role("dialog", name="Cut this request?")
    expect(dialog).to_contain_text("ada's laptop")
    window.assert_clean()
    # who thinks better of it changes nothing
    dialog.get_by_role("button", name="Let it go on").click()
    expect(dialog).to_be_hidden()
    assert not runaway.ended.is_set()
    page.get_by_role("button", name="Cut request runaway").click()
    dialog.get_by_label("Reason, for the audit log").fill("it repeats itself")
    dialog.get_by_role("button", name="Cut the request").click()
    expect(page.get_by_text("The request was cut.")).to_be_visible()
    assert runaway.ended.wait(5)
    assert not runaway.received.endswith(b"0\r\n\r\n")
    # whoever had the focus on it sees that it has ended, and it goes when the focus does
    expect(row(page, "runaway")).to_contain_text("Ended")
    page.get_by_role("button", name="Pause").focus()
    expect(row(page, "runaway")).to_have_count(0)
    assert not kept.ended.is_set()
    [entry] = gateway.api("GET", "/audit/list?action=request/cut&page_size=1")["audit_logs"]
    assert (entry["object_id"], entry["actor"], entry["after"]["reason"]) == ("runaway", "master", "it repeats itself")
    assert entry["before"]["key_name"] == "ada's laptop"


def test_a_request_that_ended_meanwhile_is_told_in_the_dialog(
    visit: Callable[..., Visit], stream: Callable[..., Stream]
) -> None:
    ends = stream("ends")
    window = visit(MASTER_KEY)
    page = opened(window)
    page.get_by_role("button", name="Cut request ends").click()
    ends.leave()
    expect(row(page, "ends")).to_contain_text("Ended")
    page.get_by_role("button", name="Cut the request").click()
    expect(page.get_by_role("alert")).to_contain_text("is in flight: it may have ended")
    # the answer 404 is the browser's only complaint
    assert all("404" in each for each in window.problems)


def test_filters_and_order_stand_in_the_address(
    visit: Callable[..., Visit], stream: Callable[..., Stream], ada: str
) -> None:
    stream("of-master")
    stream("of-ada", ada)
    page = opened(visit(MASTER_KEY))
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Order").select_option("Newest first")
    expect(rows(page).first).to_contain_text("of-ada")
    page.get_by_role("button", name="Show only key ada's laptop").click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#live-shown")).to_have_text("Showing 1 of 1. 1 more are filtered out.")
    assert "sort=age" in page.url and "key=" in page.url
    page.reload()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_label("Order")).to_have_value("age")
    page.get_by_label("State").select_option("Queued")
    expect(page.get_by_text("Nothing is in flight that is asked for.")).to_be_visible()
    page.get_by_role("link", name="Clear").click()
    expect(rows(page)).to_have_count(2)
    assert page.url.endswith("/ui/live")
    # by keyboard alone
    page.get_by_label("Key", exact=True).fill("nobody")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(0)


def test_focus_and_selection_stay_while_the_table_changes(
    visit: Callable[..., Visit], stream: Callable[..., Stream]
) -> None:
    for name in ("first", "second", "third"):
        stream(name)
    page = opened(visit(MASTER_KEY), "?sort=tokens")
    expect(rows(page)).to_have_count(3)
    page.get_by_role("button", name="Cut request second").focus()
    selected = "document.getSelection().toString()"
    row(page, "third").locator("td").nth(1).locator("span").first.evaluate(
        "cell => document.getSelection().selectAllChildren(cell)"
    )
    assert page.evaluate(selected) == "master"
    told = page.locator("#live-at").inner_text()
    # the order changes, rows come and go
    stream("fourth")
    expect(rows(page)).to_have_count(4)
    expect(page.locator("#live-at")).not_to_have_text(told)
    expect(page.get_by_role("button", name="Cut request second")).to_be_focused()
    assert page.evaluate(selected) == "master"


def test_paused_nothing_changes_until_it_goes_on(visit: Callable[..., Visit], stream: Callable[..., Stream]) -> None:
    stream("runs")
    page = opened(visit(MASTER_KEY))
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live-status")).to_have_text("paused")
    before = page.locator("#live-table").inner_text()
    stream("another")
    page.wait_for_timeout(2_500)
    assert page.locator("#live-table").inner_text() == before
    page.get_by_role("button", name="Resume").click()
    expect(rows(page)).to_have_count(2)


def test_a_member_sees_and_cuts_its_own_alone(
    visit: Callable[..., Visit], stream: Callable[..., Stream], ada: str
) -> None:
    stream("of-master")
    own = stream("of-ada", ada)
    window = visit(ada)
    page = opened(window)
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#live-shown")).to_have_text("Showing 1 of 1.")
    expect(page.locator("#live")).not_to_contain_text("of-master")
    expect(page.get_by_label("Server")).to_have_count(0)
    window.assert_clean()
    page.get_by_role("button", name="Cut request of-ada").click()
    page.keyboard.press("Enter")
    assert own.ended.wait(5)


def test_who_only_reads_has_no_button_to_cut(
    visit: Callable[..., Visit], gateway: ConsoleGateway, stream: Callable[..., Stream]
) -> None:
    stream("of-master")
    viewer = gateway.api("POST", "/key/generate", {"user_id": "eve"})["key"]
    page = opened(visit(viewer))
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Cut request")).to_have_count(0)


def test_markup_in_names_stays_text(
    visit: Callable[..., Visit], gateway: ConsoleGateway, stream: Callable[..., Stream]
) -> None:
    alias = "<script>alert(1)</script>"
    key = gateway.api("POST", "/key/generate", {"key_alias": alias, "user_id": "ada"})["key"]
    stream(MARKUP, key)
    window = visit(MASTER_KEY)
    page = opened(window)
    expect(row(page, MARKUP)).to_contain_text(alias)
    expect(page.locator("#live-keys")).to_contain_text(alias)
    assert page.locator("#live img, #live script").count() == 0
    page.get_by_role("button", name=f"Cut request {MARKUP}").click()
    expect(page.get_by_role("dialog")).to_contain_text(MARKUP)
    window.assert_clean()


def test_more_streams_than_are_shown_are_counted_all_the_same_also_on_a_phone_at_night(
    visit: Callable[..., Visit], stream: Callable[..., Stream]
) -> None:
    for number in range(55):
        stream(f"many-{number}")
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = opened(window, "?limit=50")
    expect(page.locator("#live-shown")).to_have_text("Showing 50 of 55.")
    expect(page.locator("#live-matching")).to_have_text("55")
    assert fits_the_width(page)
    # the button is there although the table is wider than the window
    expect(page.get_by_role("button", name="Cut request many-0", exact=True)).to_be_in_viewport()
    window.assert_clean()
