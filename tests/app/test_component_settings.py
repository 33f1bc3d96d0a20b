from __future__ import annotations

import pytest

from twisted_vllm.app.component_settings import report_limits_of
from twisted_vllm.config.settings import Limits
from twisted_vllm.storage.report_queue import ReportLimits


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, ReportLimits(4, 2, 100)), (2, ReportLimits(2, 1, 50)), (8, ReportLimits(1, 1, 12))],
)
def test_workers_share_out_the_reports_and_each_has_one_at_least(workers: int, expected: ReportLimits) -> None:
    limits = Limits(max_reports=4, max_reports_per_key=2, max_queued_reports=100)
    assert report_limits_of(limits, workers) == expected
