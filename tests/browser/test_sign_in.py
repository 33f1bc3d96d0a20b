"""Signing in and out with a real browser."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.browser_harness import MASTER_KEY, ConsoleGateway, Visit, fits_the_width


def test_an_administrator_signs_in_and_out(visit: Callable[..., Visit]) -> None:
    window = visit()
    page = window.open("/ui")
    expect(page).to_have_title("Sign in · twisted_vllm")
    window.assert_clean()
    window.sign_in(MASTER_KEY)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    window.assert_clean()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You have signed out.")).to_be_visible()
    window.open("/ui")
    expect(page).to_have_title("Sign in · twisted_vllm")


def test_a_wrong_key_is_told_in_words(visit: Callable[..., Visit]) -> None:
    window = visit()
    page = window.open("/ui/sign-in")
    page.get_by_label("Your key").fill("sk-this-is-not-a-key-0123")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")


def test_the_theme_is_chosen_and_kept(visit: Callable[..., Visit]) -> None:
    window = visit(MASTER_KEY, color_scheme="light")
    page = window.page
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(back) != light
    window.assert_clean()
    page.reload()
    assert page.evaluate(back) != light


def test_a_phone_has_a_menu(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800})
    page = window.page
    assert fits_the_width(page)
    expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()
    window.assert_clean()
