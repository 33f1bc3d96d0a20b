"""What lists have in common.

LiteLLM sends some as bare arrays. An array cannot say that it is incomplete, so a long one must be paged.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TypeVar

from attrs import AttrsInstance

from twisted_vllm.admin.models import MAX_LISTED, Json
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.paging import Page

RecordT = TypeVar("RecordT", bound=AttrsInstance)


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
    if page.total_pages > 1 and not ("page" in given or "page_size" in given):
        raise InvalidRequest(
            f"There are {page.total_count} {what}: ask for one page after the other, as in "
            f"{path}?page=1&page_size={MAX_LISTED}.",
            param="page",
        )
    return page.records


def place_of(page: Page[RecordT], size: int) -> Json:
    """Return the place of a page among all pages, as `NumberedPage` describes it.

    Args:
        page: the page.
        size: how many records each page has.
    """
    return {
        "total": page.total_count,
        "page": page.current_page,
        "page_size": size,
        "total_pages": page.total_pages,
    }
