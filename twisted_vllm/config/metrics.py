"""The settings of the metrics of requests."""

from __future__ import annotations

from itertools import pairwise

import attrs

from twisted_vllm.config.checks import MAX_SECONDS, checker, flag, kind_of, list_of, optional, seconds, whole
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.problems import Place, Rejected

#: the most keys, users or teams with labels of their own, and the most names of models
MOST_LABELS = 10_000
#: the most buckets of a histogram
MOST_BUCKETS = 50

_whole = whole(0)
_bounds = list_of(seconds())


@checker("whole number", f"0 to {MOST_LABELS}")
def label_count(value: object, place: Place) -> int:
    """Check for how many values a label may have: each costs memory here and in Prometheus."""
    found = _whole(value, place)
    if found > MOST_LABELS:
        raise Rejected(f"must not be more than {MOST_LABELS}: each has series of its own in Prometheus")
    return found


@checker("list of numbers", f"ascending, 1 to {MOST_BUCKETS}, each above 0 and at most {MAX_SECONDS}", "seconds")
def buckets(value: object, place: Place) -> tuple[float, ...]:
    """Check for the upper bounds of a histogram's buckets."""
    if not isinstance(value, list):
        raise Rejected(f"must be a list of seconds, such as [0.1, 1, 10], not {kind_of(value)}")
    if not 1 <= len(value) <= MOST_BUCKETS:
        raise Rejected(f"must have 1 to {MOST_BUCKETS} bounds, not {len(value)}")
    found = _bounds(value, place)
    if len(found) == len(value) and any(low >= high for low, high in pairwise(found)):
        raise Rejected("must ascend: each bound must be higher than the one before it")
    return found


@attrs.frozen
class MetricsSettings:
    """Which labels the metrics of requests have, and which further names."""

    max_models: int = setting(
        100,
        label_count,
        "Models of the default server, without an entry in model_list, that have their name in the label model: the "
        'first that the server answered. All others are model="other". Models of model_list always have their name.',
        unit="models",
    )
    key_labels: int = setting(
        0,
        label_count,
        "Keys that vllm_passthrough_key_requests_total and its like tell apart: those that were used most lately. The "
        'rest is key="other". 0 switches these metrics off. Administrators alone see them; likewise user_labels and '
        "team_labels.",
        unit="keys",
    )
    user_labels: int = setting(0, label_count, "Users, likewise.", unit="users")
    team_labels: int = setting(0, label_count, "Teams, likewise.", unit="teams")
    latency_buckets: tuple[float, ...] | None = setting(
        None,
        optional(buckets, "from 5 ms to 10 minutes"),
        "The upper bounds of the buckets of the duration of requests and of the time to the first byte. A change "
        "begins all histograms of requests anew.",
        litellm="litellm_settings.prometheus_latency_buckets",
    )
    litellm_names: bool = setting(
        False,
        flag,
        "Whether administrators get the metrics of requests and budgets under LiteLLM's names as well, such as "
        "litellm_spend_metric_total, for its dashboards. key_labels keys have labels of their own there, or 100 if it "
        "is 0.",
    )
