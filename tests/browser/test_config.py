"""The configuration in a real browser: search, and a reload of a good file and of a broken one."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.browser_harness import MASTER_KEY, ConsoleGateway, Visit, fits_the_width


def test_an_engineer_finds_what_is_in_force_and_reloads(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    page.get_by_role("link", name="Configuration").click()
    expect(page.get_by_role("heading", name="Configuration")).to_be_visible()
    settings = page.get_by_role("region", name="Settings in force")
    expect(settings.get_by_role("row").filter(has_text="general_settings.master_key")).to_contain_text(
        "LITELLM_MASTER_KEY"
    )
    expect(settings.get_by_text("passthrough.drain_timeout")).to_have_count(0)
    window.assert_clean()
    page.get_by_label("Show", exact=True).select_option("all")
    page.wait_for_url("**show=all**")
    page.get_by_label("Search").fill("drain_timeout")
    page.wait_for_url("**search=drain_timeout**")
    row = settings.get_by_role("row").filter(has_text="passthrough.drain_timeout")
    expect(row).to_contain_text("default")
    expect(settings.get_by_role("row")).to_have_count(2)
    row.get_by_text("passthrough.drain_timeout").click()
    expect(row.get_by_text("How long running requests may take")).to_be_visible()
    window.assert_clean()

    file = gateway.directory / "gateway.yaml"
    good = file.read_text()
    file.write_text(good.replace("passthrough: {", "passthrough: {drain_timeout: 7, "))
    page.get_by_role("button", name="Reload…").click()
    page.get_by_role("button", name="Reload now").click()
    last = page.get_by_role("status").filter(has_text="Last reload")
    expect(last).to_contain_text("succeeded")
    expect(last).to_contain_text("passthrough.drain_timeout")
    changed = settings.get_by_role("row").filter(has_text="passthrough.drain_timeout")
    expect(changed).to_contain_text("7.0 seconds")
    expect(changed).to_contain_text("gateway.yaml:3")
    window.assert_clean()

    file.write_text(good.replace("passthrough: {", "passthrough: {drain_timeout: soon, no_such_setting: 1, "))
    page.get_by_role("button", name="Reload…").click()
    page.get_by_role("button", name="Reload now").click()
    problems = page.get_by_role("alert").get_by_role("listitem")
    expect(problems).to_have_count(2)
    expect(problems.first).to_contain_text("passthrough.drain_timeout")
    # what was in force is in force still
    expect(settings.get_by_role("row").filter(has_text="passthrough.drain_timeout")).to_contain_text("7.0 seconds")
    window.assert_clean()
    file.write_text(good)
    gateway.api("POST", "/config/reload", {})


def test_the_level_of_the_log_is_changed_for_a_while(visit: Callable[..., Visit], gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    page = window.open("/ui/config")
    page.get_by_label("Level").select_option("debug")
    page.get_by_label("For", exact=True).select_option("10 minutes")
    page.get_by_role("button", name="Change the level").click()
    expect(page.get_by_role("heading", name="Level of the log")).to_contain_text("debug")
    expect(page.get_by_text("Configured is info")).to_be_visible()
    assert gateway.api("GET", "/config/log_level")["level"] == "debug"
    window.assert_clean()
    gateway.api("PUT", "/config/log_level", {"level": "info"})


def test_the_pages_fit_a_phone(visit: Callable[..., Visit]) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800}, color_scheme="dark")
    for path in ("/ui/config?show=all", "/ui/config/models"):
        page = window.open(path)
        assert fits_the_width(page)
        window.assert_clean()
