"""The pages of the servers, and of the tester."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.test_servers import Desk, entry, row
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.auth.verdicts import Check, Question, Verdict
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.errors import ModelNotAllowed

ATTACK = '<script>alert("1")</script>'


class Trials:
    """Decides as the test says, and keeps what it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, Question]] = []

    def of_key(self, token: str, question: Question, now: float) -> Deferred[Verdict | None]:
        self.asked.append((token, question))
        return succeed(self.verdict)

    def of_principal(self, principal: Any, question: Question) -> Deferred[Verdict | None]:
        self.asked.append((principal.kind, question))
        return succeed(self.verdict)


REFUSED = Verdict(
    (
        Check("key", True, "The key is valid."),
        Check("model", False, ATTACK, "`models` of the key.", ModelNotAllowed(ATTACK)),
        Check("limits", None, "not known", level="team"),
    ),
    "/v1/chat/completions",
    "POST",
)


def test_names_and_reasons_full_of_markup_stay_text() -> None:
    drained = DrainedServer("http://gpu-1:8000", ATTACK, 5.0, ATTACK)
    gateway = ConsoleGateway(
        servers=lambda: Desk(
            row(f"{ATTACK}:1", state="drained", drained=drained, reason=ATTACK, entries=(entry(ATTACK, 0),)),
        ),
        trials=lambda: Trials(REFUSED),
    )
    browser = gateway.browser(MASTER_KEY)
    for path in ("/ui/servers", f"/ui/servers/detail?server={ATTACK}:1", f"/ui/tester?model={ATTACK}"):
        answer = browser.get(path)
        assert answer.status == 200, answer.body
        assert ATTACK.encode() not in answer.body
        assert ATTACK in words(answer) or "alert" in words(answer)


def test_many_servers_are_pages_and_a_search_looks_at_all() -> None:
    gateway = ConsoleGateway(servers=lambda: Desk(*(row(f"gpu-{number}:8000") for number in range(120))))
    browser = gateway.browser(MASTER_KEY)
    first, last = words(browser.get("/ui/servers")), words(browser.get("/ui/servers?page=3"))
    assert "120 servers, page 1 of 3" in first
    assert "gpu-49:8000" in first
    assert "gpu-50:8000" not in first
    assert "gpu-119:8000" in last
    for strange in ("0", "-1", "x", "999999999999999"):
        assert browser.get(f"/ui/servers?page={strange}").status == 200
    assert "gpu-111:8000" in words(browser.get("/ui/servers?search=GPU-111"))
    assert "No server matches." in words(browser.get("/ui/servers?search=nothing"))


def test_a_server_that_is_not_there_is_told_in_words() -> None:
    answer = ConsoleGateway(servers=lambda: Desk()).browser(MASTER_KEY).get("/ui/servers/detail?server=gone:1")
    assert answer.status == 404
    assert "No server has this name" in words(answer)


def test_the_dialog_to_drain_says_which_models_have_no_other_server() -> None:
    gateway = ConsoleGateway(servers=lambda: Desk(row(in_flight=23, entries=(entry("m"), entry("n", 0), entry("", 0)))))
    browser = gateway.browser(MASTER_KEY)
    said = words(browser.get("/ui/servers/detail?server=gpu-1:8000"))
    assert "23 requests in flight end first" in said
    assert "No other server of n, models without an entry gets requests" in said
    answer = browser.post("/ui/servers/drain", {"server": "gpu-1:8000", "reason": ""})
    assert (answer.status, answer.headers["location"]) == (
        303,
        "/ui/servers/detail?server=gpu-1%3A8000&done=drained",
    )
    assert "audit" not in words(browser.post("/ui/servers/drain", {"server": ""}))


def test_the_tester_takes_no_key_from_an_address_and_shows_none_again() -> None:
    trials = Trials(REFUSED)
    gateway = ConsoleGateway(trials=lambda: trials)
    made = gateway.make_key(key_alias="of ada")
    browser = gateway.browser(MASTER_KEY)
    answer = browser.get(f"/ui/tester?key={made['key']}&model=m")
    assert made["key"].encode() not in answer.body
    assert trials.asked[-1][0] == "master"
    answer = browser.post("/ui/tester", {"key": made["key"], "model": "m", "max_tokens": "5", "method": "POST"})
    assert made["key"].encode() not in answer.body
    assert trials.asked[-1] == (made["token"], Question(b"POST", "/v1/chat/completions", "m", "", 5))
    said = words(answer)
    assert "No It may not: the request would be answered 403 (model_not_allowed)." in said
    assert "Limits of its team not known" in said
    assert "key of ada" in said
    refused = browser.post("/ui/tester", {"max_tokens": "many", "model": "m"})
    assert refused.status == 400
    assert "must be a whole number" in words(refused)
