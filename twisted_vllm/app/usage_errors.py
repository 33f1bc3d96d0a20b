"""What to write in place of an option that ``twistd vllm-passthrough`` does not have: LiteLLM's, or a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from twisted_vllm.config.problems import nearest

_UNKNOWN = re.compile(r"option -{1,2}(\S+) not recognized")
_PORT = re.compile(r"[0-9]{1,5}")

_LOG_LEVEL = "write passthrough.log.level: debug in the file"
_TLS = "write --listen ssl:PORT:privateKey=FILE:certKey=FILE"
_FILE = "write it in the file that --config names"
_MODEL = "set HOSTED_VLLM_API_BASE to the server's address, or write model_list in the file that --config names"
_ONE_PROCESS = (
    "leave it out: one process serves thousands of streams; start several on one database if its CPU is full "
    "(docs/operations.md)"
)

#: LiteLLM's options, and what to do here
_LITELLM = {
    "host": "write --listen tcp:PORT:interface=HOST",
    "num_workers": _ONE_PROCESS,
    "debug": _LOG_LEVEL,
    "detailed_debug": _LOG_LEVEL,
    "model": _MODEL,
    "alias": _MODEL,
    "api_base": "set HOSTED_VLLM_API_BASE to it",
    "add_key": "set HOSTED_VLLM_API_KEY to it",
    "ssl_keyfile_path": _TLS,
    "ssl_certfile_path": _TLS,
    "ciphers": _TLS,
    "log_config": "write passthrough.log in the file",
    "keepalive_timeout": "write passthrough.timeouts.keep_alive in the file",
    "request_timeout": "write router_settings.timeout in the file",
    "limit_concurrency": "write passthrough.limits.max_connections in the file",
    "max_budget": _FILE,
    "drop_params": "leave it out: requests go to vLLM as they are",
    "add_function_to_prompt": "leave it out: requests go to vLLM as they are",
    "headers": "leave it out: requests go to vLLM as they are",
    "temperature": "leave it out: requests go to vLLM as they are",
    "max_tokens": "leave it out: requests go to vLLM as they are",
    "telemetry": "leave it out: nothing is reported to anybody",
    "health": "write --check --probe",
    "validate_config": "write --check",
    "skip_server_startup": "write --check",
    "test": "send a request with curl",
    "test_async": "send a request with curl",
    "run_gunicorn": "leave it out: twistd is the server",
    "run_granian": "leave it out: twistd is the server",
    "run_hypercorn": "leave it out: twistd is the server",
    "reload": "leave it out: a SIGHUP reads the file again",
    "use_prisma_db_push": "leave it out: the database is migrated at each start",
    "use_legacy_migration_resolver": "leave it out: the database is migrated at each start",
    "enforce_prisma_migration_check": "leave it out: the database is migrated at each start",
    "iam_token_db_auth": "write the database's URL with its password",
    "prometheus_metrics_port": "read GET /metrics",
    "max_requests_before_restart": "leave it out: the process need not be restarted",
}
#: options of twistd, which stand before the name of the plugin
_TWISTD = frozenset(("logfile", "pidfile", "nodaemon", "reactor", "uid", "gid", "rundir", "umask", "syslog", "no_save"))


def explain_unknown_option(message: str, arguments: Sequence[str], known: Iterable[str], of_twistd: bool = True) -> str:
    """Return the message of a usage error, with what to write in place of an option that does not exist.

    Args:
        message: Twisted's message.
        arguments: the command line after the name of the plugin.
        known: the names of the options that exist.
        of_twistd: whether the command line is twistd's, whose own options stand before the plugin's name.
    """
    found = _UNKNOWN.fullmatch(message)
    if found is None:
        return message
    option = found[1]
    name = option.replace("-", "_").lower()
    written = f"{'--' if len(option) > 1 else '-'}{option}"
    if name == "port":
        port = _value_of(written, arguments)
        port = port if _PORT.fullmatch(port) else "PORT"
        return (
            f"--port is LiteLLM's: write --listen tcp:{port}:interface=127.0.0.1 for this machine alone, or "
            f"--listen tcp:{port} for all addresses"
        )
    if name == "c":
        return "-c is LiteLLM's: write --config FILE"
    if name in _LITELLM:
        return f"{written} is LiteLLM's: {_LITELLM[name]}"
    if name in _TWISTD and of_twistd:
        return f"{written} is twistd's own: write it before vllm-passthrough"
    close = nearest(option, known)
    return f"{written} is not an option" + (f"; did you mean --{close}?" if close else "")


def _value_of(option: str, arguments: Sequence[str]) -> str:
    for number, argument in enumerate(arguments):
        if argument == option and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""
