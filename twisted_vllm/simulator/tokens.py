"""``/tokenize`` and ``/detokenize``: a token is a word."""

from __future__ import annotations

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.generation import body_of, messages_prompt, served_model
from twisted_vllm.simulator.replies import Call, Reply, json_answer
from twisted_vllm.simulator.settings import MAX_MODEL_LEN


def tokenize(call: Call, engine: Engine) -> Reply:
    """Answer ``POST /tokenize``; raises ``Refusal``."""
    fields = body_of(call)
    name, strings = fields.string("model"), fields.boolean("return_token_strs")
    if fields.has("prompt"):
        text = fields.string("prompt") or ""
    elif fields.has("messages"):
        text, _ = messages_prompt(fields)
    else:
        text = ""
        fields.require("prompt", "messages")
    fields.check()
    served_model(engine, name)
    words = text.split()
    value = {
        "count": len(words),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": [engine.word_id(word) for word in words],
        "token_strs": words if strings else None,
    }
    return json_answer(value)


def detokenize(call: Call, engine: Engine) -> Reply:
    """Answer ``POST /detokenize``; raises ``Refusal``."""
    fields = body_of(call)
    fields.require("tokens")
    name, tokens = fields.string("model"), fields.items("tokens")
    if not all(isinstance(token, int) for token in tokens):
        fields.fail("int_type", "tokens", "Input should be a valid integer")
    fields.check()
    served_model(engine, name)
    return json_answer({"prompt": " ".join(engine.word(token) for token in tokens)})
