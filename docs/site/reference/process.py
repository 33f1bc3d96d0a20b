"""``docs/process.md``: what surrounds the process: environment variables, exit statuses, signals."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from docs.site.markdown import REPOSITORY
from docs.site.reference.markdown_table import WRITTEN, code, codes, table
from twisted_vllm.config.load import variables

_CONFIG = REPOSITORY / "twisted_vllm" / "config"
#: what the variables of a module of twisted_vllm/config are for: those that are no setting's
_READERS = {
    "alerting": "[Alerts to people](alerting.md)",
    "callback_reading": "[LiteLLM's loggers](sinks.md)",
    "otel_environment": "[OpenTelemetry](otlp.md)",
    "otlp_metrics": "[Metrics by OTLP](otlp.md)",
    "otlp_sinks": "[Logs by OTLP](otlp.md)",
    "s3": "[object storage](sinks.md)",
    "tracing": "[Traces](tracing.md)",
    "tracing_vendors": "[receivers of traces](otlp.md)",
    "written": "",
}
#: read by the process itself, or by a library of its own
_OTHERS = {
    "NOTIFY_SOCKET": "systemd's socket for `READY=1`, `RELOADING=1` and `STOPPING=1`",
    "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES": "sockets of systemd, for a listener `systemd:`",
    "TMPDIR": "where the temporary files of large forms are",
    "VLLM_API_KEY": "`twistd vllm-simulator` alone: the key that it asks for",
}
_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
#: constants that look like a variable and are the end of its name, after OTEL_EXPORTER_OTLP_
_SUFFIXES = {"CLIENT_CERTIFICATE", "CLIENT_KEY"}

_HEAD = f"""\
# Environment, exit statuses, signals

{WRITTEN.format(source="twisted_vllm/config and docs/site/reference/process.py")}

## Environment variables

The [configuration](configuration.md) wins over the environment. An empty variable counts as unset. Of several variables of one setting, the first that is set wins.
In the file, `os.environ/NAME` in place of a value stands for any variable.

"""

_REST = """\
## Exit statuses

| status | when |
| --- | --- |
| 0 | the gateway was told to stop, and drained; `--check` found nothing that keeps it from starting; `--probe` reached everything; an import or a migration is done |
| 1 | it cannot start, and one line on standard error says why; `--check` or `--probe` found something; an import or a migration changed nothing; a wrong option; a gateway with workers gave up: eight processes in a row ended before they were ready |
| 128 and the signal's number, as shells tell it | a signal ended it, such as 137 for `SIGKILL` |

## Signals

A gateway with [several workers](operations.md#workers) is signalled at its supervisor, whose id is in the pid file.

| signal | what happens |
| --- | --- |
| first `SIGTERM` or `SIGINT` | [drain](operations.md#stop): requests that run may end |
| second `SIGTERM` or `SIGINT` | cut what still runs, at once |
| `SIGHUP` | [read the configuration again](operations.md#reload), in all processes or in none. A gateway in a terminal (`twistd -n`) drains when its terminal closes, unless it was started with `nohup` |
| `SIGUSR1` | open the log file again, in all processes |
| `SIGUSR2` | with several workers: [replace them](operations.md#workers) one by one with the code that is installed now |
| `SIGKILL` | ends it. The next start moves the remaining rows of the ledger to the database |
"""


def variables_of_code() -> Iterator[tuple[str, str]]:
    """Yield each variable that the configuration's modules name and that is no setting's, with its module."""
    of_settings = {name for each in variables() for name in each.environment}
    for path in sorted(_CONFIG.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and _NAME.fullmatch(text) and text not in of_settings | _SUFFIXES:
                yield text, path.stem


def page() -> str:
    """Return the page.

    Raises:
        KeyError: a module reads variables, and it is not known what for.
    """
    found: dict[str, list[str]] = {}
    for name, module in variables_of_code():
        for_what = found.setdefault(name, [])
        if _READERS[module] and _READERS[module] not in for_what:
            for_what.append(_READERS[module])
    rows = [{"setting": code(each.path), "variables": codes(each.environment)} for each in variables()]
    more = [{"variable": code(name), "for": ", ".join(texts)} for name, texts in sorted(found.items())]
    others = [{"variable": codes(names.split(", ")), "for": text} for names, text in _OTHERS.items()]
    return "\n".join(
        [
            _HEAD.rstrip() + "\n",
            table(rows),
            "Variables of LiteLLM, of OpenTelemetry and of receivers of traces have the meaning that they have there. They count only where the configuration asks for what they are about:\n",
            table(more),
            "Others:\n",
            table(others),
            _REST,
        ]
    )
