"""The limits of keys, users, teams and the others who have some: plain values."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

#: the kinds of those who have limits
KEY, USER, TEAM, END_USER = "key", "user", "team", "end_user"
MEMBER, ORGANIZATION, MODEL_BUDGET, PROXY = "member", "organization", "model_budget", "proxy"
KINDS = (KEY, USER, TEAM, END_USER, MEMBER, ORGANIZATION, MODEL_BUDGET, PROXY)

#: what separates the parts of an id that is made of several; no name of a caller's has it
SEPARATOR = "\x1f"


def member_id(team_id: str, user_id: str) -> str:
    """Return the id of a user's membership of a team, as it stands in `Limited` and in records of spend."""
    return f"{team_id}{SEPARATOR}{user_id}"


def members_budget_id(team_id: str) -> str:
    """Return the id of the budget that the members of a team name, if ``team_member_budget`` and the like made one."""
    return f"members-of-{team_id}"


def model_budget_id(kind: str, id: str, model: str) -> str:
    """Return the id of somebody's budget for one model, likewise."""
    return f"{kind}{SEPARATOR}{id}{SEPARATOR}{model}"


class ModelBudget(msgspec.Struct, frozen=True, gc=False):
    """A budget for one model.

    Attributes:
        max_budget: the maximum spend in one period, in picodollars.
        budget_duration: the period's length, as in `Allowance`.
    """

    max_budget: int
    budget_duration: str | None = None

    @property
    def allowance(self) -> Allowance:
        """The limits of a subject that has this budget and nothing else."""
        return Allowance(max_budget=self.max_budget, budget_duration=self.budget_duration)


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """The limits of one key, user, team, end user, member or organization. None or empty means no limit.

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
        model_budgets: budgets for one model, by the model's name.
    """

    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    model_rpm: Mapping[str, int] = {}
    model_tpm: Mapping[str, int] = {}
    max_budget: int | None = None
    soft_budget: int | None = None
    budget_duration: str | None = None
    model_budgets: Mapping[str, ModelBudget] = {}

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
        return self.tpm is not None or self.max_budget is not None or bool(self.model_tpm or self.model_budgets)

    @property
    def counts_models(self) -> bool:
        """Whether admission needs to know a request's model."""
        return bool(self.model_rpm or self.model_tpm or self.model_budgets)

    @property
    def counts_usage(self) -> bool:
        """Whether it depends on what a request uses, or on its model."""
        return self.counts_tokens or self.counts_models

    def limits_model(self, model: str) -> bool:
        """Return whether there is a limit for one model."""
        return model in self.model_rpm or model in self.model_tpm or model in self.model_budgets

    def within(self, shared: Allowance) -> Allowance:
        """Return these limits, and those of a shared budget where these set none.

        The length of a period belongs to its budget: it is not taken over for a budget of one's own.
        """
        own_money = self.max_budget is not None
        return Allowance(
            rpm=shared.rpm if self.rpm is None else self.rpm,
            tpm=shared.tpm if self.tpm is None else self.tpm,
            parallel=shared.parallel if self.parallel is None else self.parallel,
            model_rpm={**shared.model_rpm, **self.model_rpm},
            model_tpm={**shared.model_tpm, **self.model_tpm},
            max_budget=self.max_budget if own_money else shared.max_budget,
            soft_budget=shared.soft_budget if self.soft_budget is None else self.soft_budget,
            budget_duration=self.budget_duration if own_money else self.budget_duration or shared.budget_duration,
            model_budgets={**shared.model_budgets, **self.model_budgets},
        )


UNLIMITED = Allowance()


class Limited(msgspec.Struct, frozen=True, gc=False):
    """Somebody with limits.

    Attributes:
        kind: ``key``, ``user``, ``team``, ``end_user``, ``member``, ``organization``, ``model_budget`` or ``proxy``.
        id: the key's permanent id; as from `member_id` and `model_budget_id`; ``proxy``; or the id of the others.
        allowance: the limits.
    """

    kind: str
    id: str
    allowance: Allowance


def budgets_of(kind: str, id: str, allowance: Allowance) -> list[tuple[str, str]]:
    """Return the kind and id of each budget that somebody has: the one for everything, and those for single models."""
    found = [(kind, id)] if allowance.has_budget else []
    if allowance.model_budgets:
        found += [(MODEL_BUDGET, model_budget_id(kind, id, model)) for model in allowance.model_budgets]
    return found
