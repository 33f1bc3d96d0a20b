"""The document of the admin API, and that it cannot drift from what it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec
import pytest

from tests.admin.admin_harness import MASTER_KEY, NOW, Gateway, value_of
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.audit import AuditEntry
from twisted_vllm.admin.budgets.models import BudgetReport
from twisted_vllm.admin.budgets.operations import report_budget_record
from twisted_vllm.admin.customers import CustomerReport, report_customers
from twisted_vllm.admin.keys.answers import KeyReport
from twisted_vllm.admin.keys.operations import report_key
from twisted_vllm.admin.models import BudgetTable
from twisted_vllm.admin.organizations.models import OrganizationMembership, OrganizationReport
from twisted_vllm.admin.organizations.operations import report_memberships as report_organization_memberships
from twisted_vllm.admin.organizations.operations import report_organizations
from twisted_vllm.admin.teams.answers import MemberRole, Membership, TeamReport
from twisted_vllm.admin.teams.operations import report_memberships, report_team
from twisted_vllm.admin.users.models import UserReport
from twisted_vllm.admin.users.operations import report_user
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.storage.records import (
    AuditRecord,
    BudgetRecord,
    EndUserRecord,
    Member,
    OrganizationMember,
    OrganizationRecord,
    TeamRecord,
    UserRecord,
)
from twisted_vllm.storage.store import Store

CHANGES: dict[str, Any] = {"created_at": NOW, "created_by": "master", "updated_at": NOW, "updated_by": "master"}


@pytest.fixture
def document(gateway: Gateway) -> Any:
    return gateway.get("/openapi.json", key=None).json


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_everyone_may_read_the_document_and_it_names_no_key(gateway: Gateway) -> None:
    gateway.make_key(key_alias="alias-of-a-tenant")
    answer = gateway.get("/openapi.json", key=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["openapi"] == "3.1.0"
    assert MASTER_KEY not in answer.body.decode()
    assert "alias-of-a-tenant" not in answer.body.decode()


def test_the_document_holds_every_route_of_the_app_and_no_other(gateway: Gateway, document: Any) -> None:
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in gateway.app.url_map.iter_rules()
        for method in set(rule.methods or ()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == served


def test_nothing_is_described_that_is_not_served(document: Any) -> None:
    assert {re.sub(r"<\w+:(\w+)>", r"{\1}", route.path) for route in ROUTES} == set(document["paths"])


def test_every_route_is_described_in_words_and_by_a_name_of_its_own(document: Any) -> None:
    found = list(operations(document))
    assert all(len(operation["description"]) > 10 and "``" not in operation["description"] for *_, operation in found)
    assert not [path for path, _, operation in found if operation["description"].startswith("Answer")]
    assert len({operation["operationId"] for *_, operation in found}) == len(found)


def test_only_what_is_open_to_everyone_needs_no_key(gateway: Gateway, document: Any) -> None:
    without = {path for path, _, operation in operations(document) if operation.get("security") == []}
    assert without == {
        *("/", "/openapi.json", "/routes", "/metrics", "/health/liveliness", "/health/liveness", "/health/readiness"),
    }
    for path, method, _ in operations(document):
        status = gateway.call(method.upper(), path.replace("{key}", "x"), key=None).status
        assert (status != 401) == (path in without), path


def test_the_credentials_are_those_that_the_gateway_takes(gateway: Gateway, document: Any) -> None:
    schemes = document["components"]["securitySchemes"]
    assert [set(each) for each in document["security"]] == [{name} for name in schemes]
    for scheme in schemes.values():
        header = {scheme["name"]: MASTER_KEY} if "name" in scheme else {"Authorization": f"Bearer {MASTER_KEY}"}
        assert gateway.get("/key/list", key=None, headers=header).status == 200


def test_every_reference_leads_somewhere(document: Any) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(document))
    assert found
    for reference in found:
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_a_refusal_is_described_in_openais_shape(gateway: Gateway, document: Any) -> None:
    refused = gateway.get("/key/list?page=0")
    described = document["components"]["responses"][str(refused.status)]
    assert set(described["headers"]) <= set(refused.headers)
    detail = document["components"]["schemas"]["ErrorDetail"]
    assert set(detail["properties"]) == set(detail["required"]) == set(refused.error)


def test_a_body_that_is_described_as_closed_is(gateway: Gateway, document: Any) -> None:
    for path, method, operation in operations(document):
        if "requestBody" not in operation:
            continue
        answer = gateway.call(method.upper(), path.replace("{key}", "x"), body={"colour": "red"})
        assert (answer.status, answer.error["param"]) == (400, "colour"), path


def test_an_empty_parameter_is_as_good_as_none_and_described_so(gateway: Gateway, document: Any) -> None:
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] != "query" or parameter["required"]:
                continue
            schema, name = parameter["schema"], parameter["name"]
            described = [schema, *schema.get("anyOf", ())]
            assert any(
                each.get("type") == "string" or "" in (each.get("const"), *each.get("enum", ())) for each in described
            )
            without = gateway.call(method.upper(), path)
            empty = gateway.call(method.upper(), f"{path}?{name}=")
            assert (empty.status, empty.body) == (without.status, without.body), (path, name)


KEY = KeyRecord(token="0" * 64, key_name="sk-...abcd", created_at=NOW, updated_at=NOW, created_by="master")
TEAM = TeamRecord("x", **CHANGES)


EVE = EndUserRecord("eve", allowance=Allowance(rpm=1), **CHANGES)


def team_with_a_member(transaction: Any) -> Any:
    transaction.members.put(Member("x", "ada"))
    return report_team(transaction, TEAM, NOW)["members_with_roles"][0]


@pytest.mark.parametrize(
    ("described", "report"),
    [
        (KeyReport, lambda transaction: report_key(transaction, KEY, NOW)),
        (UserReport, lambda transaction: report_user(transaction, UserRecord("ada", **CHANGES), NOW)),
        (TeamReport, lambda transaction: report_team(transaction, TEAM, NOW)),
        (MemberRole, team_with_a_member),
        (Membership, lambda transaction: report_memberships(transaction, [Member("x", "ada")], NOW)[0]),
        (BudgetReport, lambda _: report_budget_record(BudgetRecord("b", **CHANGES), NOW)),
        (
            OrganizationReport,
            lambda transaction: report_organizations(transaction, [OrganizationRecord("o", **CHANGES)], NOW)[0],
        ),
        (
            OrganizationMembership,
            lambda transaction: report_organization_memberships(transaction, [OrganizationMember("o", "ada")])[0],
        ),
        (CustomerReport, lambda transaction: report_customers(transaction, [EVE], NOW)[0]),
        (
            BudgetTable,
            lambda transaction: report_customers(transaction, [EVE], NOW)[0]["litellm_budget_table"],
        ),
        (
            AuditEntry,
            lambda transaction: attrs.asdict(
                AuditRecord(NOW, "master", "master", "key/update", "key", "0", None, None)
            ),
        ),
    ],
)
def test_what_is_reported_is_what_is_described(described: Any, report: Any) -> None:
    reported = value_of(Store(MemoryDatabase()).read(report))
    assert set(described.__struct_fields__) == set(reported)


def test_each_field_of_each_request_says_what_it_means() -> None:
    bodies = [route.body for route in ROUTES if route.body is not None]
    _, components = msgspec.json.schema_components(bodies)
    silent = [
        f"{name}.{field}"
        for name, schema in components.items()
        for field, declared in schema.get("properties", {}).items()
        if len(declared.get("description", "").split()) < 2
    ]
    assert silent == []
