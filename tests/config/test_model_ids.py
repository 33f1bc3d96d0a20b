"""The ids of entries that name none: the same at each start, and no way to check a guess of an address."""

from __future__ import annotations

from hashlib import sha256

from tests.config.config_harness import BASE, Loader
from twisted_vllm.config.model_ids import ModelIds, lasting_secret
from twisted_vllm.config.secret import Secret

LIST = """
model_list:
  - {model_name: qwen, litellm_params: {model: hosted_vllm/Qwen, api_base: 'http://10.0.0.7:8000'}}
  - {model_name: qwen, litellm_params: {model: hosted_vllm/Qwen, api_base: 'http://10.0.0.7:8000'}}
  - {model_name: named, litellm_params: {model: hosted_vllm/Qwen}, model_info: {id: mine}}
"""
MASTER = "sk-master-0123456789"
HASH = sha256(MASTER.encode()).hexdigest()


def ids_of(load_text: Loader, text: str = LIST, **environ: str) -> list[str]:
    return [model.model_id for model in load_text(text, BASE | environ).models]


def test_ids_are_the_same_at_each_start_and_one_for_each_entry(load_text: Loader) -> None:
    first = ids_of(load_text, LITELLM_MASTER_KEY=MASTER)
    assert first == ids_of(load_text, LITELLM_MASTER_KEY=MASTER)
    assert len(set(first)) == 3 and first[2] == "mine"


def test_ids_depend_on_the_salt_key_or_else_on_the_master_key_in_either_form(load_text: Loader) -> None:
    first, _, _ = ids_of(load_text, LITELLM_MASTER_KEY=MASTER)
    assert ids_of(load_text, LITELLM_MASTER_KEY="sha256:" + HASH)[0] == first
    assert ids_of(load_text, LITELLM_MASTER_KEY=MASTER + "x")[0] != first
    salted = ids_of(load_text, LITELLM_MASTER_KEY=MASTER, LITELLM_SALT_KEY="salt-0123456789")
    assert salted[0] != first
    # with a salt key, another master key changes nothing
    assert salted == ids_of(load_text, LITELLM_MASTER_KEY=MASTER + "x", LITELLM_SALT_KEY="salt-0123456789")


def test_a_guess_of_an_address_cannot_be_checked_without_the_secret(load_text: Loader) -> None:
    first, second, _ = ids_of(load_text, LITELLM_MASTER_KEY=MASTER)
    plain = ids_of(load_text)
    assert plain[0] == sha256(b"qwen\nhttp://10.0.0.7:8000\nQwen\n0").hexdigest()
    assert not {first, second} & set(plain[:2])


def test_ids_name_no_secret() -> None:
    ids = ModelIds(lasting_secret(None, Secret(MASTER)))
    assert MASTER not in repr(ids) and len(ids.of("a")) == 64
    assert lasting_secret(None, None) is None


def test_the_file_that_names_the_master_key_has_the_same_ids(load_text: Loader) -> None:
    written = [LIST + f"general_settings: {{master_key: '{key}'}}\n" for key in (MASTER, "sha256:" + HASH)]
    assert ids_of(load_text, written[0]) == ids_of(load_text, written[1])
    assert ids_of(load_text, written[0]) == ids_of(load_text, LITELLM_MASTER_KEY=MASTER)
