"""How the storage fails, beside `twisted_vllm.errors.StoreUnavailable`."""

from __future__ import annotations

from twisted_vllm.errors import Conflict

#: the seconds after which what the storage refused may be tried again
RETRY_SECONDS = 5


class StoreError(Exception):
    """The database cannot be used as configured. The message is for the operator and holds no password."""


class KeyExists(Conflict):
    """A key with this value exists already."""

    def __init__(self, param: str = "key") -> None:
        super().__init__(
            f"This key exists already. Send another `{param}`, or leave it out to have one made.", param=param
        )


class AliasExists(Conflict):
    """Another key has the alias."""

    def __init__(self) -> None:
        super().__init__("Another key has this alias already. Send another `key_alias`.", param="key_alias")
