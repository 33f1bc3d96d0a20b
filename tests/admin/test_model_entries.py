"""Entries of the model list that are added at run time, as LiteLLM's clients send them."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.admin.admin_harness import Gateway, value_of
from twisted_vllm.admin.context import ModelSource
from twisted_vllm.admin.model_entries import MAX_BYTES
from twisted_vllm.auth.sealing import Sealer
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, PriceList, Server, Settings, Timeouts
from twisted_vllm.storage.records import ModelRecord

KEY = "server-key-0123456789"
DEFAULT = Server("gpu:8000", "gpu", 8000, False, b"", b"gpu:8000", Secret("default-key"), Timeouts())
PARAMS = {"model": "hosted_vllm/Qwen/Qwen2.5", "api_base": "http://gpu-9:8000/v1"}


class Lab:
    """An admin app whose settings the test sets."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.sealer = Sealer(Secret("the-master-key"), os.urandom)
        self.gateway = Gateway(model_source=lambda: ModelSource(self.settings, self.sealer))

    def new(self, status: int = 200, name: str = "qwen", **fields: Any) -> Any:
        body = {"model_name": name, "litellm_params": PARAMS, **fields}
        answer = self.gateway.post("/model/new", body)
        assert answer.status == status, answer.body
        return answer.json if status == 200 else answer.error

    def records(self) -> list[ModelRecord]:
        found: list[ModelRecord] = value_of(self.gateway.store.read(lambda transaction: transaction.models.find()))
        return found

    def audit(self) -> Any:
        return self.gateway.get("/audit/list?object_type=model").json["audit_logs"]


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_an_entry_lives_from_its_making_to_its_deletion(lab: Lab) -> None:
    made = lab.new(
        litellm_params={**PARAMS, "api_key": KEY, "weight": 2, "timeout": None},
        model_info={"id": "my-id", "mode": "chat", "db_model": True},
    )
    assert made == {
        "model_id": "my-id",
        "model_name": "qwen",
        "litellm_params": {**PARAMS, "weight": 2},
        "model_info": {"id": "my-id", "mode": "chat", "db_model": True},
        "has_api_key": True,
        "created_at": "2026-03-01T12:00:00Z",
        "created_by": "master",
        "updated_at": "2026-03-01T12:00:00Z",
        "updated_by": "master",
        "warnings": [],
    }
    change = {"model_info": {"id": "my-id"}, "litellm_params": {"weight": None, "order": 2}, "model_name": "large"}
    changed = lab.gateway.post("/model/update", change).json
    assert (changed["model_name"], changed["litellm_params"]) == ("large", {**PARAMS, "order": 2})
    assert changed["has_api_key"] is True
    patched = lab.gateway.call("PATCH", "/model/my-id/update", body={"litellm_params": {"api_key": None}}).json
    assert (patched["has_api_key"], patched["model_info"]["mode"]) == (False, "chat")
    gone = lab.gateway.post("/model/delete", {"id": "my-id"})
    assert (gone.status, gone.json) == (200, {"message": "Model: my-id deleted successfully"})
    assert lab.records() == []
    actions = [(entry["action"], entry["object_id"]) for entry in lab.audit()]
    assert actions == [(f"model/{action}", "my-id") for action in ("delete", "update", "update", "new")]


def test_an_id_is_chosen_where_none_is_sent(lab: Lab) -> None:
    one, other = lab.new(), lab.new(model_info={"mode": "chat"})
    assert len({one["model_id"], other["model_id"]}) == 2
    assert one["model_info"] == {"id": one["model_id"], "db_model": True}


def test_the_key_of_a_server_is_encrypted_and_shown_nowhere(lab: Lab) -> None:
    lab.new(litellm_params={**PARAMS, "api_key": KEY}, model_info={"id": "one"})
    [record] = lab.records()
    assert record.api_key is not None
    assert lab.sealer.open(record.api_key, "one") == Secret(KEY)
    lab.gateway.post("/model/update", {"model_info": {"id": "one"}, "litellm_params": {"weight": 3}})
    lab.gateway.post("/model/delete", {"id": "one"})
    assert KEY not in repr(record)
    assert record.api_key not in repr(record)
    shown = lab.gateway.get("/audit/list?object_type=model").body.decode()
    assert KEY not in shown and record.api_key not in shown and '"has_api_key":true' in shown.replace(" ", "")


def test_another_key_replaces_the_old_one(lab: Lab) -> None:
    lab.new(litellm_params={**PARAMS, "api_key": KEY}, model_info={"id": "one"})
    lab.gateway.post("/model/update", {"model_info": {"id": "one"}, "litellm_params": {"api_key": "another"}})
    [record] = lab.records()
    assert record.api_key is not None
    assert lab.sealer.open(record.api_key, "one") == Secret("another")


def test_without_anything_to_encrypt_with_no_key_is_kept(lab: Lab) -> None:
    lab.sealer = Sealer(None, os.urandom)
    error = lab.new(400, litellm_params={**PARAMS, "api_key": KEY})
    assert error["param"] == "litellm_params.api_key"
    assert "VLLM_PASSTHROUGH_SALT_KEY" in error["message"]
    assert KEY not in error["message"]
    lab.new()


@pytest.mark.parametrize(
    ("params", "info", "param", "message"),
    [
        ({"api_base": "http://gpu"}, {}, "litellm_params.model", "is missing"),
        ({**PARAMS, "model": "azure/gpt-4o"}, {}, "litellm_params.model", "must be hosted_vllm/NAME"),
        ({**PARAMS, "api_base": "gpu:8000"}, {}, "litellm_params.api_base", "must begin with http://"),
        (
            {**PARAMS, "api_bse": "http://gpu"},
            {},
            "litellm_params.api_bse",
            "a known setting; did you mean 'api_base'?",
        ),
        ({**PARAMS, "weight": "2"}, {}, "litellm_params.weight", "must be a whole number"),
        ({"model": "hosted_vllm/m"}, {}, "litellm_params.api_base", "is missing"),
        ({**PARAMS, "max_budget": 1}, {}, "litellm_params.max_budget", "which this gateway does not do"),
        (PARAMS, {"blocked": True}, "model_info.blocked", "which this gateway does not do"),
        ({**PARAMS, "api_key": "os.environ/LITELLM_MASTER_KEY"}, {}, "litellm_params.api_key", "must be the value"),
        ({**PARAMS, "ssl_ca": "/etc/passwd"}, {}, "litellm_params.ssl_ca", "names a file"),
        ({**PARAMS, "ssl_verify": "/etc/passwd"}, {}, "litellm_params.ssl_verify", "names a file"),
        ({**PARAMS, "api_base": "unix:/run/docker.sock"}, {}, "litellm_params.api_base", "names a file or socket"),
        (PARAMS, {"note": ["os.environ/HOME"]}, "model_info.note[0]", "must be the value itself"),
        ({**PARAMS, "discovery": "dns", "api_base": "http://10.0.0.1"}, {}, "litellm_params.discovery", "by a name"),
        (PARAMS, {"id": "sk-0123456789abcdefghijk"}, "model_info.id", "must not look like a key"),
        (PARAMS, {"id": ""}, "model_info.id", "must be text"),
        (PARAMS, {"id": 7}, "model_info.id", "must be text"),
        (PARAMS, {"text": "x" * MAX_BYTES}, None, "must not be over"),
    ],
)
def test_what_the_file_would_refuse_is_refused_with_its_path(
    lab: Lab, params: dict[str, Any], info: dict[str, Any], param: str | None, message: str
) -> None:
    error = lab.new(400, litellm_params=params, model_info=info)
    assert (error["param"], message in error["message"]) == (param, True), error
    assert lab.records() == [] and lab.audit() == []


def test_a_change_that_could_not_be_used_changes_nothing(lab: Lab) -> None:
    made = lab.new(model_info={"id": "one"})
    for change in ({"api_base": "nonsense"}, {"model": None}, {"weight": 0}):
        answer = lab.gateway.post("/model/update", {"model_info": {"id": "one"}, "litellm_params": change})
        assert answer.status == 400
        assert answer.error["param"].startswith("litellm_params.")
    assert lab.records()[0].litellm_params == made["litellm_params"]


def test_settings_that_are_not_implemented_are_named_and_not_kept(lab: Lab) -> None:
    made = lab.new(litellm_params={**PARAMS, "extra_headers": {"Authorization": "secret"}, "colour": "red"})
    assert made["litellm_params"] == PARAMS
    assert [warning.partition(":")[0] for warning in made["warnings"]] == [
        "litellm_params.extra_headers",
        "litellm_params.colour",
    ]


def test_an_entry_without_a_server_uses_the_default_one() -> None:
    lab = Lab(default_server=DEFAULT)
    lab.new(litellm_params={"model": "hosted_vllm/m"})


def test_two_prices_of_one_model_are_refused_beside_the_file_and_beside_another_entry() -> None:
    prices = PriceList(input_cost_per_token=Decimal("0.5"))
    of_file = ModelEntry("qwen", "m", DEFAULT, prices=prices)
    lab = Lab(default_server=DEFAULT, models=(of_file,))
    error = lab.new(400, litellm_params={"model": "hosted_vllm/m", "input_cost_per_token": 1})
    assert (error["param"], "configuration file" in error["message"]) == ("litellm_params", True)
    lab.new(litellm_params={"model": "hosted_vllm/m", "input_cost_per_token": "0.5"}, model_info={"id": "same"})
    lab.new(litellm_params={"model": "hosted_vllm/n", "input_cost_per_token": 1}, model_info={"id": "n"})
    lab.new(400, litellm_params={"model": "hosted_vllm/n", "input_cost_per_token": 2})
    lab.new(litellm_params={"model": "hosted_vllm/n", "input_cost_per_token": 1}, model_info={"id": "n2"})
    # the older one may not differ from the newer one either
    change = {"model_info": {"id": "n"}, "litellm_params": {"input_cost_per_token": 3}}
    answer = lab.gateway.post("/model/update", change)
    assert answer.status == 400
    assert "`n2` could not be served any more" in answer.error["message"]


def test_another_strategy_than_the_files_is_refused() -> None:
    lab = Lab(models=(ModelEntry("qwen", "m", DEFAULT, strategy="session"),))
    error = lab.new(400, model_info={"routing_strategy": "round-robin"})
    assert error["param"] == "model_info.routing_strategy"
    lab.new(model_info={"routing_strategy": "session"})


def test_an_id_is_used_once(lab: Lab) -> None:
    lab.new(model_info={"id": "one"})
    assert lab.new(409, model_info={"id": "one"})["param"] == "model_info.id"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/model/delete", {"id": "nobody"}),
        ("POST", "/model/update", {"model_info": {"id": "nobody"}, "model_name": "x"}),
        ("PATCH", "/model/nobody/update", {"model_name": "x"}),
    ],
)
def test_what_is_not_there_is_not_found(lab: Lab, method: str, path: str, body: Any) -> None:
    answer = lab.gateway.call(method, path, body=body)
    assert (answer.status, answer.error["param"]) == (404, "id")


@pytest.mark.parametrize("named", ["qwen", "gpu-1"])
def test_an_entry_of_the_file_cannot_be_changed_whatever_names_it(named: str) -> None:
    lab = Lab(models=(ModelEntry("qwen", "m", DEFAULT, model_id="gpu-1"),))
    for path, body in (("/model/delete", {"id": named}), ("/model/update", {"model_info": {"id": named}})):
        answer = lab.gateway.post(path, body)
        assert answer.status == 400
        assert "Change the file and reload it" in answer.error["message"]


def test_an_update_names_its_entry_once(lab: Lab) -> None:
    assert lab.gateway.post("/model/update", {"model_info": {}}).error["param"] == "model_info.id"
    answer = lab.gateway.call("PATCH", "/model/one/update", body={"model_info": {"id": "two"}})
    assert (answer.status, answer.error["param"]) == (400, "model_info.id")


def test_an_update_may_name_its_entry_as_the_command_line_of_litellm_does(lab: Lab) -> None:
    lab.new(model_info={"id": "one"})
    lab.new(model_info={"id": "two"})
    change = {"id": "two", "litellm_params": {"weight": 3}, "model_info": {"mode": "chat"}}
    answer = lab.gateway.post("/model/update", change)
    assert (answer.json["model_id"], answer.json["litellm_params"]["weight"]) == ("two", 3)
    assert lab.gateway.post("/model/update", {"id": "one"}).json["model_id"] == "one"
    error = lab.gateway.post("/model/update", {"id": "one", "model_info": {"id": "two"}}).error
    assert (error["param"], "send one of them" in error["message"]) == ("id", True)


def test_the_operator_may_close_it(lab: Lab) -> None:
    lab.new(model_info={"id": "one"})
    lab.settings = attrs.evolve(lab.settings, store_model_in_db=False)
    assert "store_model_in_db" in lab.new(400)["message"]
    # what is there can still be taken out
    assert lab.gateway.post("/model/delete", {"id": "one"}).status == 200


def test_there_is_a_most(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_vllm.admin.model_entries.MAX_MODELS", 2)
    lab.new(model_info={"id": "one"})
    lab.new(model_info={"id": "two"})
    assert "the most that are kept" in lab.new(400)["message"]
    assert lab.gateway.post("/model/update", {"model_info": {"id": "one"}, "model_name": "x"}).status == 200


def test_an_entry_of_the_file_is_named_by_its_id_and_changed_by_nobody() -> None:
    """Its id is what ``/model/info`` and ``x-litellm-model-id`` show."""
    lab = Lab(models=(ModelEntry("small", "Small", DEFAULT, model_id="f" * 64),))
    for path, body in (
        ("/model/delete", {"id": "f" * 64}),
        ("/model/update", {"model_info": {"id": "f" * 64}, "model_name": "large"}),
    ):
        error = lab.gateway.post(path, body).error
        assert (error["code"], error["param"]) == ("invalid_request", "id")
        assert "configuration file" in error["message"]
    assert lab.new(409, model_info={"id": "f" * 64})["param"] == "model_info.id"
    assert lab.records() == []
