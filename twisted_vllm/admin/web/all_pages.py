"""All pages of the console, in the order of the navigation."""

from __future__ import annotations

from twisted_vllm.admin.web.page import Page
from twisted_vllm.admin.web.pages import config, connect, playground, sign_in, welcome

PAGES: tuple[Page, ...] = (
    *welcome.pages,
    *config.pages,
    *playground.pages,
    *connect.pages,
    *sign_in.pages,
)
