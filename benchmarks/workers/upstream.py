"""nginx, answering as a vLLM server does: written in C, so that it leaves the processors to what is measured.

``/v1/chat/completions`` answers at once with one JSON object. ``/v1/completions`` answers with a stream of events, one
each few milliseconds or seconds; it needs nginx's echo module, which can wait between two events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.free_ports import free_port
from benchmarks.peers import find_program
from benchmarks.processes import CannotStart, answers, environment, running, wait_until_ready

#: unless the caller says else: events of a stream, the one with the usage included, and the seconds between two
EVENTS, INTERVAL = 64, 0.02
ANSWER_PATH, STREAM_PATH = "/v1/chat/completions", "/v1/completions"
_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/lib/nginx/modules")
_ECHO = "ngx_http_echo_module.so"

_CONF = """
{load}{user}worker_processes {processes};
daemon off;
pid nginx.pid;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    server {{
        listen 127.0.0.1:{port} backlog=4096 reuseport;
        location / {{ return 200 ""; }}
        location = {answer_path} {{ default_type application/json; return 200 '{answer}'; }}
        {stream}
    }}
}}
"""

_ANSWER = (
    '{"id":"chatcmpl-5f0c8e1f6a7b4d21","object":"chat.completion","created":1795439504,"model":"bench","choices":'
    '[{"index":0,"message":{"role":"assistant","content":"Begin on the islands, then walk along the river.",'
    '"refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"system_fingerprint":null,'
    '"usage":{"prompt_tokens":18,"total_tokens":29,"completion_tokens":11}}'
)
_EVENT = (
    'data: {"id":"cmpl-5f0c8e1f6a7b4d21","object":"text_completion","created":1795439504,"model":"bench","choices":'
    '[{"index":0,"text":" river","logprobs":null,"finish_reason":null,"stop_reason":null}]}\\n\\n'
)
_LAST_EVENT = (
    'data: {"id":"cmpl-5f0c8e1f6a7b4d21","object":"text_completion","created":1795439504,"model":"bench","choices":[],'
    '"usage":{"prompt_tokens":18,"total_tokens":81,"completion_tokens":63}}\\n\\ndata: [DONE]\\n\\n'
)


@attrs.frozen
class Server:
    """The stand-in, while it runs.

    Attributes:
        port: where it listens.
        process: its process id.
        streams: whether it has streams.
    """

    port: int
    process: int
    streams: bool


def find_echo() -> Path | None:
    """Return where nginx's echo module is."""
    return next((Path(place) / _ECHO for place in _MODULES if (Path(place) / _ECHO).exists()), None)


@contextmanager
def nginx_as_vllm(
    directory: Path, processes: int, files: int, events: int = EVENTS, interval: float = INTERVAL
) -> Iterator[Server]:
    """Run the stand-in.

    Args:
        directory: where its files are.
        processes: how many processes it serves with.
        files: how many files each may open.
        events: of a stream, the one with the usage included.
        interval: seconds between two.

    Raises:
        CannotStart: nginx is not installed, or does not start.
    """
    program = find_program("nginx", None, ("/usr/sbin", "/usr/local/sbin"))
    if program is None:
        raise CannotStart("nginx is not installed (Debian: apt-get install nginx-light)")
    echo = find_echo()
    port = free_port()
    text = _CONF.format(
        load="" if echo is None else f"load_module {echo};\n",
        # started by root, its workers would run as nobody, who cannot write to this directory
        user="user root;\n" if os.geteuid() == 0 else "",
        processes=processes,
        files=files,
        port=port,
        answer_path=ANSWER_PATH,
        answer=_ANSWER,
        stream="" if echo is None else _stream(events, interval),
    )
    (directory / "upstream.conf").write_text(text)
    log = directory / "upstream.out"
    command = [str(program), "-e", "stderr", "-p", f"{directory}/", "-c", "upstream.conf"]
    with running(command, log, environ=environment(), directory=directory) as process:
        wait_until_ready(process, log, lambda: answers(port, "/health"))
        yield Server(port, process.pid, streams=echo is not None)


def _stream(events: int, interval: float) -> str:
    each = f"echo -n '{_EVENT}'; echo_flush; echo_sleep {interval};"
    parts = [each] * (events - 1) + [f"echo -n '{_LAST_EVENT}';"]
    kind = 'default_type "text/event-stream; charset=utf-8";'
    return f"location = {STREAM_PATH} {{ {kind} echo_read_request_body; {' '.join(parts)} }}"
