"""A report is read as its reader takes it, and one that breaks off does not look whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from admin_harness import MASTER_KEY, HeldStore
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure
from twisted.trial.unittest import FailTest
from twisted.web.http_headers import Headers
from usage_rows import usage_row

from twisted_vllm.store.usage_queries_sums import PAGE
