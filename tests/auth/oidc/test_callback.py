"""An answer of the provider counts for the attempt of this browser, and of this provider."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.auth.oidc.test_attempt import make
from tests.auth.oidc.test_provider import ISSUER, read
from twisted_vllm.auth.oidc.callback import FIELDS, code_of
from twisted_vllm.errors import SignInFailed

ATTEMPT = make()
SILENT = read(authorization_response_iss_parameter_supported=None)


def answer(**changed: Any) -> dict[str, list[str]]:
    fields = {"state": ATTEMPT.state, "code": "c0de", "iss": ISSUER, **changed}
    return {name: value if isinstance(value, list) else [value] for name, value in fields.items() if value is not None}


def refused(query: dict[str, list[str]], provider: Any = None) -> SignInFailed:
    with pytest.raises(SignInFailed) as raised:
        code_of(query, ATTEMPT, provider or read(), "Example")
    return raised.value


def test_the_code_of_an_answer_is_returned() -> None:
    assert code_of(answer(session_state="x"), ATTEMPT, read(), "Example") == "c0de"


@pytest.mark.parametrize("state", [None, "", "other", ATTEMPT.state[:-1], f"{ATTEMPT.state} ", "ä", "\ud800"])
def test_an_answer_to_another_attempt_is_refused(state: str | None) -> None:
    assert "belongs to another sign-in" in refused(answer(state=state)).message


@pytest.mark.parametrize("iss", ["https://evil.example.com", f"{ISSUER}/", None, ""])
def test_an_answer_of_another_provider_is_refused(iss: str | None) -> None:
    """RFC 9207: its code must not be sent to this provider (mix-up)."""
    assert refused(answer(iss=iss)).message.startswith("This answer is not of Example.")


def test_a_provider_that_never_names_itself_need_not_and_must_not_name_another() -> None:
    assert code_of(answer(iss=None), ATTEMPT, SILENT, "Example") == "c0de"
    refused(answer(iss="https://evil.example.com"), SILENT)


@pytest.mark.parametrize("field", FIELDS)
def test_a_repeated_field_is_refused(field: str) -> None:
    value = answer(error="access_denied")[field][0]
    assert refused(answer(**{field: [value, value]})).reason == f"{field} is repeated"


@pytest.mark.parametrize("code", [None, "", "a\nb", "x" * 5_000])
def test_a_code_must_be_there(code: str | None) -> None:
    assert "is not valid" in refused(answer(code=code)).message


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("access_denied", "Example did not let you in, or you declined there. Sign in again."),
        ("login_required", "Example asks you to sign in there first. Sign in again."),
        ("invalid_scope", "Example answered invalid_scope. Sign in again."),
    ],
)
def test_an_error_of_the_provider_is_said_in_words(error: str, says: str) -> None:
    found = refused(answer(code=None, error=error))
    assert found.message == says
    assert found.reason == f"the provider answered: {error}"


@pytest.mark.parametrize("error", ["<script>", "Call 0900 123456 now", "a\r\nb", "x" * 100])
def test_words_of_strangers_are_not_repeated(error: str) -> None:
    found = refused(answer(error=error, error_description="Call 0900 123456 now"))
    assert error not in found.message + found.reason
    assert "0900" not in found.message + found.reason


def test_an_error_is_believed_with_the_state_alone() -> None:
    assert "another sign-in" in refused(answer(state="other", error="access_denied")).message


@given(st.dictionaries(st.sampled_from((*FIELDS, "x")), st.lists(st.text(max_size=50), max_size=3)))
def test_whatever_comes_without_the_state_is_refused(query: dict[str, list[str]]) -> None:
    refused(query)
