"""What lists have in common.

LiteLLM sends some as bare arrays. An array cannot say that it is incomplete, so a long one must be paged, and the
header ``link`` names its next page (RFC 8288).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
from attrs import AttrsInstance

from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import MAX_LISTED, Json
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.paging import Page

RecordT = TypeVar("RecordT", bound=AttrsInstance)


#: records that are read, described and encoded together
_REPORTED_AT_ONCE = 100

#: ids in one parameter
MAX_IDS = 500


def ids_of(text: str, param: str | None = None) -> tuple[str, ...]:
    """Return ids that a parameter names, separated by commas, each once.

    Raises:
        InvalidRequest: there are too many.
    """
    found = tuple(dict.fromkeys(part for each in text.split(",") if (part := each.strip())))
    if len(found) > MAX_IDS:
        raise InvalidRequest(
            f"At most {MAX_IDS} ids can be named, and these are {len(found)}: name fewer, or none.", param=param
        )
    return found


def asked_page(page: Page[RecordT], given: Container[str], what: str, path: str) -> list[RecordT]:
    """Return the records of a page that the caller asked for, or that is the only one.

    Args:
        page: the page.
        given: the names of the parameters that the request has.
        what: the word for the records, for the message.
        path: the route, likewise.

    Raises:
        InvalidRequest: there are more, and the caller did not ask for a page.
    """
    if page.total_pages > 1 and not ("page" in given or "page_size" in given or "after" in given):
        raise InvalidRequest(
            f"There are {page.total_count} {what}: ask for one page after the other, as in "
            f"{path}?page=1&page_size={MAX_LISTED}.",
            param="page",
        )
    return page.records


def place_of(page: Page[RecordT], size: int) -> Json:
    """Return the place of a page among all pages, as `WalkedPage` describes it.

    Args:
        page: the page.
        size: how many records each page has.
    """
    return {
        "total": page.total_count,
        "page": page.current_page,
        "page_size": size,
        "total_pages": page.total_pages,
        "next": page.next,
    }


def reported(records: Sequence[RecordT], report: Callable[[Sequence[RecordT]], Sequence[Json]]) -> msgspec.Raw:
    """Return records as a JSON array. Called in the database's thread, so that the reactor only sends it.

    Some records at a time: to encode all in one call would keep every other thread waiting for as long.

    Args:
        records: the records.
        report: returns what is shown of each.
    """
    parts = []
    for start in range(0, len(records), _REPORTED_AT_ONCE):
        parts += [msgspec.json.encode(each) for each in report(records[start : start + _REPORTED_AT_ONCE])]
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def link_next(call: AdminCall, following: str | None) -> None:
    """Name the next page of an array in a header.

    Args:
        call: whose response the array is.
        following: the cursor; None for the last page.
    """
    if following is not None:
        kept = {name: value for name, value in call.given.items() if name != "page"}
        target = call.request.path + b"?" + urlencode({**kept, "after": following}).encode("ascii")
        call.request.setHeader(b"link", b'<%b>; rel="next"' % target)
