from __future__ import annotations

import pytest
from twisted.logger import LogLevel, eventAsText
from twisted.logger import capturedLogs as captured_logs

from tests.admin.admin_harness import MASTER_KEY, Gateway
from twisted_vllm.auth.authenticator import hash_key

TENANT = "sk-tenant-secret-4567"
STRANGER = "sk-stranger-secret-89"


def test_neither_refusals_nor_the_log_tell_a_key_or_its_hash() -> None:
    gateway = Gateway()
    gateway.make_key(key=TENANT)
    secrets = [secret for key in (MASTER_KEY, TENANT, STRANGER) for secret in (key, hash_key(key)[:12])]
    with captured_logs() as events:
        answers = [
            gateway.post("/key/generate", {"key": TENANT}),
            gateway.post("/key/generate", {"key": MASTER_KEY}),
            gateway.post("/key/generate", {"key": [STRANGER]}),
            gateway.post("/key/generate", {"key_alias": STRANGER}),
            gateway.post("/key/generate", {STRANGER: 1}),
            gateway.post("/key/generate", {"models": {STRANGER: STRANGER}}),
            gateway.post("/key/generate", data=STRANGER.encode()),
            gateway.post("/key/generate", {}, key=TENANT),
            gateway.post("/key/generate", {}, key=STRANGER),
            gateway.post("/key/delete", {"keys": [STRANGER, TENANT]}),
            gateway.post("/key/delete", {"keys": [hash_key(STRANGER)]}),
            gateway.post("/key/delete", {"keys": STRANGER}),
            gateway.get(f"/key/info?key={STRANGER}"),
            gateway.get(f"/key/info?key={STRANGER}", key=TENANT),
            gateway.get(f"/key/info?{STRANGER}=1"),
            gateway.get(f"/key/list?status={STRANGER}"),
            gateway.get(f"/key/{STRANGER}"),
            gateway.post("/key/update", {"key": STRANGER}),
            gateway.post("/key/update", {"key": TENANT, "granted_headers": [STRANGER]}),
            gateway.post("/key/update", {"key": TENANT, "aliases": {STRANGER: 5}}),
            gateway.post("/key/block", {"key_alias": STRANGER}),
            gateway.post("/key/regenerate", {"key": STRANGER}),
            gateway.post("/key/regenerate", {"key": TENANT, "new_key": MASTER_KEY}),
            gateway.post("/key/regenerate", {"key": TENANT, "grace_period": STRANGER}),
            gateway.post(f"/key/{STRANGER}/regenerate"),
            gateway.post("/v2/key/info", {"keys": [STRANGER, hash_key(STRANGER)]}),
            gateway.post("/user/new", {"user_id": STRANGER}),
            gateway.post("/user/new", {"user_role": STRANGER}),
            gateway.post("/user/new", {"teams": [STRANGER]}),
            gateway.get(f"/user/info?user_id={STRANGER}"),
            gateway.post("/user/delete", {"user_ids": [STRANGER]}),
            gateway.post("/team/new", {"members_with_roles": [{"user_id": "a", "role": STRANGER}]}),
            gateway.post("/team/block", {"team_id": STRANGER}),
            gateway.get(f"/team/info?team_id={STRANGER}"),
            gateway.get(f"/audit/list?start_date={STRANGER}"),
            gateway.call("PUT", "/key/list", key=STRANGER),
        ]
    assert all(400 <= answer.status < 500 for answer in answers)
    seen = "\n".join(answer.body.decode() + repr(answer.headers) for answer in answers)
    # Twisted's own line for each request is the site's to write; the gateway's site writes another, without the query.
    ours = [event for event in events if "twisted_vllm" in str(event.get("log_namespace"))]
    seen += "\n".join(eventAsText(event) + repr(event) for event in ours)
    assert not [secret for secret in secrets if secret in seen]
    assert not [event for event in ours if event["log_level"] >= LogLevel.warn]


@pytest.mark.parametrize("alias", [STRANGER, "x" * 100])
def test_an_alias_that_is_not_known_comes_back_only_if_it_cannot_be_a_key(alias: str) -> None:
    answer = Gateway().post("/key/delete", {"key_aliases": [alias]})
    assert answer.status == 404
    assert alias not in answer.body.decode() or not alias.startswith("sk-")
