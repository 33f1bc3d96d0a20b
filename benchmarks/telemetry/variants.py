"""What is switched on in each gateway that is compared."""

from __future__ import annotations

from collections.abc import Mapping

Settings = Mapping[str, object]

DEFAULT = "as installed"
#: where the variants post to
RECEIVED = TRACES, WEBHOOK = "/v1/traces", "/webhook"


def variants(receiver: int) -> dict[str, Settings]:
    """Return what stands below ``passthrough`` in each gateway's configuration.

    Args:
        receiver: the port of `benchmarks.telemetry.receiver`.
    """
    base = f"http://127.0.0.1:{receiver}"
    metrics: Settings = {"metrics": {"key_labels": 100, "user_labels": 100, "team_labels": 100, "litellm_names": True}}
    file = {"name": "file", "type": "file", "path": "sink.jsonl"}
    webhook = {"name": "webhook", "type": "webhook", "url": f"{base}{WEBHOOK}", "secret": "of-the-benchmark-alone"}
    contents = {"log_bodies": {"mode": "full"}}
    kept = {"name": "contents", "type": "file", "path": "contents.jsonl", "format": "event"}

    def traces(ratio: float) -> Settings:
        destination = {"name": "collector", "endpoint": f"{base}{TRACES}", "conventions": ["gen_ai", "openinference"]}
        return {"tracing": {"destinations": [destination], "sample_ratio": ratio}}

    return {
        DEFAULT: {},
        "metrics of keys": metrics,
        "traces, 1 %": traces(0.01),
        "traces, all": traces(1),
        "file and webhook": {"sinks": [file, webhook]},
        "prompts in a file": {"sinks": [kept], **contents},
        "everything": {**metrics, **traces(1), **contents, "sinks": [file, webhook, kept]},
    }
