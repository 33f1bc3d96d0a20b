"""All pages of the console, in the order of the navigation."""

from __future__ import annotations

from twisted_vllm.admin.web.page import Page
from twisted_vllm.admin.web.pages import audit, requests, sign_in, usage, welcome

PAGES: tuple[Page, ...] = (
    *welcome.pages,
    *audit.pages,
    *usage.pages,
    *requests.pages,
    *sign_in.pages,
)
