"""The dashboard of the vLLM servers: which one is in trouble, and is the load shared well?"""

from __future__ import annotations

from functools import partial

from benchmarks.dashboards.panels import (
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Dashboard,
    Kind,
    Mapped,
    Panel,
    Query,
    Row,
)
from benchmarks.dashboards.promql import SERVER, growth, metric, or_zero, quantile, rate, total
from benchmarks.dashboards.variables import INSTANCES, SERVERS

_stat = partial(Panel, Kind.STAT, width=4, height=4)
_third = partial(Panel, Kind.LINES, width=8, height=8)
_half = partial(Panel, Kind.LINES, width=12, height=8)

#: of vLLM's own metrics: those of GET /metrics/upstreams have the server's name
_VLLM = 'server=~"$server"'
_STATES = {
    0: Mapped("closed", GREEN),
    1: Mapped("half_open", YELLOW),
    2: Mapped("open", ORANGE),
    3: Mapped("dead", RED),
    4: Mapped("sleeping", PURPLE),
    5: Mapped("drained", PURPLE),
}
_NOT_PASSED = f'{SERVER},result!="passed"'
_STREAM = f'{SERVER},stream="true"'
#: of requests that reached a server
_SENT = f'{SERVER},server!=""'
_SCRAPED = "Needs the scrape of `/metrics/upstreams` (docs/metrics.md)."


def _vllm(name: str) -> str:
    return f"vllm:{name}{{{_VLLM}}}"


def _vllm_rate(name: str) -> str:
    return f"rate({_vllm(name)}[$__rate_interval])"


def _state() -> str:
    """The worst state of each server in all processes, as the number that `_STATES` explains."""
    of_each = (f"{metric('upstream_state', _with_state(mapped.text))} * {number}" for number, mapped in _STATES.items())
    return f"max by (server) ({' or '.join(of_each)})"


def _with_state(state: str) -> str:
    return f'{SERVER},state="{state}"'


NOW = Row(
    "Now",
    (
        _stat(
            "Servers in use",
            "Servers that get requests. Fewer than usual: *State of each server* says which is out.",
            (Query(total(f"max by (server) ({metric('upstream_healthy', SERVER)})")),),
        ),
        _stat(
            "Servers out",
            "Servers that get no requests: *State of each server* says which, `GET /health` why.",
            (Query(or_zero(f"count(max by (server) ({metric('upstream_healthy', SERVER)}) == 0)")),),
            steps=((1, RED),),
        ),
        _stat(
            "In flight",
            "Requests that the gateway has at the servers.",
            (Query(total(metric("upstream_in_flight", SERVER))),),
        ),
        _stat(
            "Waiting in the servers",
            f"Requests that vLLM has taken and not begun. If they stay, the server is full. {_SCRAPED}",
            (Query(total(_vllm("num_requests_waiting"))),),
            steps=((1, YELLOW), (50, RED)),
        ),
        _stat(
            "Generated",
            f"Tokens that all servers generate in a second. {_SCRAPED}",
            (Query(total(_vllm_rate("generation_tokens_total"))),),
            unit="suffix: tok/s",
            decimals=0,
        ),
        _stat(
            "Prefix cache",
            f"The share of prompt tokens that were in a prefix cache. Low with long conversations: is "
            f"`routing_strategy` `prefix`? {_SCRAPED}",
            (
                Query(
                    f"{total(_vllm_rate('prefix_cache_hits_total'))} / "
                    f"{total(_vllm_rate('prefix_cache_queries_total'))}"
                ),
            ),
            unit="percentunit",
            decimals=0,
        ),
    ),
)

HEALTH = Row(
    "Health",
    (
        Panel(
            Kind.STATES,
            "State of each server",
            "`open`: requests failed there, it is tried again soon. `half_open`: one request tries it. `dead`: it "
            "fails its checks. `sleeping`: somebody called `/sleep`. `drained`: an administrator took it out. "
            "See docs/health.md.",
            (Query(_state(), "{{server}}"),),
            width=12,
            height=8,
            values=_STATES,
        ),
        Panel(
            Kind.TABLE,
            "Out, and why",
            "Servers that get no requests now, with the reason for which they were taken out. docs/health.md, What "
            "counts as a failure; `GET /health` has the last error in words.",
            (Query(f"max by (server, reason) ({metric('upstream_out', SERVER)}) > 0", "out"),),
            width=12,
            height=8,
            decimals=0,
            columns={"server": "server", "reason": "reason"},
        ),
    ),
)

LOAD = Row(
    "Load",
    (
        _third(
            "Requests by server",
            "How the load is shared. One line far above the others: many prompts begin alike, see docs/routing.md, "
            "Routing strategies; or compare the `weight` of the entries.",
            (Query(total(rate("requests_total", _SENT), "server"), "{{server}}"),),
            unit="reqps",
        ),
        _third(
            "In flight by server",
            "Requests that the gateway has at each server. A line that only grows is a server that hangs.",
            (Query(total(metric("upstream_in_flight", SERVER), "server"), "{{server}}"),),
        ),
        _third(
            "Time to first token by server, p95",
            "From the request's head to the first event of a stream. One server above the others: it is slower, or it "
            "gets the long prompts.",
            (Query(quantile(0.95, "time_to_first_byte_seconds", _STREAM, "server"), "{{server}}"),),
            unit="s",
        ),
    ),
)

TROUBLE = Row(
    "Failures",
    (
        _half(
            "Failures by reason",
            "Requests that failed by the server's fault, those that another server answered included. "
            "`connection_refused`: vLLM does not run. `timeout`: it hangs or is full. docs/health.md, "
            "What counts as a failure.",
            (
                Query(
                    total(rate("upstream_failures_total", SERVER), "server", "reason"),
                    "{{server}} {{reason}}",
                ),
            ),
            unit="reqps",
        ),
        _half(
            "Failed health checks",
            "Checks that a server failed, and those that could not be made (`unknown`).",
            (
                Query(
                    f"{total(rate('health_checks_total', _NOT_PASSED), 'server', 'result')} > 0",
                    "{{server}} {{result}}",
                ),
            ),
            unit="cps",
        ),
    ),
)

ENGINES = Row(
    "vLLM's own metrics",
    (
        _third(
            "Running",
            f"The size of each server's batch. {_SCRAPED}",
            (Query(total(_vllm("num_requests_running"), "server"), "{{server}}"),),
        ),
        _third(
            "KV cache in use",
            f"Near 100 % vLLM preempts requests and all are slow: more servers, or a smaller "
            f"`max_concurrent_requests`. {_SCRAPED}",
            (Query(f"max by (server) ({_vllm('kv_cache_usage_perc')})", "{{server}}"),),
            unit="percentunit",
            ceiling=1,
        ),
        _third(
            "Prefix cache",
            f"The share of prompt tokens that were in the server's prefix cache. It falls to 0 when a server restarts. "
            f"{_SCRAPED}",
            (
                Query(
                    f"{total(_vllm_rate('prefix_cache_hits_total'), 'server')} / "
                    f"{total(_vllm_rate('prefix_cache_queries_total'), 'server')}",
                    "{{server}}",
                ),
            ),
            unit="percentunit",
            ceiling=1,
        ),
        _third(
            "Generated tokens",
            f"Tokens that each server generates in a second: the work that the fleet does. {_SCRAPED}",
            (Query(total(_vllm_rate("generation_tokens_total"), "server"), "{{server}}"),),
            unit="suffix: tok/s",
            stacked=True,
        ),
        _third(
            "Waiting in the server",
            f"Requests that the server has taken and not begun. {_SCRAPED}",
            (Query(total(_vllm("num_requests_waiting"), "server"), "{{server}}"),),
        ),
        _third(
            "Preemptions",
            f"Requests that vLLM had to begin again, because the KV cache was full. {_SCRAPED}",
            (Query(total(_vllm_rate("num_preemptions_total"), "server"), "{{server}}"),),
            unit="cps",
        ),
    ),
)

LIST = Row(
    "All servers",
    (
        Panel(
            Kind.TABLE,
            "Servers",
            "Each server, with what happened in the time that is shown. *Scraped* is 0 if its own metrics could not be "
            "read: the log says why.",
            (
                Query(f"max by (server) ({metric('upstream_healthy', SERVER)})", "in use"),
                Query(total(metric("upstream_in_flight", SERVER), "server"), "in flight"),
                Query(total(growth("requests_total", _SENT), "server"), "requests"),
                Query(total(growth("upstream_failures_total", SERVER), "server"), "failures"),
                Query(f"max by (server) ({metric('upstream_scrape_up', SERVER)})", "scraped"),
            ),
            width=24,
            height=8,
            decimals=0,
            columns={"server": "server"},
        ),
    ),
)

FLEET = Dashboard(
    "vllm-passthrough-fleet",
    "Gateway: servers",
    "Which vLLM server is in trouble, and is the load shared well?",
    "observability.md",
    (INSTANCES, SERVERS),
    (NOW, HEALTH, LOAD, TROUBLE, ENGINES, LIST),
)
