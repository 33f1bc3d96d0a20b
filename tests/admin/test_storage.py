"""``GET /usage/storage``: what takes room. What it measures is tested in `tests.storage.room_contract`."""

from __future__ import annotations

from tests.admin.admin_harness import MASTER_KEY, Gateway

PATH = "/usage/storage"


def test_administrators_and_viewers_see_what_takes_room_and_others_do_not() -> None:
    gateway = Gateway()
    body = {"user_id": "eve", "user_role": "proxy_admin_viewer", "auto_create_key": False}
    assert gateway.post("/user/new", body).status == 200
    viewer, tenant = gateway.make_key(user_id="eve")["key"], gateway.make_key()["key"]
    for key in (MASTER_KEY, viewer):
        answer = gateway.get(PATH, key=key)
        assert answer.status == 200
        assert answer.json["database"] == "sqlite"
        assert {each["name"] for each in answer.json["tables"]} >= {"vllm_passthrough_keys"}
        assert answer.json["partitions"] == []
        assert answer.json["next_drop"] is None
    assert gateway.get(PATH, key=tenant).status == 403
