"""All pages of the console, in the order of the navigation."""

from __future__ import annotations

from twisted_vllm.admin.web.page import Page
from twisted_vllm.admin.web.pages import overview, sign_in

PAGES: tuple[Page, ...] = (
    *overview.pages,
    *sign_in.pages,
)
