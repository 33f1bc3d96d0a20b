"""Admission checks which fields a key sends, and gives a request the priority of its key."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from tests.proxy.gateway_fakes import BaseModelsOf, WholeRequest, server
from tests.upstreams.fleets import make_router
from twisted_vllm.api_routes import ROUTES, ModelPlace, classify
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import ANONYMOUS, MASTER, PREFLIGHT, Principal
from twisted_vllm.bodies.members import MAX_MEMBERS
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import TenantFields, TenantRoutes
from twisted_vllm.errors import FieldNotAllowed, GatewayError, ModelUndetermined
from twisted_vllm.field_policy.rules import rules_of
from twisted_vllm.proxy.admission import Admission

JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=b"}
EVERYWHERE = ("inference", "read_only", "privileged")
TENANT = Principal(kind="key", name="team-a", allowed_routes=EVERYWHERE)
RANKED = Principal(kind="key", name="team-b", allowed_routes=EVERYWHERE, priority=5)

#: the routes whose JSON bodies vLLM runs
JSON_ROUTES = sorted(
    row.path for row in ROUTES if row.model in (ModelPlace.BODY, ModelPlace.HEADER) and not row.audio_uploads
)
#: those where it reads the header X-Vllm-Priority, or has no queue
WITHOUT_BODY_PRIORITY = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/cohere/v2/chat"),
    *("/v1/messages/count_tokens", "/tokenize", "/detokenize"),
}


def admit(
    body: bytes | None,
    principal: Principal = TENANT,
    path: str = "/v1/chat/completions",
    headers: Any = JSON,
    fields: TenantFields | None = None,
) -> WholeRequest:
    admission = Admission(
        authenticator=Authenticator(Secret("sk-master"), KeyIndex()),
        policy=RoutePolicy(TenantRoutes()),
        router=make_router((), server("default:8000")),
        base_models=BaseModelsOf(default="m"),
        path_aliases=True,
        fields=FieldPolicies(fields or TenantFields()),
        inject_usage=True,
    )
    authorization = admission.authorize(principal, b"POST", path.encode())
    assert authorization.needs_body or principal.is_administrator
    return WholeRequest(admission, authorization, admission.admit(authorization, headers, body))


def form(*fields: tuple[str, str]) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return "".join([*parts, "--b--\r\n"]).encode()


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_forbidden_field_is_refused_on_every_route(path: str) -> None:
    for body in (b'{"model":"m","priority":-1000}', b'{"model":"m","prior\\u0069ty":-1000}', b'{"priority":-1000}'):
        with pytest.raises(FieldNotAllowed):
            admit(body, path=path)


@pytest.mark.parametrize("principal", [MASTER, ANONYMOUS])
def test_administrators_send_what_they_want(principal: Principal) -> None:
    body = b'{"model":"m","priority":-1000,"vllm_xargs":{"a":1},"n":500}'
    assert admit(body, principal).body == body


def test_a_key_sends_what_it_is_granted() -> None:
    body = b'{"model":"m","priority":-1000,"vllm_xargs":{"a":1},"n":500}'
    for names in (("priority", "vllm_xargs", "n"), ("*",)):
        granted = Principal(kind="key", name="k", key_fields=rules_of(allowed=names))
        assert admit(body, granted).body == body
    open_to_all = TenantFields(allow=("priority", "vllm_xargs"), limits={"n": None})
    assert admit(body, fields=open_to_all).body == body


def test_a_granted_header_grants_the_field_that_does_the_same() -> None:
    granted = Principal(kind="key", name="k", granted_headers=frozenset({b"x-vllm-priority", b"x-session-id"}))
    body = b'{"model":"m","priority":-3,"session_id":"s"}'
    assert admit(body, granted).body == body
    with pytest.raises(FieldNotAllowed):
        admit(b'{"model":"m","vllm_xargs":{"a":1}}', granted)


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("sent", ["-1000", '"-1000"', "null", '1,"priority":2', '1,"prior\\u0069ty":-7'])
def test_a_key_s_priority_replaces_the_client_s(path: str, sent: str) -> None:
    admitted = admit(b'{"model":"m" , "priority" : %b ,"x":"\xc3\xbc"}' % sent.encode(), RANKED, path)
    assert isinstance(admitted.body, bytes)
    found = json.loads(admitted.body, object_pairs_hook=list)
    assert [value for name, value in found if name == "priority"] in ([5], [5, 5])
    assert dict(found)["x"] == "ü"


@pytest.mark.parametrize("principal", [RANKED, attrs.evolve(TENANT, cache_salt="s")])
def test_a_body_that_vllm_could_not_read_is_refused_where_it_must_be_edited(principal: Principal) -> None:
    """msgspec reads a number of thousands of digits, and the parser of ``json.loads`` does not."""
    number = b"1" * 5000
    for sent in (b'"priority":0', b'"cache_salt":"a"'):
        body = b'{"model":"m",%b,"x":%b}' % (sent, number)
        if principal is RANKED and b"cache_salt" in sent:
            assert admit(body, principal).body == body
            continue
        with pytest.raises(GatewayError) as caught:
            admit(body, principal)
        assert (caught.value.status, "not one valid JSON object" in caught.value.message) == (400, True)


@pytest.mark.parametrize(
    "sent", ['"prior\\u0069ty":0', '"priority":0', '"cache_salt":"a"', '"stream":true,"stream_options":{}']
)
def test_an_object_with_very_many_members_is_refused_where_each_must_be_read(sent: str) -> None:
    principal = attrs.evolve(RANKED, cache_salt="s")
    many = ",".join(f'"k{number}":0' for number in range(MAX_MEMBERS))
    with pytest.raises(GatewayError) as caught:
        admit(f'{{"model":"m",{sent},{many}}}'.encode(), principal)
    assert f"has more than {MAX_MEMBERS:,} members" in caught.value.message


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_key_s_priority_is_written_where_vllm_reads_no_header(path: str) -> None:
    admitted = admit(b'{"model":"m","input":"\\"priority\\""}', RANKED, path)
    assert isinstance(admitted.body, bytes)
    expected = {"model": "m", "input": '"priority"'}
    runs = path not in WITHOUT_BODY_PRIORITY and not path.endswith("render")
    assert json.loads(admitted.body) == ({**expected, "priority": 5} if runs else expected)


def test_callers_that_may_set_the_header_keep_their_own_priority() -> None:
    granted = Principal(
        kind="key", name="k", priority=5, granted_headers=frozenset({b"x-vllm-priority"}), allowed_routes=EVERYWHERE
    )
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        body = b'{"model":"m","priority":-3}'
        assert admit(body, granted, path).body == body
    admitted = admit(b'{"model":"m"}', granted, "/v1/embeddings")
    assert admitted.body == b'{"priority":5,"model":"m"}'


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"priority":-1}', {}),
        (b'{"priority":-1}', {b"content-type": b"text/plain"}),
        (b"priority=-1", {b"content-type": b"application/x-www-form-urlencoded"}),
        ('{"priority":-1}'.encode("utf-16"), JSON),
        (b'\xef\xbb\xbf{"priority":-1}', JSON),
        (b"--b\r\n", FORM),
        (b'--x\r\nContent-Disposition: form-data; name="priority"\r\n\r\n1\r\n--x--\r\n', FORM),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(body: bytes, headers: Any) -> None:
    for principal in (TENANT, RANKED):
        with pytest.raises(ModelUndetermined) as caught:
            admit(body, principal, headers=headers)
        assert caught.value.status == 400
    assert admit(body, MASTER, headers=headers).body == body


@pytest.mark.parametrize("body", [b'[{"priority":-1}]', b'{"priority":-1', b'{"model":"m",}', b'{"a":"\xe9"}', b"null"])
def test_the_server_itself_refuses_what_is_no_object(body: bytes) -> None:
    for principal in (TENANT, RANKED):
        for headers in (JSON, {}, {b"content-type": b"text/plain"}):
            assert admit(body, principal, headers=headers).body is body


def test_an_empty_body_is_left_to_the_server() -> None:
    assert admit(b"").body == b""


def test_forms_are_checked() -> None:
    path = "/v1/audio/transcriptions"
    good = form(("model", "m"), ("language", "en"), ("n", "1"))
    assert admit(good, path=path, headers=FORM).body == good
    for name, value in (("vllm_xargs", '{"a":1}'), ("priority", "-1"), ("n", "500"), ("n", " 5_00")):
        for fields in ([("model", "m"), (name, value)], [(name, value), ("model", "m")]):
            with pytest.raises(FieldNotAllowed) as caught:
                admit(form(*fields), path=path, headers=FORM)
            assert caught.value.param == name


def test_who_sends_no_body_has_no_policy() -> None:
    policies = FieldPolicies(TenantFields())
    for principal in (MASTER, ANONYMOUS, PREFLIGHT):
        assert policies.of(principal, classify(b"POST", b"/v1/chat/completions")) is None
    assert policies.of(TENANT, classify(b"GET", b"/v1/models")) is None
    assert policies.of(TENANT, classify(b"POST", b"/v1/chat/completions")) is not None


def test_each_level_says_that_it_refuses() -> None:
    principal = Principal(
        kind="key", name="k", key_fields=rules_of(("background",)), team_fields=rules_of((), {"max_tokens": 5})
    )
    for body, who in (
        (b'{"background":true}', "this key forbids it"),
        (b'{"max_completion_tokens":6}', "the team of this key allows at most 5"),
        (b'{"session_id":"a"}', "the gateway forbids it to virtual keys"),
    ):
        with pytest.raises(GatewayError) as caught:
            admit(body, principal)
        assert who in caught.value.message
