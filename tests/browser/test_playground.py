"""The playground in a real browser: what is sent, streamed, stopped and told, and as whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.browser_harness import (
    MASTER_KEY,
    ConsoleGateway,
    Visit,
    fits_the_width,
    gateway_with_simulator,
)


@pytest.fixture(scope="module")
def gateway(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGateway]:
    """A gateway in front of a slow model: what streams can be seen."""
    options = ("--first-token=0.2", "--token-interval=0.03")
    with gateway_with_simulator(tmp_path_factory.mktemp("gateway"), options=options) as found:
        yield found


@pytest.fixture(scope="module")
def ada(gateway: ConsoleGateway) -> str:
    """A member's key; she has another one, which may use no model."""
    gateway.api("POST", "/user/new", {"user_id": "ada", "user_role": "internal_user", "auto_create_key": False})
    gateway.api("POST", "/key/generate", {"user_id": "ada", "key_alias": "without-models", "models": ["nothing"]})
    gateway.api("POST", "/key/generate", {"user_id": "bob", "key_alias": "of-bob"})
    made = gateway.api("POST", "/key/generate", {"user_id": "ada", "key_alias": "laptop"})
    key: str = made["key"]
    return key


def body_of(request: Any) -> Any:
    """Return the JSON that a request of the browser sent."""
    return request.value.post_data_json


def last_answer(page: Page) -> Any:
    return page.locator("#chat article.assistant").last


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def test_a_member_chats_as_one_of_her_keys(visit: Callable[..., Visit], gateway: ConsoleGateway, ada: str) -> None:
    window = visit(ada)
    page = window.page
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_label("Model").locator("option")).to_have_text(["simulated-model"])
    window.assert_clean()
    choices = page.get_by_label("Ask as").locator("option")
    expect(choices.filter(has_text="laptop, of ada")).to_have_count(1)
    expect(choices.filter(has_text="bob")).to_have_count(0)
    page.get_by_label("Ask as").select_option("laptop, of ada")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("20")
    with page.expect_request("**/vllm/v1/chat/completions") as sent:
        ask(page, "Hello <b>there</b>")
    body = body_of(sent)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello <b>there</b>"},
    ]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 20, True)
    assert sent.value.headers["authorization"].startswith("Bearer sk-ticket-")
    assert "cookie" not in sent.value.headers
    # markup stays text
    expect(page.locator("#chat article.user .words")).to_have_text("Hello <b>there</b>")
    figures = last_answer(page).locator(".figures")
    expect(figures).to_contain_text("20 out")
    expect(figures).to_contain_text("First token")
    expect(figures).to_contain_text("Tokens/s")
    expect(last_answer(page).locator(".words")).to_contain_text("imulat")
    # the ledger knows what it cost: 20 tokens at two millionths, and those of the prompt
    expect(figures).to_contain_text("$0.0000", timeout=20_000)
    shown = figures.locator("dd").filter(has_text="$").inner_text()
    link = figures.get_by_role("link")
    request_id = link.inner_text()
    assert link.get_attribute("href") == f"/ui/requests/{request_id}"
    [row] = gateway.api("GET", f"/spend/logs?request_id={request_id}")
    assert (row["user"], row["metadata"]["user_api_key_alias"]) == ("ada", "laptop")
    assert float(shown.removeprefix("$")) == pytest.approx(row["spend"], rel=0.01)
    window.assert_clean()


def test_the_conversation_goes_on_until_a_new_one_begins(visit: Callable[..., Visit], ada: str) -> None:
    window = visit(ada)
    page = window.open("/ui/playground")
    expect(page.get_by_label("Model").locator("option")).to_have_count(1)
    page.get_by_label("Most tokens").fill("3")
    ask(page, "First")
    expect(last_answer(page)).to_contain_text("3 out")
    with page.expect_request("**/vllm/v1/chat/completions") as sent:
        page.get_by_label("Your message").fill("Second")
        page.get_by_label("Your message").press("Control+Enter")
    roles = [each["role"] for each in body_of(sent)["messages"]]
    assert roles == ["user", "assistant", "user"]
    expect(page.locator("#chat article")).to_have_count(4)
    expect(last_answer(page)).to_contain_text("3 out")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat article")).to_have_count(0)
    with page.expect_request("**/vllm/v1/chat/completions") as sent:
        ask(page, "Third")
    assert len(body_of(sent)["messages"]) == 1
    # nothing is kept outside of the page
    page.reload()
    expect(page.get_by_text("Nothing of it is kept here")).to_be_visible()


def test_an_answer_is_stopped_at_the_server_too(visit: Callable[..., Visit], gateway: ConsoleGateway, ada: str) -> None:
    window = visit(ada)
    page = window.open("/ui/playground")
    expect(page.get_by_label("Model").locator("option")).to_have_count(1)
    page.get_by_label("Most tokens").fill("2000")
    ask(page, "Tell me a long story")
    expect(last_answer(page).locator(".words")).not_to_be_empty()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Stop").click()
    figures = last_answer(page).locator(".figures")
    expect(figures).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    request_id = figures.get_by_role("link").inner_text()
    expect(figures).to_contain_text("$0.0000", timeout=20_000)
    [row] = gateway.api("GET", f"/spend/logs?request_id={request_id}")
    assert row["completion_tokens"] < 1_000
    window.assert_clean()


def test_a_key_without_rights_is_told_why(visit: Callable[..., Visit], ada: str) -> None:
    window = visit(ada)
    page = window.open("/ui/playground")
    page.get_by_label("Ask as").select_option("without-models, of ada")
    expect(page.get_by_role("alert").filter(has_text="may use no model")).to_be_visible()
    # whoever names one nevertheless gets the gateway's own words
    page.evaluate(
        "document.getElementById('model').append(new Option('simulated-model', 'simulated-model', true, true))"
    )
    ask(page, "Hello")
    expect(last_answer(page).get_by_role("alert")).to_contain_text("403: ")
    expect(last_answer(page).get_by_role("alert")).to_contain_text("simulated-model")
    # it can be sent again
    expect(page.get_by_label("Your message")).to_have_value("Hello")
    assert all("403" in each for each in window.problems)
    window.problems.clear()
    window.assert_clean()


def test_the_words_of_vllm_are_shown(visit: Callable[..., Visit], ada: str) -> None:
    window = visit(ada)
    page = window.open("/ui/playground")
    expect(page.get_by_label("Model").locator("option")).to_have_count(1)
    page.get_by_label("Most tokens").fill("10000000")
    ask(page, "Hello")
    expect(last_answer(page).get_by_role("alert")).to_contain_text("400: ")
    expect(last_answer(page).get_by_role("alert")).to_contain_text("max_tokens")
    page.get_by_label("Most tokens").fill("20")
    page.set_extra_http_headers({"x-simulate": "error-event"})
    ask(page, "Hello again")
    expect(last_answer(page).get_by_role("alert")).to_be_visible()


def test_reasoning_and_tool_calls_are_text(visit: Callable[..., Visit], ada: str) -> None:
    window = visit(ada)
    page = window.open("/ui/playground")
    expect(page.get_by_label("Model").locator("option")).to_have_count(1)
    events = [
        '{"choices":[{"delta":{"role":"assistant","reasoning":"First I <i>think</i>. "}}]}',
        '{"choices":[{"delta":{"reasoning_content":"Then more."}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"weather","arguments":"{\\"city\\":"}}]}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":" \\"Bern\\"}"}}]}}]}',
        '{"choices":[{"delta":{"content":"<img src=x onerror=alert(1)>"},"finish_reason":"tool_calls"}]}',
        '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}',
    ]
    stream = "".join(f"data: {each}\n\n" for each in events) + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    page.route("**/vllm/v1/chat/completions", answer)
    ask(page, "What is the weather?")
    expect(last_answer(page).locator(".thoughts .words")).to_have_text("First I <i>think</i>. Then more.")
    expect(last_answer(page).locator("pre.tool")).to_have_text('weather({"city": "Bern"})')
    expect(last_answer(page).locator("> .words")).to_have_text("<img src=x onerror=alert(1)>")
    expect(last_answer(page).locator(".figures")).to_contain_text("tool_calls")
    expect(last_answer(page).locator(".figures")).to_contain_text("3 in, 9 out")
    window.assert_clean()


def test_an_administrator_finds_any_key(visit: Callable[..., Visit], gateway: ConsoleGateway, ada: str) -> None:
    for number in range(55):
        gateway.api("POST", "/key/generate", {"key_alias": f"machine-{number:02}"})
    window = visit(MASTER_KEY)
    page = window.open("/ui/playground")
    page.get_by_label("Find a key").fill("laptop")
    choices = page.get_by_label("Ask as").locator("option")
    expect(choices).to_have_count(2)
    page.get_by_label("Ask as").select_option("laptop, of ada")
    page.get_by_label("Most tokens").fill("3")
    ask(page, "Hello")
    expect(last_answer(page)).to_contain_text("3 out")
    window.assert_clean()


def test_the_page_fits_a_phone(visit: Callable[..., Visit], ada: str) -> None:
    window = visit(ada, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = window.open("/ui/playground")
    expect(page.get_by_label("Model").locator("option")).to_have_count(1)
    assert fits_the_width(page)
    window.assert_clean()
