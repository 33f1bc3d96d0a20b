"""What a wrong option of the command line is answered with."""

from __future__ import annotations

import pytest
from twisted.python.usage import UsageError

from twisted_vllm.app.tap import Options


def refusal(*arguments: str) -> str:
    with pytest.raises(UsageError) as refused:
        Options().parseOptions(list(arguments))
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--port", "4000"),
            "--port is LiteLLM's: write --listen tcp:4000:interface=127.0.0.1 for this machine alone, or --listen "
            "tcp:4000 for all addresses",
        ),
        (
            ("--port=80",),
            "--port is LiteLLM's: write --listen tcp:80:interface=127.0.0.1 for this machine alone, or --listen tcp:80 "
            "for all addresses",
        ),
        (
            ("--port", "x"),
            "--port is LiteLLM's: write --listen tcp:PORT:interface=127.0.0.1 for this machine alone, or --listen "
            "tcp:PORT for all addresses",
        ),
        (("--host", "0.0.0.0"), "--host is LiteLLM's: write --listen tcp:PORT:interface=HOST"),
        (("--detailed_debug",), "--detailed_debug is LiteLLM's: write passthrough.log.level: debug in the file"),
        (("-c", "config.yaml"), "-c is LiteLLM's: write --config FILE"),
        (("--telemetry", "False"), "--telemetry is LiteLLM's: leave it out: nothing is reported to anybody"),
        (("--logfile", "x"), "--logfile is twistd's own: write it before vllm-passthrough"),
        (("--confg", "x"), "--confg is not an option; did you mean --config?"),
        (("--chekc",), "--chekc is not an option; did you mean --check?"),
        (("--zzz",), "--zzz is not an option"),
        (("--config",), "option --config requires argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_says_what_to_write(arguments: tuple[str, ...], message: str) -> None:
    assert refusal(*arguments) == message


@pytest.mark.parametrize("option", ["num_workers", "model", "ssl_keyfile_path", "run_gunicorn", "max_budget", "health"])
def test_every_option_of_litellm_has_its_answer(option: str) -> None:
    assert refusal(f"--{option}").startswith(f"--{option} is LiteLLM's: ")


def test_an_import_is_no_start() -> None:
    assert refusal("--import-litellm", "x", "--quickstart") == "--import-litellm goes with --config and --check alone"
