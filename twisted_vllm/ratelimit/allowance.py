"""The limits of keys, users, teams and end users: plain values."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """The limits of one key, user, team or end user. None or empty means no limit.

    Attributes:
        rpm: requests in any 60 seconds.
        tpm: tokens, of prompts and completions together, in any 60 seconds.
        parallel: requests in flight at a time.
        model_rpm: requests in any 60 seconds for one model, by the model's name.
        model_tpm: tokens likewise.
        max_budget: the maximum spend in one period, in picodollars.
        soft_budget: the spend at which a warning is logged, in picodollars.
        budget_duration: the length of a budget's period in LiteLLM's format (``30d``, ``1mo``); None means
            one endless period.
    """

    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    model_rpm: Mapping[str, int] = {}
    model_tpm: Mapping[str, int] = {}
    max_budget: int | None = None
    soft_budget: int | None = None
    budget_duration: str | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether it limits nothing."""
        return self == UNLIMITED

    @property
    def has_budget(self) -> bool:
        """Whether there is a budget or a soft budget."""
        return self.max_budget is not None or self.soft_budget is not None

    @property
    def counts_tokens(self) -> bool:
        """Whether admission needs an estimate of a request's tokens or cost."""
        return self.tpm is not None or bool(self.model_tpm) or self.max_budget is not None

    @property
    def counts_models(self) -> bool:
        """Whether admission needs to know a request's model."""
        return bool(self.model_rpm or self.model_tpm)

    @property
    def counts_usage(self) -> bool:
        """Whether it depends on what a request uses, or on its model."""
        return self.counts_tokens or self.counts_models

    def limits_model(self, model: str) -> bool:
        """Return whether there is a limit for one model."""
        return model in self.model_rpm or model in self.model_tpm


UNLIMITED = Allowance()


class Limited(msgspec.Struct, frozen=True, gc=False):
    """A key, user, team or end user with limits.

    Attributes:
        kind: ``key``, ``user``, ``team`` or ``end_user``.
        id: the key's permanent id, or the id of the others.
        allowance: the limits.
    """

    kind: str
    id: str
    allowance: Allowance
