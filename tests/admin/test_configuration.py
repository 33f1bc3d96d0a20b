"""``POST /config/reload``: who may ask, what is answered, and what the audit log has."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed

from tests.admin.admin_harness import MASTER_KEY, Gateway, HeldStore
from twisted_vllm.admin.configuration import MAX_PROBLEMS
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import Reloaded
from twisted_vllm.errors import Draining, StoreUnavailable

DONE = Reloaded(("passthrough.drain_delay",), ("passthrough.listen",), ("a warning",))


def test_a_reload_is_answered_and_stands_in_the_audit_log() -> None:
    gateway = Gateway(reload=lambda: succeed(DONE))
    answer = gateway.post("/config/reload")
    assert (answer.status, answer.json) == (
        200,
        {
            "status": "reloaded",
            "changed": ["passthrough.drain_delay"],
            "restart_needed": ["passthrough.listen"],
            "warnings": ["a warning"],
        },
    )
    [entry] = gateway.get("/audit/list").json["audit_logs"]
    assert (entry["actor"], entry["action"], entry["object_type"]) == ("master", "config/reload", "configuration")
    assert entry["after"] == {"changed": ["passthrough.drain_delay"], "restart_needed": ["passthrough.listen"]}


def test_all_problems_of_an_invalid_configuration_are_answered() -> None:
    problems = [Problem("passthrough.listen", "is wrong"), Problem("model_list[0]", "is wrong too")]
    gateway = Gateway(reload=lambda: fail(ConfigError(problems)))
    answer = gateway.post("/config/reload")
    assert (answer.status, answer.error["code"]) == (400, "invalid_configuration")
    assert answer.error["message"] == (
        "The configuration cannot be used; nothing was changed:\n"
        "passthrough.listen: is wrong\nmodel_list[0]: is wrong too"
    )
    assert gateway.get("/audit/list").json["audit_logs"] == []


def test_of_very_many_problems_the_first_are_answered() -> None:
    problems = [Problem(f"model_list[{number}]", "is wrong") for number in range(MAX_PROBLEMS + 3)]
    message = Gateway(reload=lambda: fail(ConfigError(problems))).post("/config/reload").error["message"]
    assert message.splitlines()[-2:] == [f"model_list[{MAX_PROBLEMS - 1}]: is wrong", "and 3 more"]


def test_a_key_that_administers_may_not_reload() -> None:
    asked = []
    gateway = Gateway(reload=lambda: asked.append(1) or succeed(DONE))  # type: ignore[func-returns-value]  # None
    key = gateway.make_key(allowed_routes=["management"])["key"]
    answer = gateway.post("/config/reload", key=key)
    assert (answer.status, answer.error["code"], asked) == (403, "route_not_allowed", [])


def test_a_gateway_that_drains_says_so() -> None:
    answer = Gateway(reload=lambda: fail(Draining("It drains.", retry_after=1))).post("/config/reload")
    assert (answer.status, answer.error["code"]) == (503, "draining")


def test_without_a_configuration_to_read_it_is_refused() -> None:
    assert Gateway().post("/config/reload").status == 400


def test_a_reload_without_the_database_is_done_and_says_what_is_missing() -> None:
    store = HeldStore()
    gateway = Gateway(store, reload=lambda: succeed(DONE))
    asked = gateway.ask("POST", "/config/reload")
    store.refuse(StoreUnavailable("The database does not answer."))
    gateway.deliver()
    found: list[int] = []
    asked.addCallback(lambda response: found.append(response.code))
    assert found == [200]


def test_a_reload_is_audited_although_its_client_has_gone() -> None:
    done: Deferred[Reloaded] = Deferred()
    gateway = Gateway(reload=lambda: done)
    asked = gateway.ask("POST", "/config/reload")
    asked.addErrback(lambda failure: None)
    asked.cancel()
    done.callback(DONE)
    [entry] = gateway.get("/audit/list", MASTER_KEY).json["audit_logs"]
    assert entry["action"] == "config/reload"
