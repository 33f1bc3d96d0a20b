"""What the admin API answers: LiteLLM's shapes, as the document of the API shows them; see also `key_answers` and
`people_answers`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

Token = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the key.")]
Strings = tuple[str, ...]
Object = dict[str, Any]


class Answer(msgspec.Struct, kw_only=True):
    """What is answered."""


class ErrorDetail(Answer, kw_only=True):
    """What is wrong."""

    message: Annotated[str, msgspec.Meta(description="What is wrong and what to do about it.")]
    type: str
    param: Annotated[str | None, msgspec.Meta(description="The field or parameter at fault, if it is one.")]
    code: Annotated[str, msgspec.Meta(description="What is wrong, for programs; also in x-vllm-passthrough-error.")]


class Error(Answer, kw_only=True):
    """A refusal, in OpenAI's shape."""

    error: ErrorDetail


class Limits(Answer, kw_only=True):
    """What everybody may use, and used; null is without limit."""

    rpm_limit: int | None
    tpm_limit: int | None
    max_parallel_requests: int | None
    model_rpm_limit: dict[str, int] | None
    model_tpm_limit: dict[str, int] | None
    max_budget: float | None
    soft_budget: float | None
    budget_duration: str | None
    spend: Annotated[float, msgspec.Meta(description="In the budget's present period, US dollars.")]
    total_spend: Annotated[float, msgspec.Meta(description="In all, US dollars.")]
    budget_reset_at: Annotated[datetime | None, msgspec.Meta(description="When the budget's next period begins.")]


class Record(Limits, kw_only=True):
    """What keys, users and teams have alike."""

    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class NumberedPage(Answer, kw_only=True):
    """What stands around a page of users, or of the audit."""

    total: int
    page: int
    page_size: int
    total_pages: int


class AuditEntry(Answer, kw_only=True):
    """What was done to one thing."""

    id: int
    at: datetime
    actor: str
    actor_name: str
    action: str
    object_type: str
    object_id: str
    before: Object | None
    after: Object | None
    request_id: str
    client: str


class AuditList(NumberedPage, kw_only=True):
    """A page of the audit."""

    audit_logs: tuple[AuditEntry, ...]


class Welcome(Answer, kw_only=True):
    """What this is."""

    service: str
    about: str
    routes: dict[str, str]
    docs: str


class ReadinessReport(Answer, kw_only=True):
    """How fit the process is to serve."""

    status: Literal["healthy", "unhealthy"]
    db: Literal["connected", "disconnected"]
    draining: bool


class Unready(ReadinessReport, kw_only=True):
    """Why the process should get no requests."""

    error: ErrorDetail
