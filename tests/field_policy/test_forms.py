"""The fields of multipart forms are checked while the form is parsed."""

from __future__ import annotations

import pytest

from tests.field_policy.test_policy import key_policy
from twisted_vllm.errors import FieldNotAllowed
from twisted_vllm.field_policy.forms import FormFields
from twisted_vllm.field_policy.policy import FieldPolicy, GatewayFields, policy_of
from twisted_vllm.field_policy.rules import NO_RULES


def feed(policy: FieldPolicy, *fields: tuple[str, bytes], piece: int = 3) -> None:
    observer = FormFields(policy)
    for name, content in fields:
        observer.part(name.encode())
        for start in range(0, len(content), piece):
            observer.content(content, start, min(start + piece, len(content)))
    observer.finish()


def test_an_ordinary_form_passes() -> None:
    policy = policy_of(GatewayFields(), NO_RULES, NO_RULES)
    assert policy is not None
    feed(
        policy,
        ("model", b"whisper"),
        ("file", b"x" * 10_000),
        ("n", b"1"),
        ("response_format", b"json"),
        ("prompt", b""),
    )


@pytest.mark.parametrize(
    "field",
    [
        ("vllm_xargs", b'{"a":1}'),
        ("priority", b"-1"),
        ("session_id", b""),
        ("n", b"500"),
        ("n", b" 5_00 "),
        ("n", b"9" * 600),
    ],
)
def test_a_forbidden_or_too_large_field_is_refused(field: tuple[str, bytes]) -> None:
    policy = policy_of(GatewayFields(), NO_RULES, NO_RULES)
    assert policy is not None
    with pytest.raises(FieldNotAllowed) as caught:
        feed(policy, ("model", b"whisper"), field, ("language", b"en"))
    assert caught.value.param == field[0]


def test_a_long_text_is_refused_while_it_arrives() -> None:
    observer = FormFields(key_policy(limits={"prompt": 10}))
    observer.part(b"prompt")
    observer.content(b"x" * 10, 0, 10)
    with pytest.raises(FieldNotAllowed):
        observer.content(b"x", 0, 1)


def test_one_value_of_a_field_may_be_forbidden() -> None:
    policy = key_policy(("response_format=verbose_json", "timestamp_granularities[]"))
    feed(policy, ("response_format", b"json"))
    for field in (("response_format", b"verbose_json"), ("timestamp_granularities[]", b"word")):
        with pytest.raises(FieldNotAllowed):
            feed(policy, field)
