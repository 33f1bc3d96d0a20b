"""What the models of all nouns are made of: bodies, queries, pages, records and errors.

A noun's requests and responses are msgspec structs beside its routes. The structs of requests decode what comes in; the
structs of responses describe what goes out in the OpenAPI document, and the tests hold the responses to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

#: a response before it is encoded
Json = dict[str, Any]

MAX_PAGE_SIZE = 100

#: entries in one response of a list that LiteLLM sends whole
MAX_LISTED = 1000

#: members and keys of one team, organization or user that a response shows, unless the request asks for others
MAX_SHOWN = 500

#: members of a team or of an organization that a list shows of each; `members_count` says how many there are
LISTED_MEMBERS = 100

#: the parameter of a list that is read to its end, page by page
After = Annotated[
    str,
    msgspec.Meta(
        description="What the page before gave as `next`, in place of `page`: the page after it. So each record comes "
        "once, whatever is added and deleted meanwhile."
    ),
]
#: the place of the page after
Next = Annotated[str | None, msgspec.Meta(description="`after` of the next page; null on the last one.")]

#: a page's number; the limit keeps the number of skipped rows within 64 bits
PageNumber = Annotated[int, msgspec.Meta(ge=1, le=999_999_999, description="The number of the page, from 1.")]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE_SIZE, description="Entries per page.")]
ListSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_LISTED, description="Entries per page.")]
SortOrder = Literal["asc", "desc"]
IsBlocked = Annotated[
    Literal["", "false", "true"], msgspec.Meta(description="Only those that are blocked, or are not. Default: all.")
]

#: the JSON Schema of a date or a moment that `datetime.fromisoformat` reads, or of nothing
MOMENT_SCHEMA = {
    "pattern": "^(2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    "(T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(Z|[+-](0[0-9]|1[0-2]):00)?)?)?$"
}
MOMENT_WORDS = "a date, as in 2026-03-01, or a moment, as in 2026-03-01T12:00:00Z; in UTC unless it says otherwise"


def described(text: str) -> msgspec.Meta:
    """Return what a field means, for the OpenAPI document and the console's forms: ``Annotated[…, described("…")]``."""
    return msgspec.Meta(description=text)


def are_blocked(text: str) -> dict[str, bool]:
    """Return the value that `blocked` must have for a parameter, by the column's name; empty for any."""
    return {"blocked": text == "true"} if text else {}


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON object in the body of a POST request."""

    #: LiteLLM's fields that this gateway does not support, with LiteLLM's default for each. A value that asks for
    #: nothing is ignored; any other is refused, because a limit that is accepted and not kept is worse than an error.
    UNSUPPORTED: ClassVar[Mapping[str, Any]] = {}

    #: the fields that map names to whole numbers
    WHOLE_NUMBER_MAPS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def flat(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body with all its fields at the top, where LiteLLM's clients may send some of them in another."""
        return dict(given)

    def check(self) -> None:
        """Check what the schema cannot express.

        Raises:
            InvalidRequest: a value cannot be used.
        """


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a query. An empty parameter is the same as none."""

    #: whether other parameters are ignored, as where clients of other servers ask
    IGNORES_OTHERS: ClassVar[bool] = False

    #: LiteLLM's parameters that this gateway does not support, as in `Body`
    UNSUPPORTED: ClassVar[Mapping[str, Any]] = {}


class NoQuery(Query, frozen=True, kw_only=True):
    """A query without parameters."""


Token = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the key.")]
Strings = tuple[str, ...]


class Response(msgspec.Struct, kw_only=True):
    """A response."""


class ErrorDetail(Response, kw_only=True):
    """What went wrong."""

    message: Annotated[str, msgspec.Meta(description="What is wrong and what to do about it.")]
    type: str
    param: Annotated[str | None, msgspec.Meta(description="The field or parameter at fault, if there is one.")]
    code: Annotated[str, msgspec.Meta(description="The error's code for programs; also in x-vllm-passthrough-error.")]


class Error(Response, kw_only=True):
    """An error, in OpenAI's shape."""

    error: ErrorDetail


class ReportedModelBudget(Response, kw_only=True):
    """A budget for one model, under both of LiteLLM's names."""

    max_budget: float
    budget_duration: str | None
    budget_limit: float
    time_period: str | None


class BudgetTable(Response, kw_only=True):
    """The limits that hold, with those of the budget that is named, in the place where LiteLLM has them."""

    budget_id: str | None
    max_budget: float | None
    soft_budget: float | None
    max_parallel_requests: int | None
    tpm_limit: int | None
    rpm_limit: int | None
    model_max_budget: dict[str, ReportedModelBudget]
    budget_duration: str | None


class OwnLimits(Response, kw_only=True):
    """Limits. One that is null does not apply."""

    rpm_limit: int | None
    tpm_limit: int | None
    max_parallel_requests: int | None
    model_rpm_limit: dict[str, int] | None
    model_tpm_limit: dict[str, int] | None
    max_budget: float | None
    soft_budget: float | None
    budget_duration: str | None
    model_max_budget: dict[str, ReportedModelBudget]


class Limits(OwnLimits, kw_only=True):
    """The limits of a key, user, team, organization or customer, and its spend. One that is null does not apply."""

    spend: Annotated[float, msgspec.Meta(description="In the budget's current period, in US dollars.")]
    total_spend: Annotated[float, msgspec.Meta(description="In total, in US dollars.")]
    budget_reset_at: Annotated[datetime | None, msgspec.Meta(description="When the budget's next period begins.")]


class Record(Limits, kw_only=True):
    """The fields that keys, users, teams and organizations share."""

    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class NumberedPage(Response, kw_only=True):
    """The place of a page among all pages."""

    total: int
    page: int
    page_size: int
    total_pages: int


class WalkedPage(NumberedPage, kw_only=True):
    """The place of a page of teams, users or audit entries among all pages."""

    next: Next
