"""What the browser brings back from the provider: a code, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hmac import compare_digest

from twisted_vllm.auth.oidc.attempt import Attempt
from twisted_vllm.auth.oidc.provider import Provider
from twisted_vllm.errors import SignInFailed

#: the fields that are read, each at most once
FIELDS = ("state", "code", "error", "iss")
#: characters of a code, and of any other field
_LONGEST_CODE, _LONGEST_FIELD = 4_096, 2_048
#: an error of RFC 6749 §4.1.2.1 or an extension: a word of its registry, so it may be shown
_ERROR = re.compile(r"[a-z][a-z0-9_]{0,39}")

_AGAIN = "Sign in again."
#: what the usual errors mean to a person
_MEANINGS = {
    "access_denied": "did not let you in, or you declined there",
    "login_required": "asks you to sign in there first",
    "consent_required": "asks for your consent first",
    "interaction_required": "needs you to do something there first",
    "temporarily_unavailable": "is not available at the moment",
    "server_error": "had an error of its own",
}


def code_of(query: Mapping[str, Sequence[str]], attempt: Attempt, provider: Provider, name: str) -> str:
    """Return the code of an answer that belongs to an attempt.

    Args:
        query: the fields of the answer, each with all its values.
        attempt: the attempt of this browser.
        provider: the provider that was asked.
        name: what people call it.

    Raises:
        SignInFailed: the answer is not of this attempt or this provider, or says that there is no code.
    """
    fields = {}
    for field in FIELDS:
        values = query.get(field, ())
        if len(values) > 1:
            raise SignInFailed(f"The answer of {name} is not valid. {_AGAIN}", reason=f"{field} is repeated")
        if values and len(values[0]) > (_LONGEST_CODE if field == "code" else _LONGEST_FIELD):
            raise SignInFailed(f"The answer of {name} is not valid. {_AGAIN}", reason=f"{field} is too long")
        fields[field] = values[0] if values else ""
    if not compare_digest(fields["state"].encode("utf-8", "surrogatepass"), attempt.state.encode("ascii")):
        raise SignInFailed(
            f"This answer belongs to another sign-in, perhaps of another tab. {_AGAIN}",
            reason="the state of the answer is not that of the attempt in this browser",
        )
    # an answer of another provider must not be exchanged at this one (RFC 9207)
    if (fields["iss"] or provider.names_itself) and fields["iss"] != provider.issuer:
        raise SignInFailed(
            f"This answer is not of {name}. {_AGAIN}", reason="the iss of the answer is not the issuer that was asked"
        )
    if fields["error"]:
        error = fields["error"] if _ERROR.fullmatch(fields["error"]) else "an error without a valid name"
        what = _MEANINGS.get(error, f"answered {error}")
        raise SignInFailed(f"{name} {what}. {_AGAIN}", reason=f"the provider answered: {error}")
    if not fields["code"] or not fields["code"].isprintable():
        raise SignInFailed(f"The answer of {name} is not valid. {_AGAIN}", reason="the answer has no code")
    return fields["code"]
