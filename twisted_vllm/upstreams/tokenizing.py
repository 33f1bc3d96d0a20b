"""Asks vLLM for the tokens of a prompt: ``POST /tokenize``, which renders the chat template and works on no GPU."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.upstreams.own_requests import own_headers, read_at_most

#: seconds that a request waits for its tokens; it is then placed without them
PATIENCE = 0.25
#: bytes of a body that is asked for, and of an answer
MAX_BODY, MAX_ANSWER = 262_144, 2_097_152
#: questions at a time; a server that is so slow to answer needs no more
MAX_ASKING = 32
#: the routes whose prompts ``/tokenize`` renders as they do
TOKENIZED = frozenset({"/v1/chat/completions", "/v1/completions"})
_JSON = b"application/json"
#: parts of messages that become more than text
_MEDIA = (b'"image_url"', b'"input_audio"', b'"audio_url"', b'"video_url"', b'"image_embeds"', b'"image_pil"')

#: fields that change a prompt, and that ``/tokenize`` does not have
_UNKNOWN = (b'"reasoning_effort"', b'"documents"', b'"truncate_prompt_tokens"', b'"prompt_embeds"')


class _Prompt(msgspec.Struct, omit_defaults=True, gc=False):
    """What makes the tokens: of the fields of a request, those that ``/tokenize`` has as well."""

    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    tools: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    add_special_tokens: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    add_generation_prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    continue_final_message: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chat_template: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chat_template_kwargs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    tool_choice: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET


class _Tokens(msgspec.Struct):
    tokens: list[int]


_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_array = msgspec.json.Decoder(list[int]).decode


class Question(msgspec.Struct, frozen=True, gc=False):
    """What to ask for the tokens of a request.

    Attributes:
        body: the body of ``/tokenize``; empty if nothing must be asked.
        tokens: the tokens, if they are the prompt.
        salt: the client's ``cache_salt``.
    """

    body: bytes
    tokens: list[int] | None
    salt: str | None


def question(body: bytes, model: str) -> Question | None:
    """Return what to ask for the tokens of a request.

    Args:
        body: the JSON body of a chat or a completion.
        model: the server's name of the model.

    Returns:
        The question; None if the tokens cannot be told: it has several prompts, images or sound, or fields that
        ``/tokenize`` does not have, is too large, or has none of these forms.
    """
    if len(body) > MAX_BODY or any(each in body for each in (*_MEDIA, *_UNKNOWN)):
        return None
    try:
        found = _decode_prompt(body)
        salt = found.cache_salt or None
        if isinstance(found.tool_choice, msgspec.Raw) and bytes(found.tool_choice) == b'"none"':
            # vLLM may then leave out the tools
            return None
        found.cache_salt = found.tool_choice = msgspec.UNSET
        if isinstance(found.messages, msgspec.Raw):
            found.prompt = msgspec.UNSET
        elif not isinstance(found.prompt, msgspec.Raw):
            return None
        elif not bytes(found.prompt).startswith(b'"'):
            return Question(b"", _decode_array(found.prompt), salt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found.model = model
    return Question(msgspec.json.encode(found), None, salt)


class PromptTokenizer:
    """Asks servers for the tokens of prompts."""

    _log = Logger()

    def __init__(self, client: PassThroughClient, clock: IReactorTime) -> None:
        """Ask nothing yet.

        Args:
            client: sends requests to servers.
            clock: the reactor's clock.
        """
        self._client = client
        self._clock = clock
        self._asking = 0

    def ask(self, server: Server, asked: Question) -> Deferred[list[int] | None]:
        """Ask a server for the tokens of a request.

        Args:
            server: any server of the model.
            asked: what to ask.

        Returns:
            The tokens; None if they cannot be told in `PATIENCE` seconds. It never fails.
        """
        if asked.tokens is not None or self._asking >= MAX_ASKING:
            return succeed(asked.tokens)
        pairs = own_headers(server, _JSON)
        pairs += [(b"Content-Type", _JSON), (b"Content-Length", b"%d" % len(asked.body))]
        headers = RawHeaders.from_pairs(pairs)
        self._asking += 1
        answer: Deferred[Any] = self._client.request(
            b"POST", server.url + b"/tokenize", headers=headers, data=asked.body, server=server, again=lambda: headers
        )
        answer.addCallback(_tokens_of).addTimeout(PATIENCE, self._clock)
        answer.addBoth(self._answered, server)
        return answer

    def _answered(self, result: list[int] | Failure | None, server: Server) -> list[int] | None:
        self._asking -= 1
        if not isinstance(result, Failure):
            return result
        self._log.warn(
            "The server {server} does not tell the tokens of a prompt: {reason}",
            server=server.name,
            reason=result.getErrorMessage(),
            once_a_second=server.name,
        )
        return None


def _tokens_of(response: UpstreamResponse) -> Deferred[list[int] | None]:
    body = read_at_most(response, MAX_ANSWER)
    if response.code != 200:
        # what it cannot tokenize, it refuses again when it is sent there
        return body.addCallback(lambda _: None)
    return body.addCallback(lambda answer: _decode_tokens(answer).tokens)
