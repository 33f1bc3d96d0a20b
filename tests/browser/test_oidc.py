"""Signing in and out at a real OpenID provider with a real browser. Gateway and provider are different sites."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.free_ports import free_port
from tests.browser.browser_harness import MASTER_KEY, ConsoleGateway, Visit, fits_the_width, gateway_with_simulator
from tests.services.private_provider import PASSWORDS, PrivateProvider, is_installed, private_provider


@pytest.fixture(scope="module")
def provider_and_gateway(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrivateProvider, ConsoleGateway]]:
    if not is_installed():
        pytest.skip("Canaille is not installed (pip install 'canaille[front,oidc]')")
    directory, port = tmp_path_factory.mktemp("oidc"), free_port()
    with private_provider([f"http://127.0.0.1:{port}"]) as provider:
        console = f"console: {{oidc: {json.dumps(provider.settings())}}}"
        with gateway_with_simulator(directory, passthrough=console, port=port) as gateway:
            gateway.api("POST", "/team/new", {"team_id": "physics", "team_alias": "Physics"})
            yield provider, gateway


@pytest.fixture(scope="module")
def gateway(provider_and_gateway: tuple[PrivateProvider, ConsoleGateway]) -> ConsoleGateway:
    """A gateway whose people sign in at a provider; the fixture ``visit`` opens its console."""
    return provider_and_gateway[1]


def enter(page: Page, name: str) -> None:
    """Say who one is at the provider, and agree that the gateway hears of it."""
    page.get_by_role("textbox", name="Login").fill(name)
    page.get_by_role("button", name="Sign in").or_(page.get_by_role("button", name="Continue")).first.click()
    page.locator("#password").fill(PASSWORDS[name])
    page.locator("#passwordform button[type=submit]").click()


def sign_in(window: Visit, name: str) -> Page:
    """Sign in by the provider, from the console's form to its first page."""
    page = window.open("/ui")
    page.get_by_role("link", name="Sign in with Canaille").click()
    enter(page, name)
    page.locator("#accept").or_(page.get_by_text(f"{name}@example.com")).or_(page.get_by_role("alert")).first.wait_for()
    if page.locator("#accept").count():
        page.locator("#accept").click()
    return page


def test_who_declines_at_the_provider_comes_back_with_words(visit: Callable[..., Visit]) -> None:
    page = visit().open("/ui/oidc/sign-in")
    enter(page, "kay")
    page.locator("#deny").click()
    expect(page.get_by_role("alert")).to_contain_text("Canaille did not let you in, or you declined there.")


def test_an_administrator_signs_in_and_out_at_both(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit()
    page = window.open("/ui")
    expect(page.get_by_role("link", name="Sign in with Canaille")).to_be_visible()
    window.assert_clean()
    sign_in(window, "ada")
    page.wait_for_url(f"{gateway.url}/ui")
    expect(page.locator(".who")).to_contain_text("ada@example.com")
    expect(page.locator(".who")).to_contain_text("proxy_admin")
    assert window.problems == []
    # strict cookies come along: the page after the provider's was of the gateway's own site
    cookies = {cookie["name"]: cookie for cookie in window.context.cookies(f"{gateway.url}/ui/oidc")}
    assert {name: cookie["sameSite"] for name, cookie in cookies.items()} == {
        "vllm_console": "Strict",
        "vllm_console_person": "Strict",
    }
    assert all(cookie["httpOnly"] for cookie in cookies.values())
    page.reload()
    expect(page.locator(".who")).to_contain_text("ada@example.com")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You have signed out.")).to_be_visible()
    assert page.url == f"{gateway.url}/ui/sign-in?reason=signed_out"
    assert window.context.cookies(f"{gateway.url}/ui/oidc") == []
    window.open("/ui")
    expect(page).to_have_title("Sign in · twisted_vllm")
    # and at the provider, which asks who it is again
    page.get_by_role("link", name="Sign in with Canaille").click()
    expect(page.get_by_role("textbox", name="Login")).to_be_visible()
    assert urlsplit(page.url).hostname == "localhost"


def test_a_member_works_with_what_is_its_own_until_its_team_is_blocked(
    visit: Callable[..., Visit], gateway: ConsoleGateway
) -> None:
    window = visit()
    page = sign_in(window, "grace")
    page.wait_for_url(f"{gateway.url}/ui")
    expect(page.locator(".who")).to_contain_text("grace@example.com")
    expect(page.locator(".who")).to_contain_text("internal_user")
    assert window.problems == []
    # what scripts of pages send to vLLM's routes is the person's
    ticket = page.evaluate("console_.ticket()")
    assert gateway.chat(ticket)["choices"]
    # and so is a key that it makes, as its team's administrator; it lasts longer than the session
    gateway.api("POST", "/team/member_add", {"team_id": "physics", "member": {"role": "admin", "user_id": "grace"}})
    page.goto(f"{gateway.url}/ui/keys/new")
    page.get_by_label("Alias").fill("made-by-grace")
    page.get_by_label("Alias").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Copy the value of the key now")
    window.assert_clean()
    [made] = gateway.api("GET", "/key/list?user_id=grace&return_full_object=true")["keys"]
    assert (made["key_alias"], made["user_id"], made["expires"]) == ("made-by-grace", "grace", None)
    [entry] = gateway.api("GET", "/audit/list?action=key/generate")["audit_logs"]
    assert entry["actor_name"] == "grace@example.com"
    page.goto(f"{gateway.url}/ui/audit")
    expect(page.get_by_role("alert")).to_contain_text("may not see this page")
    window.problems.clear()
    page.goto(f"{gateway.url}/ui")
    gateway.api("POST", "/team/block", {"team_id": "physics"})
    try:
        page.reload()
        expect(page.get_by_role("status").first).to_contain_text("was blocked")
        page.get_by_role("link", name="Sign in with Canaille").click()
        expect(page.get_by_role("alert")).to_contain_text("The team of this account was blocked")
    finally:
        gateway.api("POST", "/team/unblock", {"team_id": "physics"})
    page.get_by_role("link", name="Sign in with Canaille", exact=True).click()
    page.wait_for_url(f"{gateway.url}/ui")
    gateway.api("POST", "/user/delete", {"user_ids": ["grace"]})
    page.reload()
    expect(page.get_by_role("status").first).to_contain_text("your user or team is not known here any more")


def test_a_stranger_is_told_why_and_may_come_as_another(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(viewport={"width": 390, "height": 800})
    page = sign_in(window, "eve")
    expect(page.get_by_role("alert")).to_contain_text("This account has none of the roles that are let in")
    assert fits_the_width(page)
    window.problems = [each for each in window.problems if "403" not in each]
    window.assert_clean()
    # the provider still knows who it is: the other way asks again
    page.get_by_role("link", name="Sign in with another account").click()
    page.locator("#password").wait_for()
    assert urlsplit(page.url).hostname == "localhost"
    # and a key works all the same
    window.sign_in(MASTER_KEY)
    expect(page.locator(".who")).to_contain_text("master key")


def test_an_answer_of_another_site_signs_nobody_in(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    """A page of somebody else sends the browser to the callback with a code of its own (login CSRF)."""
    window = visit()
    page = window.open("/ui/oidc/callback?code=forged&state=forged")
    expect(page.get_by_role("alert")).to_contain_text("began in another browser")
    assert window.context.cookies(f"{gateway.url}/ui") == []
