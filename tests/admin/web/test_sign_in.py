"""Signing in to the console: the session, its cookie, forms of other pages, and its end."""

from __future__ import annotations

import pytest

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.console import ConsoleSettings


@pytest.fixture
def gateway() -> ConsoleGateway:
    return ConsoleGateway()


def test_who_is_not_signed_in_is_led_to_the_form_and_back(gateway: ConsoleGateway) -> None:
    browser = gateway.browser()
    answer = browser.get("/ui?a=1")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/sign-in?next=%2Fui%3Fa%3D1")
    page = browser.get(answer.headers["location"])
    assert page.status == 200
    assert b'name="next" value="/ui?a=1"' in page.body
    signed_in = browser.post("/ui/sign-in", {"key": MASTER_KEY, "next": "/ui?a=1"})
    assert (signed_in.status, signed_in.headers["location"]) == (303, "/ui?a=1")
    assert "master key" in words(browser.get("/ui"))


def test_the_cookie_is_strict_and_short_lived_and_stays_below_the_console(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    (line,) = browser.set_cookies
    parts = {part.strip().lower() for part in line.split(";")[1:]}
    assert parts == {"max-age=1800", "path=/ui", "httponly", "samesite=strict"}
    assert MASTER_KEY not in line
    assert hash_key(MASTER_KEY) not in line


def test_behind_tls_the_cookie_is_secure(gateway: ConsoleGateway) -> None:
    gateway.origin = "https://gateway.example.com"
    gateway.prefix = "/team-a"
    browser = gateway.browser(MASTER_KEY)
    (line,) = browser.set_cookies
    assert line.startswith("__Secure-vllm_console=")
    assert "Secure" in line
    assert "Path=/team-a/ui" in line


def test_the_api_never_takes_the_cookie(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    assert gateway.get("/key/list", key=None, headers={"cookie": cookie}).status == 401
    (value,) = browser.cookies.values()
    for credential in (value, "sk-ticket-" + value):
        assert gateway.get("/key/list", key=credential).status == 401


def test_wrong_keys_are_refused_and_slowed_as_everywhere() -> None:
    from twisted_vllm.auth.throttle import AuthenticationThrottle

    gateway = ConsoleGateway(failures=AuthenticationThrottle(3))
    browser = gateway.browser()
    for _ in range(3):
        answer = browser.post("/ui/sign-in", {"key": "sk-wrong-0123456789abcdef"})
        assert answer.status == 401
        assert "not known" in words(answer)
    assert browser.post("/ui/sign-in", {"key": "sk-wrong-0123456789abcdef"}).status == 429
    assert browser.cookies == {}


@pytest.mark.parametrize("key", ["", " ", "x" * 2_000, "sk-ticket-v1.abc"])
def test_what_is_no_key_is_refused(gateway: ConsoleGateway, key: str) -> None:
    answer = gateway.browser().post("/ui/sign-in", {"key": key})
    assert answer.status == 400
    assert "Enter a key" in words(answer)


@pytest.mark.parametrize(
    "wanted", ["https://evil.example/ui", "//evil.example/ui", "/key/list", "/ui\\@evil", "javascript:alert(1)", "/uix"]
)
def test_nobody_is_led_elsewhere(gateway: ConsoleGateway, wanted: str) -> None:
    answer = gateway.browser().post("/ui/sign-in", {"key": MASTER_KEY, "next": wanted})
    assert answer.headers["location"] == "/ui"


def test_a_session_ends_with_its_key(gateway: ConsoleGateway) -> None:
    made = gateway.make_key(key_alias="ada")
    browser = gateway.browser(made["key"])
    assert browser.get("/ui").status == 200
    gateway.post("/key/block", {"key": made["key"]})
    answer = browser.get("/ui")
    assert answer.headers["location"].endswith("reason=blocked_api_key")
    assert browser.cookies == {}
    gateway.post("/key/unblock", {"key": made["key"]})
    browser = gateway.browser(made["key"])
    gateway.post("/key/delete", {"keys": [made["key"]]})
    assert browser.get("/ui").headers["location"].endswith("reason=invalid_api_key")


def test_signing_out_ends_a_session_also_for_who_has_a_copy_of_its_cookie(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    copy = gateway.browser()
    copy.cookies = dict(browser.cookies)
    assert copy.get("/ui").status == 200
    assert browser.post("/ui/sign-out").status == 303
    assert browser.cookies == {}
    assert copy.get("/ui").status == 303


def test_a_session_ends_when_nobody_uses_it_and_after_its_lifetime() -> None:
    gateway = ConsoleGateway(settings=ConsoleSettings(session_idle=60.0, session_lifetime=200.0))
    browser = gateway.browser(MASTER_KEY)
    for _ in range(4):
        gateway.clock.advance(45.0)
        assert browser.get("/ui").status == 200
    # a page that asks by itself does not keep it alive, and neither does anything for longer than its lifetime
    gateway.clock.advance(21.0)
    assert browser.get("/ui").status == 303
    browser = gateway.browser(MASTER_KEY)
    gateway.clock.advance(40.0)
    assert browser.get("/ui", x_console_poll="1").status == 200
    gateway.clock.advance(21.0)
    assert browser.get("/ui").status == 303


def test_a_form_of_another_page_is_refused(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    other = gateway.browser(MASTER_KEY)
    for answer in (
        browser.post("/ui/sign-out", proof="no"),
        browser.post("/ui/sign-out", proof=other.proof()),
        browser.post("/ui/sign-out", origin="https://evil.example"),
        browser.post("/ui/sign-out", sec_fetch_site="cross-site"),
        browser.post("/ui/sign-out", sec_fetch_site="same-site"),
    ):
        assert answer.status == 403
        assert answer.headers["x-vllm-passthrough-error"] == "forged_form"
    assert browser.get("/ui").status == 200


def test_another_site_cannot_sign_somebody_in(gateway: ConsoleGateway) -> None:
    browser = gateway.browser()
    assert browser.post("/ui/sign-in", {"key": MASTER_KEY}, origin="https://evil.example").status == 403
    assert browser.cookies == {}


def test_the_hash_of_a_master_key_makes_no_session() -> None:
    gateway = ConsoleGateway()
    from twisted_vllm.auth.sessions import secret_of
    from twisted_vllm.config.secret import Secret

    hashed = Secret("sha256:" + hash_key(MASTER_KEY))
    assert secret_of(hashed, None) is None
    assert secret_of(hashed, Secret("salt")) == Secret("salt")
    assert secret_of(Secret(MASTER_KEY), None) == Secret(MASTER_KEY)
    assert gateway.browser(MASTER_KEY).get("/ui").status == 200


def test_in_open_mode_there_is_nothing_to_sign_in_to() -> None:
    gateway = ConsoleGateway(master_key=None)
    browser = gateway.browser()
    assert browser.get("/ui").status == 200
    assert browser.get("/ui/sign-in").headers["location"] == "/ui"


def test_a_ticket_acts_as_the_session_or_as_an_own_key(gateway: ConsoleGateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False})
    mine = gateway.make_key(key_alias="mine", user_id="ada")
    second = gateway.make_key(key_alias="second", user_id="ada")
    other = gateway.make_key(key_alias="other")
    browser = gateway.browser(mine["key"])
    found = browser.post("/ui/ticket", accept="application/json")
    assert found.status == 200
    assert found.json["ticket"].startswith("sk-ticket-")
    assert browser.post("/ui/ticket", {"key": second["token"]}, accept="application/json").status == 200
    assert browser.post("/ui/ticket", {"key": other["token"]}, accept="application/json").status == 403


def test_nobody_gets_more_rights_by_a_ticket_than_by_the_api(gateway: ConsoleGateway) -> None:
    for user_id, role in (("ada", "internal_user"), ("eve", "internal_user_viewer"), ("boss", "proxy_admin")):
        gateway.post("/user/new", {"user_id": user_id, "user_role": role, "auto_create_key": False})
    weak = gateway.make_key(user_id="ada", rpm_limit=1, models=["small"])
    strong = gateway.make_key(user_id="ada")
    manages = gateway.make_key(user_id="ada", allowed_routes=["management"])
    only_models = gateway.make_key(user_id="ada", allowed_routes=["inference"])
    read_only, other = gateway.make_key(user_id="eve"), gateway.make_key(user_id="eve")
    manager, boss = gateway.make_key(allowed_routes=["management"]), gateway.make_key(user_id="boss")

    def ticket(signed_in: dict[str, str], wanted: dict[str, str]) -> int:
        browser = gateway.browser(signed_in["key"])
        return browser.post("/ui/ticket", {"key": wanted["token"]}, accept="application/json").status

    assert ticket(weak, weak) == ticket(strong, weak) == 200
    for one, another in (
        (weak, strong),
        (weak, manages),
        (strong, manages),
        (only_models, weak),
        (read_only, other),
        (manager, boss),
    ):
        assert ticket(one, another) == 403
    assert ticket(only_models, only_models) == ticket(boss, manager) == 200
    gateway.post("/key/block", {"key": weak["key"]})
    assert ticket(strong, weak) == 403


def test_only_an_administrator_acts_as_somebody_elses_key_and_the_audit_log_says_so(gateway: ConsoleGateway) -> None:
    for user_id, role in (("boss", "proxy_admin"), ("auditor", "proxy_admin_viewer")):
        gateway.post("/user/new", {"user_id": user_id, "user_role": role, "auto_create_key": False})
    other = gateway.make_key(key_alias="other")
    boss, auditor = (gateway.browser(gateway.make_key(user_id=name)["key"]) for name in ("boss", "auditor"))
    assert boss.post("/ui/ticket", {"key": other["token"]}, accept="application/json").status == 200
    assert auditor.post("/ui/ticket", {"key": other["token"]}, accept="application/json").status == 403
    (entry,) = gateway.get("/audit/list?action=console/ticket").json["audit_logs"]
    assert entry["object_id"] == other["token"][:8]
    assert entry["after"] == {"acts_as_key_seconds": 900.0}


def test_every_answer_forbids_what_a_page_needs_not(gateway: ConsoleGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    for path in ("/ui", "/ui/sign-in", "/ui/nothing", "/ui/assets/console.js", "/ui/assets/nothing.js"):
        headers = browser.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


def test_files_are_kept_for_a_year_by_their_hash(gateway: ConsoleGateway) -> None:
    browser = gateway.browser()
    page = browser.get("/ui/sign-in").body.decode()
    start = page.index("/ui/assets/console.css?v=")
    address = page[start : page.index('"', start)]
    answer = browser.get(address)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert browser.get(address.partition("?")[0]).headers["cache-control"] == "no-store"
    assert browser.get("/ui/assets/../load.py").status == 404
    assert browser.get("/ui/assets/%2e%2e/load.py").status == 404
