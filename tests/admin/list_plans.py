"""Asks every list of a filled database, and looks at the plan of each statement that it issues."""

from __future__ import annotations

from tests.admin.database_client import Client
from tests.storage.plans import Excepted, Plans, unexplained
from twisted_vllm.storage.database import Database

#: tables that may be large: their names without the product's
LARGE = tuple(
    f"vllm_passthrough_{name}"
    for name in ("keys", "users", "end_users", "members", "organization_members", "spend", "audit", "former_keys")
)

ASKED = (
    "/key/list?size=100&return_full_object=true",
    "/key/list?size=100&page=150&return_full_object=true&expand=user",
    *(
        f"/key/list?size=100&sort_by={column}&sort_order={order}"
        for column in ("created_at", "updated_at", "expires", "key_alias", "user_id", "team_id", "token")
        for order in ("asc", "desc")
    ),
    "/key/list?sort_by=key_name",
    "/key/list?sort_by=spend",
    "/key/list?sort_by=spend&page=150&size=100",
    "/key/list?team_id=team-1",
    "/key/list?team_id=team-1&sort_by=spend",
    "/key/list?user_id=user-1",
    "/key/list?organization_id=organization-5",
    "/key/list?key_alias=service%201%20of%20team",
    "/key/list?status=active",
    "/key/list?status=expired",
    "/key/list?status=revoked",
    "/key/list?search=nowhere",
    "/key/list?search=9999&sort_by=key_alias",
    "/key/list?search=service",
    "/key/list?search=9e3779&status=active",
    "/key/list?budget_id=budget-1",
    "/key/aliases?size=100",
    "/key/aliases?size=100&page=100",
    "/key/aliases?search=nowhere",
    "/key/aliases?team_id=team-1",
    "/user/list?page_size=100",
    "/user/list?page_size=100&page=40",
    *(f"/user/list?sort_by={column}" for column in ("user_id", "user_email", "user_alias", "user_role")),
    "/user/list?search=nowhere",
    "/user/list?user_email=nowhere",
    "/user/list?search=person&page=20",
    "/user/list?budget_id=budget-1",
    "/user/list?role=proxy_admin_viewer",
    "/user/list?team=team-1",
    "/user/list?organization_ids=organization-1,organization-2",
    "/user/list?user_ids=user-1,user-2",
    "/user/filter/ui?search=99",
    "/user/info?user_id=user-7",
    "/v2/user/info?user_id=user-7",
    "/team/list",
    "/team/list?page=2&page_size=100",
    "/v2/team/list?page_size=100",
    "/v2/team/list?user_id=user-7",
    "/v2/team/list?search=99&blocked=false",
    "/team/info?team_id=team-1",
    "/team/impact?team_id=team-1",
    "/user/impact?user_id=user-7",
    "/v2/customer/list?page=90",
    "/v2/customer/list?search=nowhere",
    "/v2/customer/list?blocked=true",
    "/customer/impact?end_user_id=end_user-7",
    "/v2/organizations/list?search=7",
    "/organization/impact?organization_id=organization-7",
    "/v2/budget/list",
    "/budget/impact?budget_id=budget-1",
    "/customer/list?page=90&page_size=100",
    "/customer/info?end_user_id=end_user-7",
    "/organization/list",
    "/organization/info?organization_id=organization-7",
    "/budget/list",
    "/spend/keys",
    "/spend/users",
    "/audit?page_size=100",
    "/audit?page_size=100&page=250",
    "/audit?page_size=100&page=499",
    "/audit/list?sort_order=asc",
    "/audit/list?object_id=key-4",
    "/audit/list?actor=master&page=100",
    "/audit/list?action=model/delete",
    "/audit/list?object_type=team&page=20",
    "/audit/list?request_id=request-5",
    "/audit?changed_by=master",
    "/audit/list?start_date=2026-03-01&end_date=2026-04-01&actor=master",
)

#: what reads a table as a whole, and why it may
EXCEPTIONS = (
    Excepted("list|aliases|audit|filter", "SELECT count(*)", "counted once, until something changes"),
    Excepted("list.*spend|/spend/", "FROM vllm_passthrough_spend", "the order of spend changes with each request"),
    Excepted("list.*spend|/spend/", "NOT (EXISTS", "those without any spend, after all others"),
    Excepted("sort_by=key_name", "vllm_passthrough_keys", "four characters of the key: nobody pages by them"),
    Excepted("search=|user_email=", "LIKE", "a part of a name is in no index: the names alone are read"),
    Excepted("blocked=", "blocked", "no index has it: the table is read once, and the few are found by their ids"),
    Excepted("sort_by=user_role", "vllm_passthrough_users", "there are four roles"),
    Excepted("user/list.team=", "vllm_passthrough_users", "a large team has many of the users"),
    Excepted("status=revoked", "vllm_passthrough_keys.blocked IS", "the index has these alone"),
    Excepted("status=active", "vllm_passthrough_keys.blocked IS", "nearly every key is active: the page is full soon"),
    Excepted("status=expired", "vllm_passthrough_keys.blocked IS", "by the time of making, and few rows are left out"),
)


async def scans_of_lists(client: Client, database: Database) -> list[tuple[str, str]]:
    """Ask all lists, by number and by cursor; return what reads a large table as a whole without a reason."""
    with Plans() as plans:
        for path in ASKED:
            with plans.during(path):
                status, answer = await client.ask("GET", path)
            assert status == 200, (path, answer)
            following = answer.get("next") if isinstance(answer, dict) else None
            if following:
                join = "&" if "?" in path else "?"
                with plans.during(f"{path}{join}after"):
                    status, answer = await client.ask("GET", f"{path}{join}after={following}")
                assert status == 200, (path, answer)
    scans = await database.run(lambda connection: plans.scans(connection, LARGE), writes=False)
    return sorted(
        {
            f"{each.operation}: {each.table}: {each.text[-300:]}": each.plan for each in unexplained(scans, EXCEPTIONS)
        }.items()
    )
