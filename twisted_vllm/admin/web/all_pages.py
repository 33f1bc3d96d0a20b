"""All pages of the console, in the order of the navigation."""

from __future__ import annotations

from twisted_vllm.admin.web.page import Page
from twisted_vllm.admin.web.pages.audit import pages as audit
from twisted_vllm.admin.web.pages.config import pages as config
from twisted_vllm.admin.web.pages.connect import pages as connect
from twisted_vllm.admin.web.pages.live import pages as live
from twisted_vllm.admin.web.pages.oidc import pages as oidc
from twisted_vllm.admin.web.pages.overview import pages as overview
from twisted_vllm.admin.web.pages.playground import pages as playground
from twisted_vllm.admin.web.pages.record_acts import pages as record_acts
from twisted_vllm.admin.web.pages.records import pages as records
from twisted_vllm.admin.web.pages.requests import pages as requests
from twisted_vllm.admin.web.pages.servers import pages as servers
from twisted_vllm.admin.web.pages.sign_in import pages as sign_in
from twisted_vllm.admin.web.pages.tester import pages as tester
from twisted_vllm.admin.web.pages.usage import pages as usage

PAGES: tuple[Page, ...] = (
    *overview,
    *live,
    *servers,
    *usage,
    *requests,
    *records,
    *record_acts,
    *tester,
    *config,
    *audit,
    *playground,
    *connect,
    *sign_in,
    *oidc,
)
