"""Describes for ``--check`` what is told of requests, and to whom: metrics, traces, sinks, prompts and alerts."""

from __future__ import annotations

from collections.abc import Iterator

from twisted_vllm.config.alert_types import ALERT_TYPES
from twisted_vllm.config.alerting import SLACK, WEBHOOK
from twisted_vllm.config.log_bodies import OFF
from twisted_vllm.config.settings import Settings


def otlp_metrics(settings: Settings) -> Iterator[str]:
    """Yield where metrics go by OTLP."""
    metrics = settings.otlp_metrics
    if metrics.active:
        where, how = origin_of(metrics.destination.endpoint), metrics.destination.protocol
        yield f"{metrics.temporality}, every {metrics.interval:g} s, as {metrics.service_name} to {where} by {how}"


def origin_of(url: str) -> str:
    """Return where a URL leads to; the rest of it may hold a key."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0].rpartition('@')[2]}"


def traces(settings: Settings) -> Iterator[str]:
    """Yield which requests are traced, and where spans go."""
    tracing = settings.tracing
    if not tracing.active:
        return
    ratio = f" of {tracing.sample_ratio:g}" if "ratio" in (tracing.sampler or "") else ""
    yield f"{tracing.sampler}{ratio}, as {tracing.service_name}{'' if tracing.propagate else ', servers are not told'}"
    for each in tracing.destinations:
        yield f"to {each.name} at {origin_of(each.endpoint)} by {each.protocol}"


def sinks(settings: Settings) -> Iterator[str]:
    """Yield what each sink gets, and where it goes."""
    for sink in settings.all_sinks:
        origin = "" if sink.url is None else origin_of(sink.url.reveal())
        address = "" if sink.address is None else f"{sink.address.transport}:{sink.address.host}:{sink.address.port}"
        where = sink.path or address.removesuffix(":0") or origin or sink.bucket or sink.object or ""
        spool = ", also on disk" if sink.spool.enabled else ""
        yield f"{sink.name}: {', '.join(sink.events)} to {sink.type} {where}".rstrip() + f" ({sink.format}{spool})"
    if settings.callbacks.litellm_metrics:
        yield "prometheus: LiteLLM's names in /metrics"


def prompts(settings: Settings) -> Iterator[str]:
    """Yield whose prompts and answers traces and sinks get, and that nobody gets them without either."""
    bodies = settings.log_bodies
    modes = {f"model {name}": mode for name, mode in bodies.models.items()}
    for entry in settings.models:
        if entry.log_bodies is not None:
            modes.setdefault(f"model {entry.model_name}", entry.log_bodies)
    if bodies.mode == OFF and set(modes.values()) <= {OFF}:
        return
    yield f"{bodies.mode}, if neither key, team nor model says anything else"
    yield from (f"{mode} of the {name}" for name, mode in modes.items())
    if settings.turn_off_message_logging:
        yield "texts of nobody: turn_off_message_logging"
    taken_out = (*bodies.redact_fields, *bodies.redact_patterns)
    if taken_out:
        yield f"without {', '.join(taken_out)}"
    if not settings.all_sinks and not settings.tracing.active:
        yield "to nobody: there is neither a sink nor a destination of traces"


def alerts(settings: Settings) -> Iterator[str]:
    """Yield which alerts go where."""
    if SLACK in settings.alerting:
        kinds = ALERT_TYPES if settings.alert_types is None else settings.alert_types
        usual = settings.alerts.slack_webhook_url
        elsewhere = settings.alert_to_webhook_url
        if usual is not None and (here := [kind for kind in kinds if kind not in elsewhere]):
            yield f"{'all kinds' if len(here) == len(ALERT_TYPES) else ', '.join(here)} to {origin_of(usual.reveal())}"
        for kind, urls in elsewhere.items():
            if kind in kinds:
                yield f"{kind} to {', '.join(dict.fromkeys(origin_of(url.reveal()) for url in urls))}"
    if WEBHOOK in settings.alerting and settings.alerts.webhook_url is not None:
        yield f"events of budgets, as JSON, to {origin_of(settings.alerts.webhook_url.reveal())}"
