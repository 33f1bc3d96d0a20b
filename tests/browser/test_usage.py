"""Usage, requests and the audit log with a real browser: each task from signing in to its result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
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

#: text that would be markup, or a script, if anything took it for that
MARKUP = "<img src=x onerror=alert(1)><b>&amp;'\""
#: longer than a page shows
LONG = "lorem ipsum " * 3_000


@pytest.fixture(scope="module")
def gateway(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGateway]:
    """A gateway that keeps prompts, with requests of two members."""
    directory = tmp_path_factory.mktemp("gateway")
    with gateway_with_simulator(directory, general=", store_prompts_in_spend_logs: true") as found:
        yield found


class Members:
    """Two members with a key each, and what they asked."""

    def __init__(self, gateway: ConsoleGateway) -> None:
        self.gateway = gateway
        self.ada = self._member("ada")
        self.bob = self._member("bob")
        self.adas = [
            gateway.chat(
                self.ada, messages=[{"role": "user", "content": MARKUP}], user=MARKUP, metadata={"tags": [MARKUP]}
            ),
            gateway.chat(self.ada, messages=[{"role": "user", "content": LONG}]),
        ]
        self.bobs = gateway.chat(self.bob)
        status, _ = ask(
            gateway.port, "/vllm/v1/chat/completions", self.ada, "POST", '{"model": "nobody-has-this", "messages": []}'
        )
        assert status == 404
        wait_until(lambda: len(self.rows()) == 3)
        wait_until(lambda: all(self.contents(each) is not None for each in self.rows()))

    def _member(self, name: str) -> str:
        api = self.gateway.api
        api("POST", "/user/new", {"user_id": name, "user_role": "internal_user", "auto_create_key": False})
        made = api("POST", "/key/generate", {"user_id": name, "key_alias": f"key-of-{name}", "team_id": f"team-{name}"})
        return str(made["key"])

    def rows(self) -> list[Any]:
        return list(self.gateway.api("GET", "/spend/logs"))

    def contents(self, row: Any) -> Any:
        return self.gateway.api("GET", f"/usage/requests/{row['metadata']['usage_id']}")["contents"]


@pytest.fixture(scope="module")
def members(gateway: ConsoleGateway) -> Members:
    return Members(gateway)


def shown(page: Page, name: str) -> Any:
    return page.get_by_role("region", name=name)


def test_an_administrator_finds_who_used_how_much_and_looks_at_the_requests(
    visit: Callable[..., Visit], members: Members
) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    page.get_by_role("link", name="Usage", exact=True).click()
    expect(page.get_by_role("heading", name="Usage", exact=True, level=1)).to_be_visible()
    expect(page.locator("[data-chart] canvas")).to_be_visible()
    expect(shown(page, "Usage by model").get_by_role("link", name="simulated-model")).to_be_visible()
    window.assert_clean()
    page.get_by_label("Group by").select_option("Key")
    page.get_by_role("button", name="Show").click()
    table = shown(page, "Usage by key")
    row = table.get_by_role("row").filter(has_text="key-of-ada")
    expect(row.get_by_role("cell").first).to_have_text("2")
    window.assert_clean()
    row.get_by_role("link", name="key-of-ada").click()
    expect(page.get_by_role("heading", name="Requests", level=1)).to_be_visible()
    expect(shown(page, "Requests").locator("tbody tr")).to_have_count(2)
    window.assert_clean()
    # back to the whole, in the address
    page.go_back()
    expect(table).to_be_visible()


def test_a_report_is_kept_in_the_address_and_comes_as_a_file(visit: Callable[..., Visit], members: Members) -> None:
    window = visit(MASTER_KEY)
    page = window.open("/ui/usage?group_by=customer&period=30d&measure=requests")
    expect(page.get_by_label("Group by")).to_have_value("customer")
    expect(shown(page, "Usage by customer").get_by_role("link", name=MARKUP)).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    text = Path(download.value.path()).read_text("utf-8")
    assert text.splitlines()[0].startswith("start,end_user,requests")
    assert "<img src=x" in text
    page.get_by_label("Group by").select_option("Time only")
    page.get_by_label("Interval").select_option("Hour")
    page.get_by_role("button", name="Show").click()
    expect(shown(page, "Usage by time").locator("tbody tr").first).to_be_visible()
    assert "interval=hour" in page.url
    window.assert_clean()


def test_a_request_is_looked_at_with_its_timings_prompt_and_answer(
    visit: Callable[..., Visit], members: Members
) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    page.get_by_role("link", name="Requests", exact=True).click()
    page.get_by_text("Filters").click()
    page.get_by_label("User").fill("ada")
    page.get_by_role("button", name="Show").click()
    rows = shown(page, "Requests").locator("tbody tr")
    expect(rows).to_have_count(2)
    rows.last.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Request", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Until the first byte: .* Answer: "))).to_be_visible()
    # markup of the client is text, in the prompt, the customer and the tag
    expect(page.get_by_role("region", name="Prompt").locator("pre").first).to_have_text(MARKUP)
    assert page.get_by_text(MARKUP, exact=True).count() >= 3
    assert page.locator("main img[src]").count() == 0
    expect(page.get_by_role("region", name="Answer").locator("pre")).to_have_count(1)
    window.assert_clean()


def test_a_long_prompt_is_cut_and_comes_whole_as_a_file(visit: Callable[..., Visit], members: Members) -> None:
    window = visit(members.ada)
    page = window.open("/ui/requests")
    shown(page, "Requests").locator("tbody tr").first.get_by_role("link").click()
    expect(page.get_by_text("more characters")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the whole").click()
    assert LONG.strip() in Path(download.value.path()).read_text("utf-8")
    window.assert_clean()


def test_a_member_sees_its_own_and_nobody_else_s(visit: Callable[..., Visit], members: Members) -> None:
    window = visit(members.ada)
    page = window.open("/ui/usage?group_by=key&period=24h")
    expect(shown(page, "Usage by key").locator("tbody tr")).to_have_count(1)
    expect(page.get_by_text("key-of-bob")).to_have_count(0)
    assert "Server" not in page.get_by_label("Group by").inner_text()
    window.assert_clean()
    [bobs] = [row for row in members.rows() if row["user"] == "bob"]
    said = []
    for id in (bobs["metadata"]["usage_id"], "0" * 32):
        window.problems.clear()
        answer = page.goto(f"{window.url}/ui/requests/{id}")
        assert answer is not None
        assert answer.status == 404
        said.append(page.locator("main").inner_text())
    assert said[0] == said[1]
    window.problems.clear()
    answer = page.goto(f"{window.url}/ui/audit")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link", name="Audit")).to_have_count(0)


def test_an_administrator_reads_what_changed_and_what_it_was(
    visit: Callable[..., Visit], members: Members, gateway: ConsoleGateway
) -> None:
    gateway.api("POST", "/team/new", {"team_id": "red", "team_alias": MARKUP, "max_budget": 10})
    gateway.api("POST", "/team/update", {"team_id": "red", "max_budget": 20, "models": ["simulated-model"]})
    window = visit(MASTER_KEY)
    page = window.page
    page.get_by_role("link", name="Audit", exact=True).click()
    page.get_by_label("Kind").select_option("team")
    page.get_by_label("Id", exact=True).fill("red")
    page.get_by_role("button", name="Show").click()
    rows = shown(page, "Changes").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text(f"changed max_budget, models of the team {MARKUP} (red)")
    window.assert_clean()
    rows.first.get_by_role("link").click()
    changes = shown(page, "What changed").locator("tbody tr")
    expect(changes.filter(has_text="max_budget")).to_contain_text("10")
    expect(changes.filter(has_text="max_budget").locator("ins")).to_contain_text("20")
    window.assert_clean()
    page.go_back()
    rows.last.get_by_role("link").click()
    expect(shown(page, "What changed").get_by_text(MARKUP)).to_be_visible()
    window.assert_clean()


@pytest.mark.parametrize("path", ["/ui/usage?period=24h", "/ui/requests", "/ui/audit"])
def test_pages_fit_a_phone_in_the_dark(visit: Callable[..., Visit], members: Members, path: str) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = window.open(path)
    assert fits_the_width(page)
    window.assert_clean()


def test_a_request_fits_a_phone(visit: Callable[..., Visit], members: Members) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800})
    page = window.open("/ui/requests")
    shown(page, "Requests").locator("tbody tr").last.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Request", exact=True)).to_be_visible()
    assert fits_the_width(page)
    window.assert_clean()
