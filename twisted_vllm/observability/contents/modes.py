"""Decides how much of a request's prompt and answer is kept."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.config.log_bodies import FULL, METADATA, MODES, OFF

#: headers by which a client asks that nothing is kept of its request, and that no text is
NO_LOG = b"x-litellm-no-log"
REDACT = (b"x-litellm-enable-message-redaction", b"litellm-enable-message-redaction")
#: the member of a body that asks the same as `NO_LOG`
NO_LOG_MEMBER = "no-log"

_RANK = {mode: rank for rank, mode in enumerate(MODES)}
_NO = frozenset((b"", b"0", b"false", b"no", b"off"))


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """What everybody says about one request. ``None`` says nothing.

    Attributes:
        default: the mode of the settings.
        models: the modes of its model: of the settings, and of its entries.
        team: the mode of the key's team.
        key: the mode of the key.
        texts_off: whether the operator or the client wants no texts.
        no_log: whether the client wants nothing kept, and may ask for it.
    """

    default: str = OFF
    models: tuple[str, ...] = ()
    team: str | None = None
    key: str | None = None
    texts_off: bool = False
    no_log: bool = False


def decide(wishes: Wishes) -> str:
    """Return the mode of one request.

    ``off`` of a key, a team or a model, and a request that wants nothing kept, always win. Else the key counts before
    its team, the team before the model, and the model before the settings. Where texts are off, no more than
    ``metadata`` is kept.
    """
    if wishes.no_log or OFF in (wishes.key, wishes.team, *wishes.models):
        return OFF
    model = lowest(wishes.models) if wishes.models else None
    mode = wishes.key or wishes.team or model or wishes.default
    return lowest((mode, METADATA)) if wishes.texts_off else mode


def lowest(modes: tuple[str, ...]) -> str:
    """Return the mode that keeps least."""
    return min(modes, key=_RANK.__getitem__)


def wants_nothing_kept(first: Mapping[bytes, bytes]) -> bool:
    """Return whether the head of a request asks that nothing is kept."""
    return NO_LOG in first and _means_yes(first[NO_LOG])


def wants_no_texts(first: Mapping[bytes, bytes]) -> bool:
    """Return whether the head of a request asks that no text is kept."""
    return any(name in first and _means_yes(first[name]) for name in REDACT)


def _means_yes(value: bytes) -> bool:
    return value.strip().lower() not in _NO


__all__ = ["FULL", "METADATA", "OFF", "Wishes", "decide", "lowest", "wants_no_texts", "wants_nothing_kept"]
