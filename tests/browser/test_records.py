"""Keys, users, teams, organizations, customers and budgets: each task from signing in to its result."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.browser.browser_harness import MASTER_KEY, ConsoleGateway, Visit, fits_the_width
from tests.end_to_end.twistd_harness import wait_until

Open = Callable[..., Visit]


def go(page: Page, name: str) -> None:
    """Go to a page by the navigation."""
    page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def follow(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()


def test_an_administrator_makes_a_key_and_uses_it(visit: Open, gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY, permissions=["clipboard-read", "clipboard-write"])
    page = window.page
    go(page, "Keys")
    window.assert_clean()
    follow(page, "New key")
    window.assert_clean()
    page.get_by_label("Alias").fill("batch jobs")
    page.get_by_label("Models", exact=True).fill("simulated-model\nqwen*")
    page.get_by_label("Budget in US dollars", exact=True).fill("5")
    page.get_by_label("Budget period").fill("30d")
    press(page, "Make the key")
    expect(page.get_by_role("heading", level=1)).to_have_text("Copy the value of the key now")
    window.assert_clean()
    page.get_by_role("button", name="Copy").first.click()
    value = page.evaluate("navigator.clipboard.readText()")
    assert value.startswith("sk-")
    expect(page.get_by_label("A request with curl")).to_contain_text(value)
    assert gateway.chat(value)["choices"]
    follow(page, "I have copied it: to the key")
    expect(page.get_by_role("heading", level=1)).to_have_text("batch jobs")
    expect(page.get_by_text("of $5.00")).to_be_visible()
    window.assert_clean()
    assert value not in page.content()


def test_a_key_is_edited_blocked_and_regenerated_with_grace(visit: Open, gateway: ConsoleGateway) -> None:
    made = gateway.api("POST", "/key/generate", {"key_alias": "of-edits", "rpm_limit": 100})
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Keys")
    follow(page, "of-edits")
    follow(page, "Edit")
    window.assert_clean()
    page.get_by_label("Requests in 60 seconds", exact=True).fill("many")
    press(page, "Save the change")
    expect(page.get_by_text("This must be a whole number: many")).to_be_visible()
    window.problems.clear()  # the browser reports the answer's status
    window.assert_clean()
    page.get_by_label("Requests in 60 seconds", exact=True).fill("7")
    press(page, "Save the change")
    expect(page.get_by_role("status").get_by_text("The change is saved.")).to_be_visible()
    assert gateway.api("GET", f"/key/info?key={made['token']}")["info"]["rpm_limit"] == 7
    press(page, "Block")
    expect(page.get_by_text("The key is blocked")).to_be_visible()
    expect(page.locator(".badge", has_text="blocked")).to_be_visible()
    press(page, "Unblock")
    expect(page.get_by_text("The key works again.")).to_be_visible()
    follow(page, "Regenerate …")
    window.assert_clean()
    page.get_by_label("The old value").select_option("1h")
    press(page, "Regenerate the key")
    value = page.get_by_label("The value of the key").text_content() or ""
    assert gateway.chat(value)["choices"]
    assert gateway.chat(made["key"])["choices"]


def test_a_key_that_is_used_is_deleted_by_its_name(visit: Open, gateway: ConsoleGateway) -> None:
    made = gateway.api("POST", "/key/generate", {"key_alias": "of-deletion"})
    gateway.chat(made["key"])
    wait_until(lambda: gateway.api("GET", f"/key/impact?key={made['token']}")["requests"] == 1)
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Keys")
    follow(page, "of-deletion")
    follow(page, "Delete …")
    expect(page.get_by_text("1 key stops working at once. 1 request came with it in the last 7 days.")).to_be_visible()
    window.assert_clean()
    page.get_by_label("Type its name to delete it").fill("something else")
    press(page, "Delete the key")
    expect(page.get_by_role("alert")).to_contain_text("Type the name")
    page.get_by_label("Type its name to delete it").fill("of-deletion")
    press(page, "Delete the key")
    expect(page.get_by_text("It is deleted.")).to_be_visible()
    expect(page.get_by_role("link", name="of-deletion", exact=True)).to_have_count(0)


def test_a_list_is_searched_as_one_types_sorted_and_paged(visit: Open, gateway: ConsoleGateway) -> None:
    for number in range(55):
        gateway.api("POST", "/key/generate", {"key_alias": f"listed-{number:02}"})
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Keys")
    page.get_by_label("Search").press_sequentially("LISTED-0")
    expect(page.get_by_text("10 keys", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile(r"/ui/keys\?search=LISTED-0"))
    assert page.evaluate("document.activeElement.id") == "search"
    window.assert_clean()
    page.get_by_label("Search").fill("listed-")
    expect(page.get_by_text("55 keys, page 1 of 2")).to_be_visible()
    follow(page, "Key")
    expect(page.get_by_role("columnheader", name=re.compile("^Key"))).to_have_attribute("aria-sort", "ascending")
    expect(page.get_by_role("link", name="listed-00", exact=True)).to_be_visible()
    follow(page, "Next")
    expect(page.get_by_role("link", name="listed-54", exact=True)).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Search")).to_have_value("listed-")
    page.get_by_label("Status").select_option("blocked")
    expect(page.get_by_text("No keys are like this.")).to_be_visible()
    page.get_by_label("Status").select_option("")
    # several at once
    page.get_by_label("Search").fill("listed-5")
    expect(page.get_by_text("5 keys", exact=True)).to_be_visible()
    page.get_by_label("Choose all on this page").check()
    expect(page.get_by_text("5 chosen:")).to_be_visible()
    window.settle()
    press(page, "Delete …")
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete 5 keys?")
    window.assert_clean()
    press(page, "Delete 5 keys")
    expect(page.get_by_text("The keys are deleted.")).to_be_visible()
    assert gateway.api("GET", "/key/list?search=listed-")["total_count"] == 50


def test_an_administrator_makes_a_team_and_adds_a_member(visit: Open, gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Teams")
    follow(page, "New team")
    page.get_by_label("Name", exact=True).fill("Physics")
    press(page, "Make the team")
    expect(page.get_by_text("It is made.")).to_be_visible()
    page.get_by_label("New member").fill("ada@example.com")
    page.get_by_label("Role", exact=True).select_option("admin")
    press(page, "Add member")
    expect(page.get_by_text("The member is added.")).to_be_visible()
    expect(page.get_by_role("cell", name="ada@example.com")).to_be_visible()
    window.assert_clean()
    press(page, "Remove")
    expect(page.get_by_text("The member is removed.")).to_be_visible()
    follow(page, "Delete …")
    window.assert_clean()
    press(page, "Delete the team")
    expect(page.get_by_text("It is deleted.")).to_be_visible()


@pytest.mark.parametrize(
    ("noun", "word", "fields", "shown"),
    [
        ("Users", "user", {"ID": "grace", "E-mail address": "grace@example.com"}, "Reads and changes what is its own."),
        ("Customers", "customer", {"ID": "zoe", "Name": "Zoe"}, "Zoe"),
        ("Budgets", "budget", {"ID": "gold", "Budget in US dollars": "12.50"}, "$12.50"),
        ("Organizations", "organization", {"Name": "Works", "ID": "works"}, "No teams that you may see."),
    ],
)
def test_an_administrator_makes_changes_and_deletes(
    visit: Open, noun: str, word: str, fields: dict[str, str], shown: str
) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    go(page, noun)
    follow(page, f"New {word}")
    window.assert_clean()
    for label, text in fields.items():
        page.get_by_role("textbox", name=label).first.fill(text)
    if word == "user":
        page.get_by_label("Make a key for the user").uncheck()
    press(page, f"Make the {word}")
    expect(page.get_by_text("It is made.")).to_be_visible()
    expect(page.get_by_text(shown).first).to_be_visible()
    window.assert_clean()
    follow(page, "Edit")
    page.get_by_label("Tokens in 60 seconds", exact=True).fill("1,000")
    press(page, "Save the change")
    expect(page.get_by_text("The change is saved.")).to_be_visible()
    expect(page.get_by_text("1,000").first).to_be_visible()
    follow(page, "Delete …")
    press(page, f"Delete the {word}")
    expect(page.get_by_text("It is deleted.")).to_be_visible()


def test_a_new_user_gets_a_key_that_is_shown(visit: Open, gateway: ConsoleGateway) -> None:
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Users")
    follow(page, "New user")
    page.get_by_role("textbox", name="ID").first.fill("with-key")
    press(page, "Make the user")
    value = page.get_by_label("The value of the key").text_content() or ""
    assert gateway.api("GET", "/key/info", key=value)["info"]["user_id"] == "with-key"


def test_a_member_makes_a_key_and_sees_only_its_own(visit: Open, gateway: ConsoleGateway) -> None:
    gateway.api("POST", "/key/generate", {"key_alias": "of-somebody-else"})
    gateway.api("POST", "/user/new", {"user_id": "member", "auto_create_key": False})
    own = gateway.api("POST", "/key/generate", {"key_alias": "of-member", "user_id": "member"})
    window = visit(own["key"])
    page = window.page
    navigation = page.get_by_role("navigation", name="Pages", exact=True)
    expect(navigation.get_by_role("link", name="Users")).to_have_count(0)
    go(page, "Keys")
    expect(page.get_by_text("1 key", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="of-somebody-else")).to_have_count(0)
    follow(page, "New key")
    expect(page.get_by_label("User", exact=True)).to_have_count(0)
    page.get_by_label("Alias").fill("second-of-member")
    press(page, "Make the key")
    value = page.get_by_label("The value of the key").text_content() or ""
    assert gateway.api("GET", "/key/info", key=value)["info"]["user_id"] == "member"
    go(page, "Keys")
    expect(page.get_by_text("2 keys", exact=True)).to_be_visible()
    window.assert_clean()
    follow(page, "Your user")
    expect(page.get_by_role("heading", level=1)).to_have_text("member")
    window.assert_clean()


def test_markup_in_names_stays_text(visit: Open, gateway: ConsoleGateway) -> None:
    name = "<img src=x onerror=alert(1)><script>alert(1)</script>\"'\u05e9\u05dc\U0001f600" + "w" * 180
    made = gateway.api("POST", "/key/generate", {"key_alias": name, "metadata": {name: name}, "tags": [name]})
    gateway.api("POST", "/team/new", {"team_id": name, "team_alias": name})
    server = {"model": "hosted_vllm/simulated-model", "api_base": "http://127.0.0.1:9"}
    model = gateway.api("POST", "/model/new", {"model_name": name, "litellm_params": server})["model_id"]
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800})
    page = window.page
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for path in (
        "/ui/keys",
        f"/ui/keys/detail?id={made['token']}",
        f"/ui/keys/edit?id={made['token']}",
        f"/ui/keys/delete?id={made['token']}",
        f"/ui/teams/detail?{urlencode({'id': name})}",
        "/ui/models",
        f"/ui/models/detail?id={model}",
        f"/ui/models/delete?id={model}",
    ):
        window.open(path)
        expect(page.get_by_text(name[:40]).first).to_be_attached()
        assert fits_the_width(page), path
        window.assert_clean()
    assert page.locator("img").count() == 0
    gateway.api("POST", "/model/delete", {"id": model})


def test_a_key_is_made_by_keyboard_on_a_phone(visit: Open) -> None:
    window = visit(MASTER_KEY, viewport={"width": 390, "height": 800})
    page = window.open("/ui/keys/new")
    assert fits_the_width(page)
    window.assert_clean()
    page.get_by_label("Alias").focus()
    page.keyboard.type("by-keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Copy the value of the key now")
    assert fits_the_width(page)
    page.get_by_role("link", name="I have copied it: to the key").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("by-keyboard")
    assert fits_the_width(page)
    window.assert_clean()


def test_a_model_is_added_used_changed_and_deleted(visit: Open, gateway: ConsoleGateway) -> None:
    [entry] = gateway.api("GET", "/v2/model/info?search=simulated")["data"]
    window = visit(MASTER_KEY)
    page = window.page
    go(page, "Models")
    window.assert_clean()
    follow(page, "simulated-model")
    expect(page.get_by_text("configuration file")).to_be_visible()
    expect(page.get_by_role("link", name="Edit", exact=True)).to_have_count(0)
    go(page, "Models")
    follow(page, "New model")
    window.assert_clean()
    page.get_by_role("textbox", name="Name").first.fill("second-name")
    page.get_by_label("Model at the server").fill("simulated-model")
    page.get_by_label("Server", exact=True).fill("nonsense")
    page.get_by_label("Key of the server").fill("of-the-server")
    press(page, "Make the model")
    expect(page.locator("#field-api_base-problem")).to_be_visible()
    assert "of-the-server" not in page.content()
    window.problems.clear()  # the browser reports the answer's status
    page.get_by_label("Server", exact=True).fill(entry["litellm_params"]["api_base"])
    press(page, "Make the model")
    expect(page.get_by_text("It is made.")).to_be_visible()
    window.assert_clean()
    assert gateway.chat(model="second-name")["choices"]
    follow(page, "Edit")
    page.get_by_label("Price of a token of a prompt").fill("0.000002")
    press(page, "Save the change")
    expect(page.get_by_text("$2.00")).to_be_visible()
    follow(page, "Delete …")
    expect(page.get_by_text("Nothing else serves this name: requests for it are refused.")).to_be_visible()
    window.assert_clean()

    def asks_for_its_name() -> bool:
        """The ledger takes a moment to know that it was used."""
        page.reload()
        return page.get_by_label("Type its name to delete it").count() > 0

    wait_until(asks_for_its_name)
    page.get_by_label("Type its name to delete it").fill("second-name")
    press(page, "Delete the model")
    expect(page.get_by_text("It is deleted.")).to_be_visible()
    assert gateway.api("GET", "/v2/model/info?search=second")["total_count"] == 0
