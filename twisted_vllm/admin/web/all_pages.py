"""All pages of the console, in the order of the navigation."""

from __future__ import annotations

from twisted_vllm.admin.web.page import Page
from twisted_vllm.admin.web.pages.config import pages as config
from twisted_vllm.admin.web.pages.connect import pages as connect
from twisted_vllm.admin.web.pages.oidc import pages as oidc
from twisted_vllm.admin.web.pages.playground import pages as playground
from twisted_vllm.admin.web.pages.record_acts import pages as record_acts
from twisted_vllm.admin.web.pages.records import pages as records
from twisted_vllm.admin.web.pages.sign_in import pages as sign_in
from twisted_vllm.admin.web.pages.welcome import pages as welcome

PAGES: tuple[Page, ...] = (
    *welcome,
    *config,
    *records,
    *record_acts,
    *playground,
    *connect,
    *sign_in,
    *oidc,
)
