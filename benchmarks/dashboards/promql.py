"""Short names for the PromQL that most panels share."""

from __future__ import annotations

PREFIX = "vllm_passthrough"

#: labels that the variables of a dashboard choose
INSTANCE = 'instance=~"$instance"'
MODEL = f'{INSTANCE},model=~"$model"'
SERVER = f'{INSTANCE},server=~"$server"'
BOTH = f'{MODEL},server=~"$server"'
#: of requests whose answer is a stream: the wait of a person in a chat
STREAM = f'{BOTH},stream="true"'
#: of requests that failed by the fault of a server or of the gateway
FAILED = f'{BOTH},outcome=~"upstream_failed|upstream_error|failed"'
#: of requests that were answered with an error, or not at all
NOT_2XX = f'{BOTH},status!~"2.."'


def metric(name: str, labels: str = INSTANCE) -> str:
    """A metric of the gateway, by its name without the prefix."""
    return f"{PREFIX}_{name}{{{labels}}}"


def rate(name: str, labels: str = INSTANCE) -> str:
    """A counter of the gateway, per second."""
    return f"rate({metric(name, labels)}[$__rate_interval])"


def growth(name: str, labels: str = INSTANCE) -> str:
    """By how much a counter of the gateway grew in the time that the dashboard shows."""
    return f"increase({metric(name, labels)}[$__range])"


def total(value: str, *by: str) -> str:
    """A sum, by labels."""
    return f"sum by ({', '.join(by)}) ({value})" if by else f"sum({value})"


def quantile(share: float, histogram: str, labels: str, *by: str) -> str:
    """A quantile of a histogram of the gateway."""
    return f"histogram_quantile({share:g}, {total(rate(f'{histogram}_bucket', labels), 'le', *by)})"


def or_zero(expr: str) -> str:
    """The value, or 0 where nothing has been counted yet."""
    return f"({expr} or vector(0))"


def top(count: int, expr: str) -> str:
    """The largest, without those that are 0."""
    return f"topk({count}, {expr} > 0)"
