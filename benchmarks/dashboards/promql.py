"""Short names for the PromQL that most panels share."""

from __future__ import annotations

PREFIX = "vllm_passthrough"

#: labels that the variables of a dashboard choose
INSTANCE = 'instance=~"$instance"'
MODEL = f'{INSTANCE},model=~"$model"'
SERVER = f'{INSTANCE},server=~"$server"'
BOTH = f'{MODEL},server=~"$server"'
#: of requests that were sent to a server
SENT = f'{BOTH},server!=""'
#: of requests whose answer is a stream
STREAM = f'{BOTH},stream="true"'
#: of requests for a model
OF_A_MODEL = f'{BOTH},model!=""'

_FAILED = 'outcome=~"upstream_failed|upstream_error|failed"'


def metric(name: str, labels: str = INSTANCE) -> str:
    """A metric of the gateway, by its name without the prefix."""
    return f"{PREFIX}_{name}{{{labels}}}"


def rate(name: str, labels: str = INSTANCE) -> str:
    """A counter of the gateway, per second."""
    return f"rate({metric(name, labels)}[$__rate_interval])"


def requests(labels: str = BOTH) -> str:
    """Requests per second, those of the gateway's own routes only if they were refused or failed.

    Health checks and scrapes are many where there is little traffic.
    """
    of_vllm = f'{labels},route_class!="gateway"'
    not_well = f'{labels},outcome!="completed"'
    return f"({rate('requests_total', of_vllm)} or {rate('requests_total', not_well)})"


def failed_share(*by: str) -> str:
    """The share of requests that failed by the fault of a server or of the gateway."""
    failed = total(rate("requests_total", f"{BOTH},{_FAILED}"), *by)
    return f"{or_zero(failed)} / {total(requests(), *by)}"


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
