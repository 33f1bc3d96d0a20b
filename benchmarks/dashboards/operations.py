"""The dashboard for whoever runs the gateway: is it well, and where is the trouble?"""

from __future__ import annotations

from functools import partial

from benchmarks.dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
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
from benchmarks.dashboards.promql import (
    BOTH,
    INSTANCE,
    MODEL,
    OF_A_MODEL,
    SENT,
    SERVER,
    STREAM,
    failed_share,
    growth,
    metric,
    or_zero,
    quantile,
    rate,
    requests,
    total,
)
from benchmarks.dashboards.variables import INSTANCES, MODELS, SERVERS

_stat = partial(Panel, Kind.STAT, width=3, height=4)
_quarter = partial(Panel, Kind.LINES, width=6, height=7)
_third = partial(Panel, Kind.LINES, width=8, height=8)
_half = partial(Panel, Kind.LINES, width=12, height=8)

#: one color for each outcome, everywhere
OUTCOMES = {
    "completed": GREEN,
    "refused": YELLOW,
    "client_disconnected": BLUE,
    "upstream_failed": RED,
    "upstream_error": ORANGE,
    "failed": PURPLE,
    "revoked": GREY,
    "cut": GREY,
}
_NOT_2XX = f'{BOTH},status!~"2.."'
_UP = {1: Mapped("works", GREEN), 0: Mapped("away", RED)}
_QUANTILES = {"p50": GREEN, "p95": YELLOW, "p99": ORANGE}


def _quantiles(histogram: str, labels: str = BOTH) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, histogram, labels), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99))


NOW = Row(
    "Now",
    (
        _stat(
            "Requests",
            "Requests that ended; those of the gateway's own routes only if they were refused or failed. 0 while "
            "clients are there: look at *Connections*, and at the load balancer.",
            (Query(total(requests())),),
            unit="reqps",
            decimals=1,
        ),
        _stat(
            "Failed",
            "The share of requests that failed by the fault of a server or of the gateway. *Failures of servers* says "
            "which server and why; then docs/operations.md, Troubleshooting.",
            (Query(failed_share()),),
            unit="percentunit",
            decimals=2,
            steps=((0.01, YELLOW), (0.05, RED)),
        ),
        _stat(
            "First token, p95",
            "From the request's head to the first event of a stream, of 19 in 20 requests. If it is high, compare "
            "*Waiting* and *Overhead of the gateway*: if both are low, the servers are slow.",
            (Query(quantile(0.95, "time_to_first_byte_seconds", STREAM)),),
            unit="s",
            steps=((2, YELLOW), (10, RED)),
        ),
        _stat(
            "In flight",
            "Requests that are in work now. If it only grows, a server hangs: see the log's slow requests and the "
            "dashboard of the servers.",
            (Query(total(metric("requests_in_flight", OF_A_MODEL))),),
        ),
        _stat(
            "Waiting",
            "Requests that wait for a server of their model. All servers of a model are at "
            "`max_concurrent_requests`, or at the `rpm` or `tpm` of their entries: add a server, or raise them.",
            (Query(total(metric("queued_requests"))),),
            steps=((1, YELLOW), (50, RED)),
        ),
        _stat(
            "Servers out",
            "Servers that get no requests. `GET /health` says which and why; docs/health.md says how they come back.",
            (Query(or_zero(f"count(max by (server) ({metric('upstream_healthy', SERVER)}) == 0)")),),
            steps=((1, RED),),
        ),
        _stat(
            "Cost per hour",
            "What the answers cost at the prices of `model_list`. 0 with traffic: the model has no price "
            "(docs/usage-and-cost.md).",
            (Query(f"{total(rate('cost_usd_total', MODEL))} * 3600"),),
            unit="currencyUSD",
            decimals=2,
        ),
        _stat(
            "Alerts",
            "Alerts that fire now, of the rules in config/prometheus. docs/alerts.md says what to do for each.",
            (Query(or_zero('count(ALERTS{alertname=~".+",alertstate="firing"})')),),
            steps=((1, RED),),
        ),
    ),
)

REQUESTS = Row(
    "Requests",
    (
        _half(
            "Requests by outcome",
            "How requests ended. `upstream_failed`: a server could not be reached or broke off. `upstream_error`: it "
            "reported an error in its stream. `failed`: a fault of the gateway, its database or Redis. "
            "docs/operations.md, Log, explains each.",
            (Query(total(requests(), "outcome"), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
            colors=OUTCOMES,
        ),
        _half(
            "Errors by code",
            "Errors that the gateway itself answered with. `invalid_api_key`: a client has a wrong key. "
            "`rate_limit_exceeded` and `budget_exceeded`: see the tenants' dashboard. "
            "`no_healthy_upstream`, `server_busy`: too few servers. docs/operations.md has a table of all codes.",
            (Query(total(rate("refusals_total"), "code"), "{{code}}"),),
            unit="reqps",
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        _third(
            "Time to first token",
            "From the request's head to the first event of a stream: the wait of a person in a chat. If p50 grows "
            "too, the servers are full; if only p99 does, one server or long prompts are slow.",
            _quantiles("time_to_first_byte_seconds", STREAM),
            unit="s",
            colors=_QUANTILES,
        ),
        _third(
            "Duration",
            "From the request's head to the end of the answer. It grows with the length of answers: compare *Time per "
            "output token*.",
            _quantiles("request_duration_seconds", SENT),
            unit="s",
            colors=_QUANTILES,
        ),
        _third(
            "Time per output token",
            "The pace of the answers after their first byte. If it grows, batches are larger or a server is throttled: "
            "compare *Running* in the dashboard of the servers.",
            _quantiles("time_per_output_token_seconds"),
            unit="s",
            colors=_QUANTILES,
        ),
    ),
)

TIME = Row(
    "Where the time goes",
    (
        _quarter(
            "Wait in the queue",
            "How long requests waited for a server of their model, of those that waited. It goes up before clients get "
            "503 `server_busy`. More servers, or a larger `max_concurrent_requests`.",
            _quantiles("queue_wait_seconds"),
            unit="s",
            colors=_QUANTILES,
        ),
        _quarter(
            "In flight by model",
            "Requests in work. A model whose line only grows has a server that hangs.",
            (Query(total(metric("requests_in_flight", OF_A_MODEL), "model"), "{{model}}"),),
            stacked=True,
        ),
        _quarter(
            "Overhead of the gateway",
            "Our own share of the time before a request goes on. Usually below 5 ms. If it is high: is the process at "
            "100 % CPU (*CPU*), does the database answer (*Database*), do bodies wait for memory?",
            _quantiles("gateway_overhead_seconds", SENT),
            unit="s",
            colors=_QUANTILES,
        ),
        _quarter(
            "Event-loop lag",
            "How late the reactor's timers run. Over 100 ms all clients wait: the process is short of CPU, or a report "
            "or a reload is very large. Start another process.",
            _quantiles("event_loop_lag_seconds", INSTANCE),
            unit="s",
            colors=_QUANTILES,
        ),
    ),
)

FAILURES = Row(
    "Failures, and what was done about them",
    (
        _third(
            "Failures of servers",
            "Requests that failed by a server's fault, those that another server answered included. "
            "`connection_refused`: vLLM does not run. `timeout`: it hangs or is full. `answer_cut`: its answers end in "
            "their midst. `protocol_error`: its answer is no HTTP. docs/health.md, What counts as a failure, has all "
            "reasons.",
            (Query(total(rate("upstream_failures_total", SERVER), "server", "reason"), "{{server}} {{reason}}"),),
            unit="reqps",
        ),
        _third(
            "Retries and fallbacks",
            "Attempts that failed before the first byte and were sent again: their clients noticed nothing. *denied* "
            "are those that `retry.budget` did not allow: their clients got an error. See docs/failover.md.",
            (
                Query(total(rate("retries_total"), "reason"), "{{reason}}"),
                Query(total(rate("retries_denied_total")), "denied"),
                Query(total(rate("fallbacks_total")), "another model"),
            ),
            unit="reqps",
            colors={"denied": RED, "another model": PURPLE},
        ),
        _third(
            "Answers by status",
            "Statuses of 400 and more that clients got, by vLLM or by the gateway; 0 are requests that ended without "
            "one.",
            (Query(total(requests(_NOT_2XX), "status"), "{{status}}"),),
            unit="reqps",
        ),
    ),
)

USE = Row(
    "Tokens and cost",
    (
        _half(
            "Tokens by type",
            "Tokens that servers reported. `cached` are those of the prompt that were in the prefix cache: they cost "
            "the server little. If their share falls, see *Prefix cache* in the dashboard of the servers.",
            (Query(total(rate("tokens_total", MODEL), "type"), "{{type}}"),),
            unit="suffix: tok/s",
        ),
        _half(
            "Cost by model",
            "At the prices of `model_list`, per hour. The ledger has the exact figures: docs/usage-and-cost.md.",
            (Query(f"{total(rate('cost_usd_total', MODEL), 'model')} * 3600", "{{model}}"),),
            unit="currencyUSD",
            stacked=True,
        ),
    ),
)

STORES = Row(
    "Ledger, database, Redis",
    (
        Panel(
            Kind.STATES,
            "What the gateway needs",
            "*Database* away: keys work, none can be made, reports fail. *Ledger* away: rows wait in the spool. "
            "*Spool* away: its disk is full, free it now. *Redis* away: `limits_on_redis_loss` says what happens.",
            (
                Query(f"min({metric('database_up')})", "Database"),
                Query(f"min({metric('ledger_database_up')})", "Ledger"),
                Query(f"min({metric('ledger_spool_writable')})", "Spool"),
                Query(f"min({metric('limits_redis_up')})", "Redis"),
            ),
            width=6,
            height=7,
            values=_UP,
        ),
        _quarter(
            "Rows in the spool",
            "Rows that the database does not have yet. They wait on disk: nothing is lost. If they grow, the database "
            "is away or slow; watch the disk.",
            (Query(total(metric("ledger_spool_rows"), "instance"), "{{instance}}"),),
        ),
        _quarter(
            "Age of the oldest row",
            "How far reports and budgets are behind. Usually below 2 s.",
            (Query(f"max by (instance) ({metric('ledger_spool_oldest_row_seconds')})", "{{instance}}"),),
            unit="s",
        ),
        _quarter(
            "Database, p95",
            "How long the database takes for a transaction. If it is slow, so are reports and the admin API; inference "
            "does not wait for it.",
            (
                Query(
                    f"histogram_quantile(0.95, {total(rate('database_transaction_seconds_bucket'), 'le', 'kind')})",
                    "{{kind}}",
                ),
            ),
            unit="s",
        ),
    ),
)

PROCESS = Row(
    "Processes",
    (
        _quarter(
            "Connections",
            "Connections of clients, by what they do. Near the limit (`limits.max_connections`) more are refused: look "
            "for a client that leaks them.",
            (
                Query(total(metric("connections"), "state"), "{{state}}"),
                Query(total(metric("connections_limit")), "limit"),
            ),
            stacked=False,
            colors={"busy": GREEN, "idle": BLUE, "refused": RED, "closing": GREY, "limit": ORANGE},
        ),
        _quarter(
            "Open files",
            "The share of the files that the process may open. Over 80 %: raise `LimitNOFILE`, or look for a client "
            "that leaks connections.",
            (Query(f"{metric('open_files')} / {metric('open_files_limit')}", "{{instance}}"),),
            unit="percentunit",
            ceiling=1,
        ),
        _quarter(
            "CPU",
            "Cores that each process uses. One process uses one core at most: near 1, start another.",
            (
                Query(
                    'rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])'
                    " and on (instance, job) vllm_passthrough_info",
                    "{{instance}}",
                ),
            ),
        ),
        _quarter(
            "Memory",
            "Resident memory of each process. docs/bounds.md says what can make it grow, and to what.",
            (
                Query(
                    'process_resident_memory_bytes{instance=~"$instance"} and on (instance, job) vllm_passthrough_info',
                    "{{instance}}",
                ),
            ),
            unit="bytes",
        ),
    ),
)

OUTSIDE = Row(
    "What is told to others",
    (
        _quarter(
            "Waiting to be delivered",
            "Events that a sink has not taken yet. If they grow, its receiver is slow or away.",
            (Query(total(metric("delivery_queued"), "sink"), "{{sink}}"),),
        ),
        _quarter(
            "Dropped and failed deliveries",
            "*Dropped* are lost: the queue of the sink was full. *Failed* are tried again. See docs/sinks.md.",
            (
                Query(f"{total(rate('delivery_dropped_total'), 'sink')} > 0", "{{sink}} dropped"),
                Query(f"{total(rate('delivery_failures_total'), 'sink')} > 0", "{{sink}} failed"),
            ),
            unit="cps",
        ),
        Panel(
            Kind.BARS,
            "Certificates: time left",
            "Until each certificate expires, of this gateway's endpoints and of servers. Renew it and reload: no "
            "connection is dropped.",
            (
                Query(
                    f"min by (use, listener, server) ({metric('tls_certificate_expiry_timestamp_seconds')}) - time()",
                    "{{use}} {{listener}}{{server}}",
                ),
            ),
            unit="s",
            width=6,
            height=7,
        ),
        _quarter(
            "Reloads and audit",
            "Reloads of the configuration and administrative acts, by result. A failed reload changed nothing: the log "
            "has all its problems.",
            (
                Query(f"{total(growth('reloads_total'), 'result')} > 0", "reload {{result}}"),
                Query(f"{total(growth('audit_events_total'), 'result')} > 0", "act {{result}}"),
            ),
        ),
    ),
)

OPERATIONS = Dashboard(
    "vllm-passthrough-operations",
    "Gateway: operations",
    "Is the gateway well, and where is the trouble? Read from the top: the first row says whether, the others why.",
    "observability.md",
    (INSTANCES, MODELS, SERVERS),
    (NOW, REQUESTS, LATENCY, TIME, FAILURES, USE, STORES, PROCESS, OUTSIDE),
)
