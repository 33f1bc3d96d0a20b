"""What the gateway would do with its settings, in lines for a person: ``--check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs

from twisted_vllm.config.database import describe_database
from twisted_vllm.config.ledger import spool_directory
from twisted_vllm.config.redis import RedisServer
from twisted_vllm.config.settings import LogSettings, ModelEntry, PriceList, Server, Settings, Timeouts


def describe(settings: Settings) -> list[str]:
    """Return what the settings come to, one line for each piece and none with a secret."""
    return [*_facts(settings), *_models(settings), *_timeouts(settings), *_warnings(settings)]


def _facts(settings: Settings) -> Iterator[str]:
    yield from (_line("listen", endpoint) for endpoint in settings.listen)
    yield _line("mode", _mode(settings))
    yield _line("database", describe_database(settings.database_url))
    if settings.redis is not None:
        yield _line("limits", _limits(settings.redis, settings.limits_on_redis_loss))
    default = settings.default_server
    yield _line("default server", _server(default) if default else "none: a request must name a model of the list")
    yield _line("path aliases", "on" if settings.path_aliases else "off: only vLLM's own paths work")
    yield from (_line("open to keys", rule) for rule in settings.tenant_routes.allow)
    yield from (_line("closed to keys", rule) for rule in settings.tenant_routes.deny)
    yield from (_line("trusted proxy", str(network)) for network in settings.trusted_proxies)
    delay = f", after {settings.drain_delay:g} s of serving on" if settings.drain_delay else ""
    yield _line("drain", f"{settings.drain_timeout:g} s{delay}")
    if settings.revoke_running:
        yield _line("revoking", "running requests end when their key is not valid any more")
    for field, value, usual in _differing(settings.limits, type(settings.limits)()):
        yield _line("limit", f"{field} {_cap(value)} (default {_cap(usual)})")
    yield _line("ledger", _ledger(settings))
    if settings.ledger.count_stream_usage == "passive":
        yield _line("stream usage", "passive: a stream whose client does not ask for usage is estimated by its chunks")
    yield from (_line("noted header", name) for name in settings.ledger.usage_headers)
    if prices := _priced(settings.default_prices):
        yield _line("default prices", prices.removeprefix(", "))
    yield _line("log", _log(settings.log))


def _ledger(settings: Settings) -> str:
    found = settings.ledger
    if not found.enabled:
        return "off: nothing is noted of what requests use"
    kept = "rows kept for ever"
    if found.usage_retention is not None:
        kept = f"rows kept for {found.usage_retention / 86_400:g} days"
    failing = ", requests refused while the spool cannot be written" if found.on_spool_failure == "refuse" else ""
    return f"spool in {spool_directory(settings)}, {kept}{failing}"


def _mode(settings: Settings) -> str:
    if settings.master_key is not None:
        return "master key and virtual keys"
    anywhere = ", from any address" if settings.allow_anonymous else ", from this machine"
    return f"open: no master key is set, and anybody may do everything{anywhere}"


def _limits(server: RedisServer, on_loss: str) -> str:
    without = "each process counts for itself" if on_loss == "local" else "requests with limits are refused"
    return f"counted in {server.name}; while it is away, {without}"


def _models(settings: Settings) -> Iterator[str]:
    shares: Counter[str] = Counter()
    for entry in settings.models:
        shares[entry.model_name] += entry.weight
    for entry in settings.models:
        yield _line("model", _model(entry, shares[entry.model_name]))


def _model(entry: ModelEntry, total: int) -> str:
    share = f", {entry.weight} of {total} requests" if total > entry.weight else ""
    return f"{entry.model_name} -> {entry.upstream_model} at {_server(entry.server)}{share}{_priced(entry.prices)}"


def _priced(prices: PriceList) -> str:
    return "".join(f", {name} {price:f}" for name, price in prices.named().items() if price is not None)


def _server(server: Server) -> str:
    scheme = "https" if server.tls else "http"
    return f"{scheme}://{server.name}{', with its own key' if server.api_key else ''}"


def _timeouts(settings: Settings) -> Iterator[str]:
    for field, value, usual in _differing(settings.timeouts, Timeouts()):
        yield _line("timeout", f"{field} {_seconds(value)} (default {_seconds(usual)})")
    default = [settings.default_server] if settings.default_server else []
    servers = dict.fromkeys([*default, *(entry.server for entry in settings.models)])
    for server in servers:
        for field, value, usual in _differing(server.timeouts, settings.timeouts):
            yield _line("timeout", f"{field} {_seconds(value)} for {server.name} (elsewhere {_seconds(usual)})")
        for field in ("max_concurrent_requests", "max_queued_requests"):
            cap, usual = getattr(server, field), getattr(settings.limits, field)
            if cap != usual:
                yield _line("limit", f"{field} {_cap(cap)} for {server.name} (elsewhere {_cap(usual)})")


def _differing(found: attrs.AttrsInstance, usual: attrs.AttrsInstance) -> Iterator[tuple[str, object, object]]:
    for field in attrs.fields(type(found)):
        value, other = getattr(found, field.name), getattr(usual, field.name)
        if value != other:
            yield field.name, value, other


def _cap(value: object) -> object:
    return "none" if value is None else value


def _log(log: LogSettings) -> str:
    target = "standard output"
    if log.file is not None:
        target = f"{log.file}, rotated at {log.rotate_bytes} bytes, {log.keep_files} old files kept"
    return f"{log.format}, level {log.level}, to {target}"


def _warnings(settings: Settings) -> Iterator[str]:
    yield from (_line("warning", warning) for warning in settings.warnings)


def _seconds(value: object) -> str:
    return "no limit" if value is None else f"{value:g} s"


def _line(name: str, value: str) -> str:
    return f"{name + ':':16}{value}"
