"""How rows refer to who pays and what was asked: by its JSON, which is made once and shared.

A row is encoded in a fraction of a microsecond, and most of that would go into what is the same for very many rows.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.cleaning import clean_struct
from twisted_vllm.usage.records import Payer, Target

_json = msgspec.json.Encoder().encode

#: read what `refer` made
payer_of = msgspec.json.Decoder(Payer).decode
target_of = msgspec.json.Decoder(Target).decode


def refer(value: Payer | Target) -> msgspec.Raw:
    """Return how rows refer to a value."""
    try:
        return msgspec.Raw(_json(value))
    except UnicodeEncodeError:
        # half of a surrogate pair, out of somebody's JSON
        return msgspec.Raw(_json(clean_struct(value)))
