"""The routes of organizations and their members, in LiteLLM's shapes."""

from __future__ import annotations

from functools import partial

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.fields import NAMES_USER
from twisted_vllm.admin.lists import asked_page, link_next, place_of, reported
from twisted_vllm.admin.models import LISTED_MEMBERS, Json
from twisted_vllm.admin.organizations import operations
from twisted_vllm.admin.organizations.models import (
    AddedOrganizationMembers,
    AddOrganizationMembersRequest,
    DeleteOrganizationsRequest,
    NewOrganizationRequest,
    OrganizationInfoQuery,
    OrganizationListQuery,
    OrganizationMemberRequest,
    OrganizationMembership,
    OrganizationPage,
    OrganizationPageQuery,
    OrganizationReport,
    OrganizationsRequest,
    PatchOrganizationRequest,
    UpdateOrganizationMemberRequest,
    UpdateOrganizationRequest,
)
from twisted_vllm.admin.organizations.operations import (
    report_memberships,
    report_organizations,
    visible_organizations,
)
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.users.operations import report_users
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


@routes.post("/organization/new", body=NewOrganizationRequest, response=OrganizationReport, errors=(404, 409))
async def new(call: AdminCall, body: NewOrganizationRequest) -> Json:
    """Create an organization: limits and models for all keys of its teams, and for those that name it."""
    organization_id = body.organization_id or call.new_id()

    def work(transaction: Transaction) -> Json:
        made = operations.add(transaction, call.audit, body, organization_id)
        return report_organizations(transaction, [made], call.now)[0]

    return await call.change(work)


@routes.patch("/organization/update", body=UpdateOrganizationRequest, response=OrganizationReport, errors=(404,))
async def update(call: AdminCall, body: UpdateOrganizationRequest) -> Json:
    """Change an organization. Fields that are absent stay as they are; null clears a field."""
    return await _update(call, body.organization_id, body)


@routes.patch(
    "/v2/organization/<string:organization_id>",
    body=PatchOrganizationRequest,
    response=OrganizationReport,
    errors=(404,),
)
async def patch(call: AdminCall, body: PatchOrganizationRequest) -> Json:
    """Change an organization. Fields that are absent stay as they are; null clears a field."""
    return await _update(call, call.path["organization_id"], body)


async def _update(call: AdminCall, organization_id: str, body: PatchOrganizationRequest) -> Json:
    def work(transaction: Transaction) -> Json:
        changed = operations.update(transaction, call.audit, organization_id, body, call.given)
        return report_organizations(transaction, [changed], call.now)[0]

    return await call.change(work)


@routes.get(
    "/organization/info",
    access=Access.ANY_KEY,
    query=OrganizationInfoQuery,
    response=OrganizationReport,
    errors=(404,),
)
async def info(call: AdminCall, query: OrganizationInfoQuery) -> Json:
    """Return an organization with its members and teams.

    Its members may ask, and see themselves in it; those with the role org_admin see everybody.
    """

    def work(transaction: Transaction) -> Json:
        missing = call.scope.missing_organization(query.organization_id)
        found = transaction.organizations.get(query.organization_id)
        reports = [] if found is None else visible_organizations(transaction, call.scope, [found], call.now)
        if not reports:
            raise missing
        return reports[0]

    return await call.read(work)


@routes.post(
    "/organization/info", access=Access.READER, body=OrganizationsRequest, response=tuple[OrganizationReport, ...]
)
async def info_of_several(call: AdminCall, body: OrganizationsRequest) -> list[Json]:
    """Return several organizations. Those that do not exist are left out."""

    def work(transaction: Transaction) -> list[Json]:
        found = transaction.organizations.among("organization_id", body.organizations)
        return report_organizations(transaction, found, call.now)

    return await call.read(work)


@routes.get(
    "/organization/list",
    access=Access.ANY_KEY,
    query=OrganizationListQuery,
    response=tuple[OrganizationReport, ...],
)
async def list_organizations(call: AdminCall, query: OrganizationListQuery) -> msgspec.Raw:
    """Return all organizations, or those of the caller. If there are more than 1000, ask for them by page."""

    def work(transaction: Transaction) -> tuple[msgspec.Raw, str | None]:
        own = call.scope.own_organizations(transaction)
        conditions = () if own is None else (transaction.organizations.are(sorted(own)),)
        page = transaction.organizations.page(query.page_query, *conditions)
        found = asked_page(page, call.given, "organizations", "/organization/list")
        report = partial(visible_organizations, transaction, call.scope, now=call.now, most=LISTED_MEMBERS)
        return reported(found, report), page.next

    found, following = await call.read(work)
    link_next(call, following)
    return found


@routes.get("/v2/organizations/list", access=Access.ANY_KEY, query=OrganizationPageQuery, response=OrganizationPage)
async def list_page(call: AdminCall, query: OrganizationPageQuery) -> Json:
    """Return a page of the organizations that the caller may see, and how many there are."""

    def work(transaction: Transaction) -> Json:
        own = call.scope.own_organizations(transaction)
        conditions = () if own is None else (transaction.organizations.are(sorted(own)),)
        page = transaction.organizations.page(query.page_query, *conditions)
        report = partial(visible_organizations, transaction, call.scope, now=call.now, most=LISTED_MEMBERS)
        return {"organizations": reported(page.records, report), **place_of(page, query.page_size)}

    return await call.read(work)


@routes.delete(
    "/organization/delete",
    body=DeleteOrganizationsRequest,
    response=tuple[OrganizationReport, ...],
    errors=(404,),
)
async def delete(call: AdminCall, body: DeleteOrganizationsRequest) -> list[Json]:
    """Delete organizations with their teams and keys: all that the request names, or none if one does not exist."""
    return await call.change(lambda transaction: operations.delete(transaction, call.audit, body.organization_ids))


@routes.post(
    "/organization/member_add",
    body=AddOrganizationMembersRequest,
    response=AddedOrganizationMembers,
    constraint={"properties": {"member": {"anyOf": [{"type": "array"}, NAMES_USER]}}},
    errors=(404, 409),
)
async def add_members(call: AdminCall, body: AddOrganizationMembersRequest) -> Json:
    """Add one member or several to an organization. A user whose id or address is unknown is created."""

    def work(transaction: Transaction) -> Json:
        users, members = operations.add_members(transaction, call.audit, body)
        return {
            "organization_id": body.organization_id,
            "updated_users": report_users(transaction, users, call.now),
            "updated_organization_memberships": report_memberships(transaction, members),
        }

    return await call.change(work)


@routes.patch(
    "/organization/member_update",
    body=UpdateOrganizationMemberRequest,
    response=OrganizationMembership,
    constraint=NAMES_USER,
    errors=(404,),
)
async def update_member(call: AdminCall, body: UpdateOrganizationMemberRequest) -> Json:
    """Change the role of a member of an organization."""

    def work(transaction: Transaction) -> Json:
        return report_memberships(transaction, [operations.update_member(transaction, call.audit, body)])[0]

    return await call.change(work)


@routes.delete(
    "/organization/member_delete",
    body=OrganizationMemberRequest,
    response=OrganizationMembership,
    constraint=NAMES_USER,
    errors=(404,),
)
async def remove_member(call: AdminCall, body: OrganizationMemberRequest) -> Json:
    """Remove a user from an organization. The user's keys stay."""

    def work(transaction: Transaction) -> Json:
        return report_memberships(transaction, [operations.remove_member(transaction, call.audit, body)])[0]

    return await call.change(work)
