"""Asks every report of a filled database, and looks at the plan of each statement that it issues."""

from __future__ import annotations

from sqlalchemy import Connection, text

from tests.admin.database_client import Client
from tests.admin.list_plans import LARGE as RECORDS
from tests.storage import filled_database, usage_year
from tests.storage.plans import Excepted, Plans, unexplained
from twisted_vllm.admin.models import Json
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.usage.tables import DAY, END_USER, KINDS, MONTH, ORGANIZATION, STORED_SUMS, TAG, TEAM

#: tables that grow with requests or with those who make them
LARGE = (
    *RECORDS,
    "vllm_passthrough_usage",
    *(f"vllm_passthrough_usage_{name}" for name in ("lookups", "sums", "payers", "payer_tags", "names")),
)

_KEYS, _MODELS, _DAYS, _ROWS, _FORMER = 300, 2, 365, 120_000, 100_000
_DATES = "start_date=2025-06-10&end_date=2025-07-20"
_QUARTER = "start_date=2025-03-01&end_date=2025-05-31"
_KEY = "api_key=key-7"
_ONE = (_KEY, "user_id=user-7", "team_id=team-7", "end_user=end-7", "tag=some", "model=model-1")

ASKED = (
    *("/spend/logs?page_size=100", "/spend/logs?page_size=100&page=100"),
    *(f"/spend/logs?{each}&page=2" for each in _ONE),
    "/spend/logs?request_id=request-5",
    "/spend/logs?request_id=chatcmpl-5",
    f"/spend/logs?{_DATES}&summarize=false",
    *(f"/spend/logs?{_DATES}&{each}" for each in ("", *_ONE[:3])),
    *("/spend/logs/v2", "/spend/logs/v2?page=100&page_size=100", f"/spend/logs/v2?{_DATES}"),
    *(f"/spend/logs/v2?{each}" for each in _ONE),
    *(f"/spend/logs/v2?{each}&status_filter=failure" for each in _ONE),
    *("/spend/logs/v2?status_filter=success", "/spend/logs/v2?status_filter=failure"),
    *("/spend/logs/v2?error_code=429", "/spend/logs/v2?error_code=500", "/spend/logs/v2?error_code=draining"),
    "/spend/logs/v2?request_id=request-5",
    "/spend/logs/v2?key_alias=alias",
    "/spend/logs/v2?min_spend=0.0001",
    "/spend/logs/ui/request-5",
    *(
        "/user/impact?user_id=user-7",
        "/team/impact?team_id=team-7",
        "/organization/impact?organization_id=organization-7",
    ),
    *("/spend/keys", "/spend/users", "/spend/tags", f"/spend/tags?{_DATES}"),
    *(f"/key/spend/report?{_DATES}&{each}" for each in ("", _KEY)),
    *(f"/user/spend/report?{_DATES}&{each}" for each in ("", "user_id=user-7")),
    *(f"/team/spend/report?{_DATES}&{each}" for each in ("", "team_id=team-7")),
    *(f"/organization/spend/report?{_DATES}&{each}" for each in ("", "organization_id=organization-7")),
    f"/global/spend/report?{_DATES}",
    f"/global/spend/report?{_DATES}&team_id=team-7",
    f"/global/spend/report?{_DATES}&team_id=team-7&customer_id=end-7",
    f"/global/spend/report?{_DATES}&{_KEY}",
    f"/global/spend/report?{_DATES}&internal_user_id=user-7",
    f"/global/spend/report?{_DATES}&group_by=customer",
    f"/global/spend/report?{_DATES}&group_by=api_key",
    *(f"/global/spend/tags{each}" for each in ("", f"?{_DATES}&tags=some")),
    *("/global/spend/all_tag_names", "/global/all_end_users", "/tag/list", f"/tag/list?{_DATES}"),
    *("/global/spend", "/global/spend/logs", f"/global/spend/logs?{_KEY}"),
    *("/global/spend/keys", "/global/spend/teams", "/global/spend/models", "/global/spend/provider"),
    *(f"/global/activity?{_QUARTER}", f"/global/activity/model?{_QUARTER}"),
    *(
        f"/{kind}/daily/activity{aggregated}?{dates}{only}"
        for kind, one in (
            ("user", "user_id=user-7"),
            ("team", "team_ids=team-7"),
            ("organization", "organization_ids=organization-7"),
            ("customer", "end_user_ids=end-7"),
            ("tag", "tags=some"),
        )
        for aggregated, dates in (("", _QUARTER), ("/aggregated", "start_date=2025-06-10&end_date=2025-06-11"))
        for only in ("", f"&{one}", "&model=model-1")
    ),
    f"/user/daily/activity?{_QUARTER}&{_KEY}",
    f"/user/daily/activity?{_QUARTER}&page=100",
    *(
        f"/usage/report?start=2025-06-10&end=2025-07-20&interval={interval}&group_by={group_by}{only}"
        for interval in ("day", "month")
        for group_by in ("", "key", "user", "team", "end_user", "tag", "model", "key,user,team,model", "team,model")
        for only in ("", "&team_id=team-7")
        if not (only and group_by in ("end_user", "tag"))
    ),
    *(
        f"/usage/report?start=2025-06-10&end=2025-06-12&interval=hour&group_by={group_by}{only}"
        for group_by in ("", "key", "end_user", "tag", "route")
        for only in ("", *(f"&{each}" for each in _ONE))
    ),
)

POSTED: tuple[tuple[str, Json], ...] = (
    ("/tag/info", {"names": ["nowhere"]}),
    ("/global/spend/end_users", {}),
    ("/global/spend/end_users", {"api_key": "key-7"}),
)

#: what reads a table as a whole, and why it may
EXCEPTIONS = (
    Excepted("", "SELECT vllm_passthrough_usage_sums.start \nFROM", "the first or last day: one entry of the index"),
    Excepted("names|end_users|/tag/", "SELECT DISTINCT vllm_passthrough_usage_sums.start", "likewise by month"),
    Excepted("group_by=tag", "AS tags", "every row is asked for its tags"),
    Excepted(
        "/usage/report",
        "LEFT OUTER JOIN vllm_passthrough_usage_names",
        "a page has thousands of groups, each with names",
    ),
    Excepted("/usage/report", "JOIN vllm_passthrough_usage_payers", "likewise keys"),
    Excepted(
        "tag=some", "usage_payer_tags.payer", "many payers may have a tag: the planner compares with a part of a month"
    ),
    Excepted("/global/spend/keys", "HAVING count(*)", "which keys have several payers, from an index"),
    Excepted("/spend/(keys|users)", "FROM vllm_passthrough_spend", "the order of spend changes with each request"),
    Excepted("/spend/(keys|users)", "NOT (EXISTS", "those without any spend, after all others"),
)


def fill(connection: Connection) -> None:
    """Fill a database with the records of a large installation and a year of its usage."""
    filled_database.fill(connection, filled_database.SMALL)
    usage_year.fill_sums(connection, _KEYS, _MODELS, _DAYS)
    usage_year.fill_rows(connection, _ROWS, _KEYS, _MODELS)
    usage_year.fill_rare(connection)
    _fill_others(connection)
    filled_database.analyse(connection)


def _fill_others(connection: Connection) -> None:
    """Write sums of the other dimensions, a tag of some keys, and payers and names that are no longer used."""
    sums = ", ".join(STORED_SUMS)
    for dimension in (ORGANIZATION, END_USER, TAG):
        for period in (DAY, MONTH):
            connection.execute(
                text(
                    f"INSERT INTO vllm_passthrough_usage_sums (kind, start, value, model, {sums}) SELECT "
                    f"{KINDS[dimension, period]}, start, value, model, {sums} FROM vllm_passthrough_usage_sums "
                    f"WHERE kind = {KINDS[TEAM, period]}"
                )
            )
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage_payer_tags (tag, payer) "
            f"SELECT 'some', id FROM vllm_passthrough_usage_payers WHERE id BETWEEN 1 AND {_KEYS // 20}"
        )
    )
    numbers = f"WITH RECURSIVE k (n) AS (SELECT {_KEYS} UNION ALL SELECT n + 1 FROM k WHERE n < {_KEYS + _FORMER})"
    connection.execute(
        text(
            "INSERT INTO vllm_passthrough_usage_payers (id, kind, key_id, key_hash, key_name, user_id, team_id, tags) "
            f"{numbers} SELECT -n, 'key', 'key-' || n, 'abcdef01', 'alias', 'user-' || n, 'team-' || (n / 10), '[]' "
            "FROM k"
        )
    )
    connection.execute(
        text(f"INSERT INTO vllm_passthrough_usage_names (id, name) {numbers} SELECT n, 'former-' || n FROM k")
    )


async def scans_of_reports(client: Client, database: Database) -> list[tuple[str, str]]:
    """Ask all reports; return what reads a large table as a whole without a reason."""
    with Plans() as plans:
        for path in ASKED:
            with plans.during(path):
                status, answer = await client.ask("GET", path)
            assert status == 200, (path, answer)
        for path, body in POSTED:
            with plans.during(path):
                status, answer = await client.ask("POST", path, body)
            assert status in (200, 404), (path, answer)
    scans = await database.run(lambda connection: plans.scans(connection, LARGE), writes=False)
    return sorted(
        {
            f"{each.operation}: {each.table}: {each.text[-400:]}": each.plan for each in unexplained(scans, EXCEPTIONS)
        }.items()
    )
