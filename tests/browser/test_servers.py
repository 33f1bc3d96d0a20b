"""The engineer on call takes a server out and puts it back under load, and has servers sleep, with a real browser."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.browser_harness import (
    MASTER_KEY,
    ConsoleGateway,
    Visit,
    fits_the_width,
    gateway_with_simulator,
)
from tests.end_to_end.twistd_harness import ask, wait_until

BODY = '{"model": "simulated-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}'


@pytest.fixture(scope="module")
def gateway(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGateway]:
    """A gateway in front of two servers, which tell their load."""
    extra = "router_settings: {routing_strategy: least-busy}\n"
    with gateway_with_simulator(
        tmp_path_factory.mktemp("servers"),
        simulators=2,
        extra=extra,
        passthrough="health: {interval: 0.5, scrape_metrics: true}",
    ) as found:
        yield found


class Load:
    """Threads that send requests until the block is left."""

    def __init__(self, gateway: ConsoleGateway, threads: int = 2) -> None:
        self.statuses: Counter[int] = Counter()
        self._gateway = gateway
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._over.is_set():
            status, _ = ask(self._gateway.port, "/v1/chat/completions", MASTER_KEY, "POST", BODY)
            self.statuses[status] += 1

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for each in self._threads:
            each.join()


def servers_of(gateway: ConsoleGateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.api("GET", "/server/list")["servers"]
    return found


def open_first(window: Visit, gateway: ConsoleGateway) -> tuple[Page, str]:
    """Open the page of the first server from the list; return it, and the server's name."""
    name = servers_of(gateway)[0]["server"]
    page = window.page
    page.get_by_role("link", name="Servers", exact=True).click()
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    return page, name


def test_the_list_shows_each_server_and_keeps_itself_current(
    visit: Callable[..., Visit], gateway: ConsoleGateway
) -> None:
    window = visit(MASTER_KEY)
    page = window.open("/ui/servers")
    first, second = servers_of(gateway)
    rows = page.locator("#servers tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("serves")
    expect(rows.nth(0)).to_contain_text("simulated-model")
    expect(rows.nth(0).locator("[data-field=version]")).to_contain_text("simulator")
    window.assert_clean()
    gateway.api("POST", "/server/drain", {"server": second["server"], "reason": "by the API"})
    expect(rows.nth(1)).to_contain_text("drained")
    expect(rows.nth(1)).to_contain_text("by the API")
    window.assert_clean()
    gateway.api("POST", "/server/undrain", {"server": second["server"]})
    expect(rows.nth(1)).to_contain_text("serves")
    page.get_by_label("Server, model or state").fill(first["server"])
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(1)
    window.assert_clean()


def test_a_server_is_drained_under_load_and_no_request_fails(
    visit: Callable[..., Visit], gateway: ConsoleGateway
) -> None:
    window = visit(MASTER_KEY)
    page, name = open_first(window, gateway)
    with Load(gateway) as load:
        wait_until(lambda: load.statuses[200] > 10)
        page.get_by_role("button", name="Drain…").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("requests in flight end first")
        window.assert_clean()
        dialog.get_by_label("Why").fill("new driver")
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(page.get_by_text("The server is drained: it gets no new requests.")).to_be_visible()
        expect(page.locator("[data-kind]").first).to_have_text("drained")
        wait_until(lambda: servers_of(gateway)[0]["in_flight"] == 0)
        before = load.statuses[200]
        wait_until(lambda: load.statuses[200] > before + 20)
        assert servers_of(gateway)[0]["in_flight"] == 0
        window.assert_clean()
        page.get_by_role("button", name="Undrain…").click()
        page.get_by_role("dialog").get_by_role("button", name="Undrain", exact=True).click()
        expect(page.get_by_text("The server is in service again.")).to_be_visible()
        expect(page.locator("[data-kind]").first).to_have_text("serves")
    assert {*load.statuses} == {200}, "no request failed"
    [last, first] = gateway.api("GET", "/audit/list?object_type=server&page_size=2")["audit_logs"]
    assert (first["action"], last["action"]) == ("server/drain", "server/undrain")
    assert first["after"]["reason"] == "new driver"
    assert name in first["object_id"]


def test_the_last_server_is_drained_after_a_warning(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    second = servers_of(gateway)[1]["server"]
    gateway.api("POST", "/server/drain", {"server": second})
    page, name = open_first(window, gateway)
    page.get_by_role("button", name="Drain…").click()
    expect(page.get_by_role("dialog")).to_contain_text("its requests will be refused with 503")
    page.get_by_role("dialog").get_by_role("button", name="Drain", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("No other server of simulated-model gets requests")
    assert ask(gateway.port, "/v1/chat/completions", MASTER_KEY, "POST", BODY)[0] == 503
    for each in (name, second):
        gateway.api("POST", "/server/undrain", {"server": each})
    assert ask(gateway.port, "/v1/chat/completions", MASTER_KEY, "POST", BODY)[0] == 200


def test_a_server_is_put_to_sleep_and_woken(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    page, name = open_first(window, gateway)
    page.get_by_role("button", name="Sleep…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("requests are in flight there now")
    window.assert_clean()
    dialog.get_by_role("button", name="Sleep", exact=True).click()
    expect(dialog.get_by_role("status")).to_contain_text(f"{name}: done (200)")
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator("[data-kind]").first).to_have_text("sleeps")
    assert ask(gateway.port, "/v1/chat/completions", MASTER_KEY, "POST", BODY)[0] == 200, "the other one serves"
    page.get_by_role("button", name="Wake up…").click()
    page.get_by_role("dialog").get_by_role("button", name="Wake up", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("done (200)")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.locator("[data-kind]").first).to_have_text("serves")
    actions = [each["action"] for each in gateway.api("GET", "/audit/list?object_type=server")["audit_logs"]]
    assert {"server/sleep", "server/wake_up"} <= {*actions}
    window.assert_clean()


def test_the_caches_of_several_servers_are_reset_with_a_result_for_each(
    visit: Callable[..., Visit], gateway: ConsoleGateway
) -> None:
    window = visit(MASTER_KEY)
    page = window.open("/ui/servers")
    names = [each["server"] for each in servers_of(gateway)]
    page.get_by_role("button", name="Reset prefix cache…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Reset", exact=True).click()
    expect(dialog.get_by_role("status")).to_contain_text("Choose at least one server.")
    for name in names:
        dialog.get_by_label(name, exact=True).check()
    dialog.get_by_role("button", name="Reset", exact=True).click()
    for name in names:
        expect(dialog.get_by_role("status")).to_contain_text(f"{name}: done (200)")
    window.assert_clean()
    dialog.get_by_role("button", name="Close").click()
    # what a server does not have is told for it
    page.get_by_role("button", name="Load LoRA…", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("adapter")
    dialog.get_by_label("Path on the server").fill("/models/adapter")
    dialog.get_by_label(names[0], exact=True).check()
    dialog.get_by_role("button", name="Load", exact=True).click()
    expect(dialog.get_by_role("status")).to_contain_text(f"{names[0]}: not done: 404")


def test_a_phone_shows_the_servers(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800})
    for path in ("/ui/servers", f"/ui/servers/detail?server={servers_of(gateway)[0]['server']}", "/ui/tester"):
        assert fits_the_width(window.open(path)), path
        window.assert_clean()


def test_a_viewer_sees_the_servers_and_changes_none(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    gateway.api("POST", "/user/new", {"user_id": "auditor", "user_role": "proxy_admin_viewer"})
    key = gateway.api("POST", "/key/generate", {"user_id": "auditor"})["key"]
    window = visit(key)
    page, _ = open_first(window, gateway)
    expect(page.get_by_text("Only administrators drain servers.")).to_be_visible()
    expect(page.get_by_text("Acts on servers need the master key")).to_be_visible()
    expect(page.get_by_role("button", name="Drain…")).to_have_count(0)
    window.assert_clean()


def test_the_tester_says_whether_and_why_not(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    made = gateway.api("POST", "/key/generate", {"key_alias": "narrow <b>key</b>", "models": ["other"], "rpm_limit": 0})
    window = visit(MASTER_KEY)
    page = window.page
    page.get_by_role("link", name="May it call?").click()
    page.get_by_label("Key", exact=True).fill(made["key"])
    page.get_by_label("Model", exact=True).fill("simulated-model")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#verdict")).to_contain_text("No It may not: the request would be answered 403")
    expect(page.get_by_role("row", name="Model fails")).to_contain_text("key not allowed to access model")
    expect(page.locator("#verdict + p")).to_contain_text("narrow <b>key</b>")
    assert made["key"] not in page.content()
    window.assert_clean()
    gateway.api("POST", "/key/update", {"key": made["key"], "models": ["simulated-model"]})
    page = window.open(f"/ui/tester?key={made['token']}&model=simulated-model")
    expect(page.locator("#verdict")).to_contain_text("answered 429")
    expect(page.get_by_role("row", name="Limits of the key fails")).to_contain_text("A higher limit", ignore_case=True)
    gateway.api("POST", "/key/update", {"key": made["key"], "rpm_limit": None})
    page.reload()
    expect(page.locator("#verdict")).to_contain_text("Yes It may.")
    window.assert_clean()
    page.get_by_label("Route").fill("v1")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#field-route-problem")).to_be_visible()


def test_a_member_tests_its_own_keys(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    gateway.api("POST", "/user/new", {"user_id": "ada", "user_role": "internal_user"})
    key = gateway.api("POST", "/key/generate", {"user_id": "ada", "key_alias": "of ada"})["key"]
    other = gateway.api("POST", "/key/generate", {"key_alias": "of another"})
    window = visit(key)
    page = window.page
    expect(page.get_by_role("link", name="Servers", exact=True)).to_have_count(0)
    page.get_by_role("link", name="May it call?").click()
    page.get_by_label("Model", exact=True).fill("simulated-model")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#verdict")).to_contain_text("Yes It may.")
    page.get_by_label("Key", exact=True).fill(other["token"])
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert "of another" not in page.content()
