"""The routes that tell of usage."""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.spend import SpendEndpoints
from twisted_vllm.admin.spend_activity import DailyActivity
from twisted_vllm.admin.spend_global import GlobalSpend
from twisted_vllm.admin.spend_logs import SpendLogs
from twisted_vllm.admin.usage_report import UsageReports


def spend_routes(office: AdminContext) -> dict[str, tuple[str, Any]]:
    """Return the method and the endpoint of each route that tells of usage."""
    logs, spend, everybody = SpendLogs(office), SpendEndpoints(office), GlobalSpend(office)
    return {
        "/spend/logs": ("GET", logs.logs),
        "/spend/logs/v2": ("GET", logs.paged_logs),
        "/spend/keys": ("GET", spend.keys),
        "/spend/users": ("GET", spend.users),
        "/spend/tags": ("GET", spend.tags),
        "/key/spend/report": ("GET", spend.key_report),
        "/global/spend": ("GET", everybody.spend),
        "/global/spend/logs": ("GET", everybody.logs),
        "/global/spend/keys": ("GET", everybody.keys),
        "/global/spend/teams": ("GET", everybody.teams),
        "/global/spend/models": ("GET", everybody.models),
        "/global/activity": ("GET", everybody.activity),
        "/global/activity/model": ("GET", everybody.activity_of_models),
        "/user/daily/activity": ("GET", DailyActivity(office).daily),
        "/usage/report": ("GET", UsageReports(office).report),
    }
