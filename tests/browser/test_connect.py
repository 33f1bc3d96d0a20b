"""Connecting a client in a real browser: what is copied is run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.browser_harness import MASTER_KEY, ConsoleGateway, Visit, fits_the_width

CLIPBOARD = ["clipboard-read", "clipboard-write"]


def copied(page: Page, label: str) -> str:
    """Press the button that copies a text; return what the clipboard has then."""
    page.get_by_role("button", name=label).click()
    expect(page.get_by_text("Copied.").last).to_be_visible()
    found: str = page.evaluate("navigator.clipboard.readText()")
    return found


def run(text: str) -> str:
    done = subprocess.run(["sh", "-ec", text], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def member(gateway: ConsoleGateway, name: str, role: str = "internal_user", **fields: Any) -> str:
    gateway.api("POST", "/user/new", {"user_id": name, "user_role": role, "auto_create_key": False})
    made = gateway.api("POST", "/key/generate", {"user_id": name, "key_alias": f"first-of-{name}", **fields})
    key: str = made["key"]
    return key


def test_a_member_makes_a_key_and_runs_what_she_copies(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(member(gateway, "ada"), permissions=CLIPBOARD)
    page = window.page
    page.get_by_role("link", name="Connect").click()
    expect(page.get_by_role("heading", name="Connect", exact=True)).to_be_visible()
    window.assert_clean()
    assert copied(page, "Copy the base URL") == f"{gateway.url}/v1"
    assert "YOUR_KEY" in copied(page, "Copy: A streamed answer")
    page.get_by_role("button", name="Make a new key…").click()
    window.assert_clean()
    page.get_by_label("Name").fill("laptop-of-ada")
    page.get_by_label("Works for").select_option("30 days")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_text("shown now and never again")).to_be_visible()
    window.assert_clean()
    key = copied(page, "Copy the key")
    assert gateway.api("GET", "/key/info", key=key)["info"]["user_id"] == "ada"
    listed = json.loads(run(copied(page, "Copy: The models that the key may use")))
    assert [each["id"] for each in listed["data"]] == ["simulated-model"]
    said = run(copied(page, "Copy: A streamed answer"))
    assert "simulated-model" in said
    assert said.rstrip().endswith("data: [DONE]")
    # the key stays with another client and another model, and comes into no address
    page.get_by_role("tab", name="Codex").click()
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_role("tab", name="Codex")).to_have_attribute("aria-selected", "true")
    assert key in copied(page, "Copy: In the shell")
    assert key not in page.url
    window.assert_clean()


def test_the_tabs_work_by_keyboard(visit: Callable[..., Visit]) -> None:
    window = visit(MASTER_KEY)
    page = window.open("/ui/connect?client=openai")
    tab = page.get_by_role("tab", name="OpenAI SDK")
    expect(tab).to_have_attribute("aria-selected", "true")
    tab.focus()
    tab.press("ArrowRight")
    expect(page.get_by_role("tab", name="Anthropic SDK")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("from anthropic import Anthropic")
    page.keyboard.press("End")
    expect(page.get_by_role("tabpanel")).to_contain_text("ChatOpenAI")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="curl")).to_be_focused()
    for name in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=name).click()
        window.assert_clean()


def test_a_name_that_is_taken_is_told(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(member(gateway, "eve"))
    page = window.open("/ui/connect?client=curl")
    page.get_by_role("button", name="Make a new key…").click()
    page.get_by_label("Name").fill("first-of-eve")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("alert").first).to_contain_text("alias already")


def test_who_may_make_no_key_is_sent_to_an_administrator(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(member(gateway, "kim", "internal_user_viewer"))
    page = window.open("/ui/connect")
    expect(page.get_by_text("Ask an administrator for one.")).to_be_visible()
    expect(page.get_by_role("button", name="Make a new key…")).to_have_count(0)


def test_the_page_fits_a_phone(visit: Callable[..., Visit]) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = window.open("/ui/connect?client=claude-code")
    assert fits_the_width(page)
    window.assert_clean()
