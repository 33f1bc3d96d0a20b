"""What the generating APIs share: sampling parameters, prompts, generated texts and usage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import msgspec

from twisted_vllm.simulator.engine import Choice, Engine, compose, count_tokens
from twisted_vllm.simulator.fields import Fields, decode_object
from twisted_vllm.simulator.messages import ApiError, ApiRequest, Work, bad_parameter, unknown_model
from twisted_vllm.simulator.settings import MAX_MODEL_LEN

#: the most choices of one request; far below vLLM's bound, as all of them are held in memory
MAX_CHOICES = 128

#: the placeholder of the token in an encoded event; no header and no model name can contain a NUL
MARK = "\0token\0"

FINGERPRINT = "vllm-0.32.0-simulator"


@attrs.frozen
class Sampling:
    """The sampling parameters.

    Attributes:
        limit: ``max_tokens``; ``None`` is the model's length.
        n: the choices for each prompt.
        temperature: is only validated.
        top_p: is only validated.
        seed: the caller's seed.
        min_tokens: the fewest tokens of a choice.
        ignore_eos: whether to write until `limit`.
    """

    limit: int | None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False


@attrs.frozen
class Generation:
    """The content of a generating API's response."""

    model: str
    number: str
    created: int
    prompt_tokens: int
    choices: tuple[Choice, ...]

    @property
    def completion_tokens(self) -> int:
        """The tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    @property
    def work(self) -> Work:
        """What the engine does for it."""
        return Work(
            model=self.model,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            steps=max(len(choice.tokens) for choice in self.choices),
            finish_reason=self.choices[0].finish_reason,
        )

    def steps(self) -> Iterator[list[tuple[int, str, str | None]]]:
        """Iterate over the engine's steps.

        Yields:
            For each choice that gets a token: its index, the token, and the finish reason if it is the last token.
        """
        for step in range(self.work.steps):
            yield [
                (index, choice.tokens[step], choice.finish_reason if step + 1 == len(choice.tokens) else None)
                for index, choice in enumerate(self.choices)
                if step < len(choice.tokens)
            ]


def body_of(request: ApiRequest) -> Fields:
    """Return the fields of a JSON body; raises `ApiError`."""
    return Fields(decode_object(request.body, request.header("content-type")))


def served_model(engine: Engine, name: str | None, *, pooling: bool = False) -> str:
    """Return the model to use; raises `ApiError` if it is not served."""
    models = engine.settings.models
    if not name:
        return models[0]
    if name not in models:
        raise unknown_model(name, models, pooling=pooling)
    return name


def read_sampling(fields: Fields, *limits: str) -> Sampling:
    """Read the sampling parameters; `check_sampling` checks their values.

    Args:
        fields: the body.
        limits: the names of the limit of tokens, in order of precedence.
    """
    found = [value for value in map(fields.integer, limits) if value is not None]
    n, seed, min_tokens = fields.integer("n"), fields.integer("seed"), fields.integer("min_tokens")
    return Sampling(
        limit=found[0] if found else None,
        n=1 if n is None else n,
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        seed=seed or 0,
        min_tokens=min_tokens or 0,
        ignore_eos=fields.boolean("ignore_eos"),
    )


def check_sampling(sampling: Sampling) -> None:
    """Check the values, as vLLM's ``SamplingParams`` does.

    Raises:
        ApiError: a value is invalid; the error names the first one.
    """
    if sampling.limit is not None and sampling.limit > MAX_MODEL_LEN:
        message = (
            f"max_tokens={sampling.limit} cannot be greater than max_model_len={MAX_MODEL_LEN}. "
            "Please request fewer output tokens."
        )
        raise bad_parameter(message, "max_tokens", sampling.limit)
    if not 1 <= sampling.n <= MAX_CHOICES:
        bound = "at least 1" if sampling.n < 1 else f"at most {MAX_CHOICES}"
        raise ApiError(f"n must be {bound}, got {sampling.n}.")
    temperature, top_p = sampling.temperature, sampling.top_p
    if temperature is not None and not temperature >= 0:
        raise bad_parameter(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if top_p is not None and not 0 < top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if sampling.limit is not None and sampling.limit < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {sampling.limit}.", "max_tokens", sampling.limit)


def generate(
    engine: Engine, request: ApiRequest, model: str, prompts: list[tuple[str, int]], sampling: Sampling
) -> Generation:
    """Generate the texts.

    Args:
        engine: makes the id and tells the time.
        request: the request, whose ``X-Request-Id`` becomes the id, as in vLLM.
        model: the model.
        prompts: each prompt's text and its number of tokens.
        sampling: the sampling parameters.

    Raises:
        ApiError: a parameter is invalid, a prompt is too long, or the server sleeps.
    """
    check_sampling(sampling)
    if engine.sleep_level is not None:
        # Unlike vLLM, which leaves its callers waiting.
        raise ApiError("The simulated engine is asleep: POST /wake_up", status=503, type="ServiceUnavailableError")
    choices = []
    for text, tokens in prompts:
        room = MAX_MODEL_LEN - tokens
        if room < 1:
            message = (
                f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains at "
                f"least {tokens} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise bad_parameter(message, "input_tokens", tokens)
        limit = min(room, sampling.limit or room)
        choices += [
            compose(
                text,
                limit,
                variant=variant,
                seed=sampling.seed,
                min_tokens=sampling.min_tokens,
                ignore_eos=sampling.ignore_eos,
            )
            for variant in range(sampling.n)
        ]
    return Generation(
        model=model,
        number=request.header("x-request-id") or engine.new_id(),
        created=engine.now(),
        prompt_tokens=sum(tokens for _, tokens in prompts),
        choices=tuple(choices),
    )


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return OpenAI's ``usage`` as in a stream."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def whole_usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return OpenAI's ``usage`` as in a response that is sent whole."""
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    return usage_of(prompt_tokens, completion_tokens) | details


def content_text(content: object) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)]
    return " ".join(part for part in parts if isinstance(part, str))


def messages_prompt(fields: Fields, name: str = "messages", *instructions: object) -> tuple[str, int]:
    """Return the text of a conversation and its number of tokens, at least 1; raises `ApiError` if it is empty."""
    if fields.get(name) == []:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    messages = fields.items(name)
    fields.check()
    texts = [content_text(instruction) for instruction in instructions]
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            fields.fail("dict_type", f"{name}.{index}", "Input should be a valid dictionary", message)
        texts.append(content_text(message.get("content")))
    text = "\n".join(texts)
    return text, max(1, count_tokens(text))


def split_event(event: bytes) -> tuple[bytes, bytes]:
    """Split an encoded event at `MARK`, so that further events only need to encode their token."""
    before, _, after = event.partition(msgspec.json.encode(MARK))
    return before, after
