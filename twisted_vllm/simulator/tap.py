"""``twistd vllm-simulator``: its options and its service."""

from __future__ import annotations

import os

from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from twisted_vllm.config.secret import Secret
from twisted_vllm.simulator.service import DEFAULT_LISTEN, simulator_service
from twisted_vllm.simulator.settings import DEFAULT_MODEL, SimulatorSettings

API_KEY_VARIABLE = "VLLM_API_KEY"

_MORE_HELP = f"""
To require a key, set {API_KEY_VARIABLE}: unlike --api-key, it is not visible in the list of processes.

The header "x-simulate" makes a response fail, to test what stands in front of the server:
  slow-head=SECONDS  status=NNN  hang  close  garbage  truncate  close-mid-body  hang-mid-body  bad-chunk  error-event

Try it:
  twistd -n vllm-simulator
  curl -N http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'
"""


class Options(usage.Options):
    """The command line of ``twistd vllm-simulator``."""

    synopsis = "[options]"

    longdesc = (
        "A stand-in for a vLLM 0.32 server: the same routes, shapes and errors, simulated text and no model. It says "
        'that it is one: in its header "server", in /version and in every text.'
    )

    def __init__(self) -> None:
        super().__init__()
        self.listen: list[str] = []
        self.models: list[str] = []
        self.token_interval = 0.02
        self.first_token = 0.05
        self.api_key: Secret | None = None

    def getUsage(self, width: int | None = None) -> str:
        """Return the text of ``--help``. The text after the options is not wrapped, so that it can be copied."""
        return str(super().getUsage(width)) + _MORE_HELP

    def opt_listen(self, endpoint: str) -> None:
        """Listen on this Twisted endpoint; may be repeated. [default: tcp:8000:interface=127.0.0.1]"""
        self.listen.append(endpoint)

    def opt_model(self, name: str) -> None:
        """Serve a model of this name; may be repeated. [default: simulated-model]"""
        if not name:
            raise usage.UsageError("--model: the name is empty")
        if name not in self.models:
            self.models.append(name)

    def opt_token_interval(self, seconds: str) -> None:
        """Seconds between two tokens; 0 is as fast as possible. [default: 0.02]"""
        self.token_interval = _seconds("--token-interval", seconds)

    def opt_first_token(self, seconds: str) -> None:
        """Seconds until the first token. [default: 0.05]"""
        self.first_token = _seconds("--first-token", seconds)

    def opt_api_key(self, key: str) -> None:
        """Require this key below /v1 and /v2, as vLLM does. [default: the variable VLLM_API_KEY]"""
        if not key:
            raise usage.UsageError("--api-key: the key is empty; leave the option out to ask for none")
        self.api_key = Secret(key)

    def postOptions(self) -> None:
        """Fill in the defaults, and check the endpoints.

        Raises:
            UsageError: a listen string is not an endpoint.
        """
        self.listen = self.listen or [DEFAULT_LISTEN]
        self.models = self.models or [DEFAULT_MODEL]
        if self.api_key is None and os.environ.get(API_KEY_VARIABLE):
            self.api_key = Secret(os.environ[API_KEY_VARIABLE])
        for text in self.listen:
            _check_endpoint(text)

    def settings(self) -> SimulatorSettings:
        """Return the simulator's settings."""
        return SimulatorSettings(
            models=tuple(self.models),
            token_interval=self.token_interval,
            first_token=self.first_token,
            api_key=self.api_key,
        )


def _seconds(option: str, text: str) -> float:
    try:
        return SimulatorSettings(token_interval=float(text)).token_interval
    except ValueError:
        raise usage.UsageError(f"{option}: {text!r} is not a number of seconds of 0 or more, such as 0.02") from None


def _check_endpoint(text: str) -> None:
    try:
        # Parsing does not use the reactor, which twistd installs later.
        serverFromString(None, text)
    except (ValueError, TypeError, LookupError, OSError) as error:
        message = f"--listen: {text!r} cannot be used ({error}); write a Twisted endpoint, such as {DEFAULT_LISTEN}"
        raise usage.UsageError(message) from error


def makeService(options: Options) -> IService:
    """Make the service that twistd runs."""
    # Imported here: twistd has now installed the reactor that --reactor names.
    from twisted.internet import reactor

    return simulator_service(reactor, options.settings(), options.listen)
