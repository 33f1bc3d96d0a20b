"""The resource at ``/vllm``: from a request's head to the forwarded request."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.web.iweb import UNKNOWN_LENGTH
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from tests.proxy.gateway_fakes import BaseModelsOf, FakeAgent, FakeAuthenticator, FakeRequest, SentRequest, server
from tests.upstreams.fleets import make_forwarder, make_router
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.config.settings import Limits, ModelEntry, TenantRoutes, Timeouts
from twisted_vllm.context import Peer
from twisted_vllm.errors import InvalidApiKey
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.http.server.request import IStreamingResource
from twisted_vllm.mounts import Mounts
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.form_body import MAX_BUFFERED
from twisted_vllm.proxy.form_spool import MOST_IN_MEMORY
from twisted_vllm.proxy.forwarded import ClientAddresses
from twisted_vllm.proxy.relay import Relay, RequestBody
from twisted_vllm.proxy.resource import PEEK_LIMIT, PassThroughResource

SERVER = attrs.evolve(server(base_path=b"/base"), timeouts=Timeouts(total=900.0))
JSON = (b"Content-Type", b"application/json")
TENANT = Principal(kind="key", name="team-a", models=("m",))


class ResourceHarness:
    """A resource with fakes around it."""

    def __init__(self, principal: Any = ANONYMOUS, models: Any = (), limits: Limits = Limits(), **options: Any) -> None:  # noqa: B008
        self.authenticator = FakeAuthenticator(principal)
        self.agent = FakeAgent()
        self.clock = Clock()
        self.base_models = BaseModelsOf(answers=options.get("base_models"))
        admission = Admission(
            authenticator=self.authenticator,  # type: ignore[arg-type]  # it is asked for one thing
            policy=RoutePolicy(TenantRoutes()),
            router=make_router(models, SERVER),
            base_models=self.base_models,
            path_aliases=True,
        )
        addresses = ClientAddresses(options.get("trusted_proxies", ()))
        self.resource = PassThroughResource(
            admission=admission,
            forwarder=make_forwarder(admission, self.agent, self.clock, addresses=addresses),
            limits=limits,
            addresses=addresses,
            in_thread=maybeDeferred,
            cooperate=turn_cooperator(self.clock).cooperate,
            ask_models=options.get("ask_models", self.base_models.ask),
            before_refusal=options.get("before_refusal"),
            mounts=options.get("mounts"),
            now=lambda: 1234.5,
        )

    def render(self, **options: Any) -> Any:
        request: Any = FakeRequest(**options)
        assert self.resource.render(request) == NOT_DONE_YET
        return request

    @property
    def sent(self) -> SentRequest:
        """The one request that was forwarded."""
        [request] = self.agent.sent
        return request

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent.headers.pairs)


def test_it_is_a_streaming_resource_that_owns_everything_below() -> None:
    resource: Any = ResourceHarness().resource
    assert verifyObject(IResource, resource)
    assert IStreamingResource.providedBy(resource)
    request: Any = FakeRequest()
    assert resource.getChildWithDefault(b"x", request) is resource
    with pytest.raises(TypeError):
        resource.putChild(b"x", resource)


def test_method_path_and_query_go_below_the_server_s_base() -> None:
    mounted = ResourceHarness()
    request = mounted.render(method=b"GET", uri=b"/vllm/chat/completions?a=%2F&a=+")
    assert mounted.sent.method == b"GET"
    assert mounted.sent.url == b"http://gpu-1:8000/base/v1/chat/completions?a=%2F&a=+"
    assert not mounted.sent.body
    assert mounted.sent.options["informational"] == request.informational
    assert mounted.sent.options["protocols"] == request.head.protocols
    assert mounted.sent.options["server"] is SERVER
    assert not {b"Content-Length", b"Transfer-Encoding"} & mounted.headers.keys()
    assert isinstance(request.work, Relay)
    assert request.context.sent
    assert request.context.server is SERVER


def test_the_credential_is_checked_at_the_current_time() -> None:
    mounted = ResourceHarness()
    request = mounted.render(headers=[(b"X-Api-Key", b"k")])
    assert mounted.authenticator.asked == [({b"x-api-key": b"k"}, 1234.5)]
    assert request.context.principal is ANONYMOUS


def test_a_refused_request_is_answered_and_not_forwarded() -> None:
    mounted = ResourceHarness(InvalidApiKey("no"))
    assert mounted.render().answered.code == "invalid_api_key"
    assert mounted.agent.sent == []


class Finding:
    """Finds out about callers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.found: Deferred[None] = Deferred()

    def __call__(self, headers: Any, error: Any, address: str) -> Deferred[None]:
        self.asked.append((headers, error.code, address))
        return self.found


def test_a_caller_who_is_known_a_moment_later_is_served_and_its_body_waits_unread() -> None:
    finding = Finding()
    mounted = ResourceHarness(InvalidApiKey("no"), before_refusal=finding)
    request = mounted.render(headers=[JSON, (b"X-Api-Key", b"k")], body=b'{"model": "m"}')
    assert finding.asked == [
        ({b"content-type": b"application/json", b"x-api-key": b"k"}, "invalid_api_key", "192.0.2.1")
    ]
    assert (request.answered, request.events, mounted.agent.sent) == (None, ["pause body"], [])
    mounted.authenticator.principal = TENANT
    finding.found.callback(None)
    assert request.events[:2] == ["pause body", "resume body"]
    assert request.context.principal is TENANT
    assert mounted.sent.body == b'{"model": "m"}'
    assert isinstance(request.work, Relay)


def test_a_caller_who_stays_unknown_is_refused_once_and_for_all() -> None:
    finding = Finding()
    mounted = ResourceHarness(InvalidApiKey("no"), before_refusal=finding)
    request = mounted.render()
    finding.found.callback(None)
    assert request.answered.code == "invalid_api_key"
    assert (len(finding.asked), request.work, mounted.agent.sent) == (1, None, [])


def test_a_client_that_leaves_while_its_key_is_looked_for_is_forgotten() -> None:
    finding = Finding()
    mounted = ResourceHarness(InvalidApiKey("no"), before_refusal=finding)
    request = mounted.render()
    request.work.cancel()
    mounted.authenticator.principal = TENANT
    finding.found.callback(None)
    assert (request.answered, mounted.agent.sent) == (None, [])


def test_a_route_at_the_root_that_was_closed_while_its_caller_was_looked_for_is_not_found() -> None:
    finding, mounts = Finding(), Mounts()
    mounted = ResourceHarness(InvalidApiKey("no"), before_refusal=finding, mounts=mounts)
    request = mounted.render(uri=b"/v1/completions")
    mounts.reconfigure(root_routes=False, path_aliases=True)
    mounted.authenticator.principal = TENANT
    finding.found.callback(None)
    assert (request.answered.code, mounted.agent.sent) == ("not_found", [])


def test_nothing_new_begins_while_the_gateway_drains() -> None:
    mounted = ResourceHarness()
    request: Any = FakeRequest()
    request.site.draining = True
    mounted.resource.render(request)
    assert (request.answered.code, request.answered.retry_after) == ("draining", 1)
    assert mounted.agent.sent == []


def test_what_a_connection_brought_that_was_taken_before_the_drain_is_served() -> None:
    mounted = ResourceHarness()
    request: Any = FakeRequest()
    request.site.draining = request.is_awaited = True
    mounted.resource.render(request)
    assert len(mounted.agent.sent) == 1


def test_a_small_buffered_body_is_read_for_the_log() -> None:
    mounted = ResourceHarness()
    request = mounted.render(headers=[JSON], body=b'{"model": "m"}')
    assert request.context.model == "m"
    assert mounted.sent.body == b'{"model": "m"}'
    assert mounted.headers[b"Content-Length"] == b"14"


def test_a_large_body_that_nothing_depends_on_is_not_read() -> None:
    mounted = ResourceHarness(limits=Limits(max_held_body_bytes=10))
    request = mounted.render(headers=[JSON], body=b'{"model": "m"}' + b" " * PEEK_LIMIT)
    assert request.context.model == ""
    assert isinstance(mounted.sent.body, RequestBody)


def test_a_small_body_that_nothing_depends_on_is_exempt_from_the_buffer_limit() -> None:
    mounted = ResourceHarness(limits=Limits(max_held_body_bytes=10))
    request = mounted.render(headers=[JSON], body=b'{"model": "m"}')
    assert request.answered is None


def test_a_body_on_its_way_that_nothing_depends_on_streams() -> None:
    mounted = ResourceHarness()
    mounted.render(headers=[JSON, (b"content-length", b"7")], body_complete=False, body_length=7)
    assert mounted.sent.body.length == 7
    assert mounted.headers[b"Content-Length"] == b"7"
    assert b"content-length" not in mounted.headers


def test_a_chunked_body_streams_in_chunks() -> None:
    mounted = ResourceHarness()
    mounted.render(headers=[JSON, (b"transfer-encoding", b"chunked")], body_complete=False)
    assert mounted.sent.body.length is UNKNOWN_LENGTH
    assert mounted.headers[b"Transfer-Encoding"] == b"chunked"


def test_a_body_whose_model_decides_is_awaited_and_sent_whole() -> None:
    mounted = ResourceHarness(TENANT, limits=Limits(max_held_body_bytes=99))
    request = mounted.render(headers=[JSON, (b"transfer-encoding", b"chunked")], body_complete=False)
    assert mounted.agent.sent == []
    request.sink(b'{"model"', False)
    assert mounted.agent.sent == []
    request.sink(b': "m"}', True)
    assert mounted.sent.body == b'{"model": "m"}'
    assert mounted.headers[b"Content-Length"] == b"14"
    assert b"Transfer-Encoding" not in mounted.headers


def test_a_body_with_a_model_that_is_not_allowed_is_refused_when_it_is_there() -> None:
    mounted = ResourceHarness(TENANT)
    request = mounted.render(headers=[JSON], body_complete=False)
    request.sink(b'{"model": "other"}', True)
    assert request.answered.code == "model_not_allowed"
    assert mounted.agent.sent == []


def test_an_internal_error_after_the_body_arrived_gets_an_error_response() -> None:
    mounted = ResourceHarness(TENANT)
    request = mounted.render(headers=[JSON], body_complete=False)
    mounted.agent.fault = TypeError()
    request.sink(b'{"model": "m"}', True)
    assert request.failures[0].check(TypeError)


def test_the_model_s_name_is_changed_to_the_server_s_and_the_length_with_it() -> None:
    mounted = ResourceHarness(models=(ModelEntry("m", "longer", SERVER),))
    mounted.render(headers=[JSON, (b"Content-Length", b"13")], body=b'{"model":"m"}')
    assert mounted.sent.body == b'{"model":"longer"}'
    assert [value for name, value in mounted.sent.headers.pairs if name.lower() == b"content-length"] == [b"18"]


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/octet-stream", None])
def test_a_body_of_a_type_that_says_nothing_streams_where_no_permission_depends_on_it(
    content_type: bytes | None,
) -> None:
    mounted = ResourceHarness(models=(ModelEntry("m", "m", SERVER),))
    headers = [] if content_type is None else [(b"Content-Type", content_type)]
    request = mounted.render(headers=headers, body_complete=False, body_length=100_000_000)
    assert request.collecting is None
    assert isinstance(mounted.sent.body, RequestBody)


@pytest.mark.parametrize("length", [10, 100_000_000, None])
def test_a_key_with_certain_models_is_refused_a_body_of_another_type_before_it_is_read(length: int | None) -> None:
    mounted = ResourceHarness(TENANT)
    request = mounted.render(headers=[(b"Content-Type", b"text/plain")], body_complete=False, body_length=length)
    assert request.answered.code == "model_undetermined"
    assert request.collecting is None
    assert mounted.agent.sent == []


def test_a_body_that_streams_is_not_read_while_the_server_is_asked_for_its_model() -> None:
    asked: Deferred[None] = Deferred()
    mounted = ResourceHarness(base_models={"gpu-1": "m"}, ask_models=lambda server: asked)
    request = mounted.render(
        uri=b"/vllm/invocations", headers=[(b"Content-Type", b"text/plain")], body_complete=False, body_length=9
    )
    assert request.events == ["pause body"]
    mounted.base_models.ask(SERVER)
    asked.callback(None)
    assert request.events == ["pause body", "resume body"]
    assert isinstance(mounted.sent.body, RequestBody)


@pytest.mark.parametrize(("length", "room"), [(MAX_BUFFERED, []), (MAX_BUFFERED + 1, [("room", MOST_IN_MEMORY)])])
def test_a_large_form_asks_for_the_room_that_it_takes_in_memory(length: int, room: list[Any]) -> None:
    mounted = ResourceHarness(TENANT)
    request = mounted.render(
        headers=[(b"Content-Type", b"multipart/form-data; boundary=b")], body_complete=False, body_length=length
    )
    assert [event for event in request.events if event[0] == "room"] == room


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding"])
def test_an_empty_body_that_was_declared_stays_declared(name: bytes) -> None:
    mounted = ResourceHarness()
    mounted.render(headers=[(name, b"0")])
    assert mounted.headers[b"Content-Length"] == b"0"


@pytest.mark.parametrize(("principal", "kept"), [(MASTER, True), (ANONYMOUS, True), (TENANT, False)])
def test_the_operator_s_headers_are_taken_from_administrators_alone(principal: Principal, kept: bool) -> None:
    mounted = ResourceHarness(principal)
    mounted.render(method=b"GET", uri=b"/vllm/health", headers=[(b"X-Vllm-Priority", b"-1")])
    assert (b"X-Vllm-Priority" in mounted.headers) is kept


@pytest.mark.parametrize(("complete", "passed_on"), [(False, True), (True, False)])
def test_a_client_that_waits_for_100_continue_waits_for_the_server_only_where_its_body_streams(
    complete: bool, passed_on: bool
) -> None:
    mounted = ResourceHarness()
    mounted.render(headers=[(b"Expect", b"100-continue")], body_complete=complete, body_length=4)
    assert (b"Expect" in mounted.headers) is passed_on


def test_the_server_gets_the_client_s_address() -> None:
    mounted = ResourceHarness()
    peer = Peer("192.0.2.7", True)
    request: Any = FakeRequest(headers=[(b"Host", b"gw"), (b"X-Forwarded-For", b"6.6.6.6")], peer=peer)
    mounted.resource.render(request)
    assert mounted.headers[b"X-Forwarded-For"] == b"192.0.2.7"
    assert mounted.headers[b"X-Forwarded-Proto"] == b"https"
    assert mounted.headers[b"X-Forwarded-Host"] == b"gw"


def test_the_chain_of_a_trusted_proxy_goes_on_with_all_its_lines() -> None:
    mounted = ResourceHarness(trusted_proxies=(ip_network("192.0.2.0/24"),))
    mounted.render(headers=[(b"X-Forwarded-For", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.1")])
    assert mounted.headers[b"X-Forwarded-For"] == b"6.6.6.6, 198.51.100.1, 192.0.2.1"


@pytest.mark.parametrize(
    ("method", "uri"),
    [(b"POST", b"/vllm/v1/embeddings"), (b"POST", b"/vllm/tokenize"), (b"GET", b"/vllm/v1/models")],
)
def test_a_harmless_request_can_be_sent_again_under_another_id(method: bytes, uri: bytes) -> None:
    mounted = ResourceHarness()
    request = mounted.render(method=method, uri=uri, headers=[JSON, (b"X-A", b"1")], body=b"{}")
    assert mounted.headers[b"X-Request-Id"] == b"5f0e"
    again = dict(mounted.sent.options["again"]().pairs)
    assert again.pop(b"X-Request-Id").decode() == request.context.repeated_as != "5f0e"
    assert again == {name: value for name, value in mounted.headers.items() if name != b"X-Request-Id"}
    assert request.context.request_id == b"5f0e"


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/responses", b"/sleep", b"/new", b"/v1//embeddings"])
def test_a_request_that_generates_or_changes_is_never_sent_again(path: bytes) -> None:
    mounted = ResourceHarness()
    mounted.render(uri=b"/vllm" + path, headers=[JSON], body=b"{}")
    assert mounted.sent.options["again"] is None
