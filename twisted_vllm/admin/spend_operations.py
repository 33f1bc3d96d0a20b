"""What each route that tells of usage takes and answers, for the document of the API."""

from __future__ import annotations

from twisted_vllm.admin import key_answers, people_answers, spend_answers, spend_queries
from twisted_vllm.admin.operation import Operation

#: by path
SPEND_OPERATIONS: dict[str, Operation] = {
    "/spend/logs": Operation(spend_answers.Logs, query=spend_queries.LogsQuery),
    "/spend/logs/v2": Operation(spend_answers.SpendLogPage, query=spend_queries.PagedLogsQuery),
    "/spend/keys": Operation(tuple[key_answers.KeyReport, ...], query=spend_queries.SpendListQuery),
    "/spend/users": Operation(tuple[people_answers.UserReport, ...], query=spend_queries.SpendUsersQuery),
    "/spend/tags": Operation(tuple[spend_answers.TagSpend, ...], query=spend_queries.DatesQuery),
    "/key/spend/report": Operation(tuple[spend_answers.KeySpendReport, ...], query=spend_queries.KeyReportQuery),
    "/global/spend": Operation(spend_answers.GlobalSpendReport),
    "/global/spend/logs": Operation(tuple[spend_answers.DatedSpend, ...], query=spend_queries.GlobalLogsQuery),
    "/global/spend/keys": Operation(tuple[spend_answers.TopKey, ...], query=spend_queries.TopQuery),
    "/global/spend/teams": Operation(spend_answers.TeamsSpend),
    "/global/spend/models": Operation(tuple[spend_answers.TopModel, ...], query=spend_queries.TopQuery),
    "/global/activity": Operation(spend_answers.Activity, query=spend_queries.ActivityQuery),
    "/global/activity/model": Operation(tuple[spend_answers.ModelActivity, ...], query=spend_queries.ActivityQuery),
    "/user/daily/activity": Operation(spend_answers.DailyUses, query=spend_queries.DailyActivityQuery),
    "/usage/report": Operation(spend_answers.UsageReport, query=spend_queries.ReportQuery, other_types=("text/csv",)),
}
