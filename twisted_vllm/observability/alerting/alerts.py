"""An alert."""

from __future__ import annotations

import msgspec

#: how urgent an alert is, as LiteLLM says it
HIGH, MEDIUM, LOW = "High", "Medium", "Low"


class Alert(msgspec.Struct, frozen=True, gc=False):
    """Something that people should know.

    Attributes:
        kind: the kind, one of `twisted_vllm.config.alert_types.ALERT_TYPES`.
        about: what it is about; alerts of the same kind about the same are alike. There are few different ones.
        text: what happened, on one line; without secrets.
        level: how urgent it is: `HIGH`, `MEDIUM` or `LOW`.
        count: how many events it stands for.
    """

    kind: str
    about: str
    text: str
    level: str = HIGH
    count: int = 1
