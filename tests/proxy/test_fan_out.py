"""What a client hears of an act that went to several servers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.errors import UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.proxy.fan_out import ServerAnswer, answered, joined, unanswered


def told(*answers: ServerAnswer) -> tuple[int, Any, str | None]:
    status, body, error = joined(answers)
    return status, json.loads(body), None if error is None else error.code


def test_servers_that_agree_give_their_own_status() -> None:
    assert told(answered("a", 200, b""), answered("b", 200, b'{"status":"sleeping"}')) == (
        200,
        {
            "servers": [
                {"server": "a", "status": 200, "body": None, "error": None},
                {"server": "b", "status": 200, "body": {"status": "sleeping"}, "error": None},
            ]
        },
        None,
    )
    assert told(answered("a", 404, b"Not Found"), answered("b", 404, b"Not Found"))[0] == 404


def test_each_may_do_it_in_its_own_way() -> None:
    assert told(answered("a", 200, b""), answered("b", 204, b""))[0] == 200


def test_half_a_success_is_none() -> None:
    status, document, code = told(
        answered("a", 200, b"Success"),
        answered("b", 400, b'{"error":{"message":"no"}}'),
        unanswered("c", UpstreamTimeout("The server took too long.")),
    )
    assert (status, code) == (502, "not_all_servers")
    assert [each["status"] for each in document["servers"]] == [200, 400, None]
    assert document["servers"][0]["body"] == "Success"
    assert document["servers"][2]["error"] == {"code": "upstream_timeout", "message": "The server took too long."}
    assert document["error"] == {
        "message": '2 of 3 servers did not do this; "servers" tells what each of them said.',
        "type": "api_error",
        "param": None,
        "code": "not_all_servers",
    }


def test_no_answer_at_all_is_no_agreement() -> None:
    assert told(*(unanswered(name, UpstreamUnreachable("No connection.")) for name in "ab"))[0] == 502


def test_a_body_that_is_no_json_is_text() -> None:
    assert answered("a", 200, b"\xff{").body == "\ufffd{"
    assert answered("a", 200, b"[" * 100_000).body == "[" * 100_000


_ANSWERS = st.one_of(
    st.builds(answered, st.just("a"), st.sampled_from([200, 204, 400, 404, 500, 503]), st.binary(max_size=20)),
    st.just(unanswered("b", UpstreamUnreachable("No connection."))),
)


@given(st.lists(_ANSWERS, min_size=1, max_size=6))
def test_the_status_is_a_success_exactly_if_every_server_did_it(answers: list[ServerAnswer]) -> None:
    status, body, error = joined(answers)
    assert (200 <= status < 300) == all(each.status is not None and each.status < 300 for each in answers)
    document = json.loads(body)
    assert [each["status"] for each in document["servers"]] == [each.status for each in answers]
    assert ("error" in document) == (error is not None)
    if error is None and status >= 300:
        assert {each.status for each in answers} == {status}
