from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from twisted_vllm.observability.logging.redaction import MOST_FORMER, Redactor

SECRETS = ("sk-master-0123456789", "p@ss word/1", "vllm", 'quo"te\\d-secret')


@pytest.mark.parametrize("secret", SECRETS)
def test_a_configured_secret_is_taken_out(secret: str) -> None:
    assert Redactor(SECRETS)(f"it is {secret}, is it not?") == "it is ***, is it not?"


def test_a_secret_is_taken_out_in_the_forms_of_urls_reprs_and_json() -> None:
    redact = Redactor(SECRETS)
    assert redact("postgresql://u:p%40ss%20word%2F1@db/x") == "postgresql://u:***@db/x"
    assert "quo" not in redact(repr({"key": SECRETS[3]}))
    assert "te" not in redact('{"key": "quo\\"te\\\\d-secret"}')


def test_of_a_database_url_only_the_password_is_a_secret() -> None:
    redact = Redactor(
        ["postgresql+psycopg://gateway:h%40nter2-h%40nter2@db.local/x?password=another-one", "sqlite:///a.db"]
    )
    assert redact("h@nter2-h@nter2, h%40nter2-h%40nter2 and another-one") == "***, *** and ***"
    assert redact("gateway at db.local, sqlite:///a.db") == "gateway at db.local, sqlite:///a.db"


def test_a_short_secret_does_not_blot_out_longer_words() -> None:
    assert Redactor(SECRETS)("twisted_vllm asks vllm-1 with vllm.") == "twisted_vllm asks vllm-1 with ***."


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("unknown key sk-abcdEFGH_12-34.", "unknown key ***."),
        ("unknown key `sk-$uper!Secret~Key`, or", "unknown key `***`, or"),
        ("{'key': 'sk-a\\\\b\\'c\"d'}", "{'key': '***'}"),
        ("/x/sk%2D%24uper", "/x/***"),
        ("/x/%2573%256b%252d%2524uper", "/x/***"),
        ("sk-schlüssel!", "***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("(b'Authorization', b'Basic dTpw')", "(b'Authorization', b'Basic ***')"),
        ("bearer  xyz, and more", "bearer  ***, and more"),
        ("x-api-key: 123456", "x-api-key: ***"),
        ("?api_key=123456&model=m", "?api_key=***&model=m"),
        ("realtime, openai-insecure-api-key.123456, b", "realtime, openai-insecure-api-key.***, b"),
        ("postgresql+psycopg://user:hunter2@db.local:5432/x", "postgresql+psycopg://user:***@db.local:5432/x"),
    ],
)
def test_what_looks_like_a_credential_is_taken_out(text: str, clean: str) -> None:
    assert Redactor()(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "key sk-...abcd was deleted",
        "the sk- of a key, disk-space!",
        "task-management of the disk-cache",
        "http://127.0.0.1:8000/v1/models failed",
        "api_key is missing: set HOSTED_VLLM_API_KEY",
    ],
)
def test_plain_text_stays(text: str) -> None:
    assert Redactor(["", "  "])(text) == text


@given(st.text(), st.text(min_size=8).filter(str.strip), st.text())
def test_a_long_secret_never_survives(before: str, secret: str, after: str) -> None:
    assume("://" not in secret)
    redacted = Redactor([secret])(before + secret + after)
    assert secret not in redacted or secret in "***"


def test_the_redactor_does_not_show_what_it_knows() -> None:
    assert "master" not in repr(Redactor(SECRETS))


def test_other_secrets_are_masked_and_the_former_ones_still() -> None:
    redact = Redactor(["first-secret-value"])
    redact.prepare(["second-secret-value"])()
    assert redact("first-secret-value and second-secret-value") == "*** and ***"


def test_secrets_of_long_ago_are_forgotten() -> None:
    redact = Redactor(["the-first-secret"])
    for number in range(MOST_FORMER + 1):
        redact.prepare([f"secret-number-{number}"])()
    assert redact("the-first-secret, secret-number-0, secret-number-1") == "the-first-secret, ***, ***"


TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl-_x"


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"/vllm/{TOKEN}/x",
        f'{{"token": "{TOKEN}"}}',
        f"x={TOKEN}&y",
        TOKEN.rpartition(".")[0] + ".",
        TOKEN.replace(".", "%2E"),
    ],
)
def test_a_json_web_token_is_masked_wherever_it_stands(text: str) -> None:
    shown = Redactor()(text)
    assert "***" in shown
    for part in ("eyJhbGci", "eyJzdWIi", "c2lnbmF0"):
        assert part not in shown


def test_what_only_begins_like_a_token_is_shown() -> None:
    assert (
        Redactor()("eyJ is base64 of an object; greyJack.example.com")
        == "eyJ is base64 of an object; greyJack.example.com"
    )


@given(st.text(st.sampled_from(list("skeyJbearto hizn-_.:/@%2567B3D25\u017f\u212a\u0130\u0131uKS=")), max_size=40))
@example("\u017fk-abcdefgh")
@example("author\u0130zation: abc")
@example("author\u0131zation: abc")
@example("%2573%6b%2dabcdef")
@example("http://user:password@host")
def test_a_text_that_cannot_change_does_not(text: str) -> None:
    redactor = Redactor(["a secret", "ab"])
    if not redactor.may_change(text):
        assert redactor(text) == text
