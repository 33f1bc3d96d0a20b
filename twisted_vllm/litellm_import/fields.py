"""Turns the fields of one of LiteLLM's rows into ours, and notes what has no equal here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, TypeVar

import attrs
import msgspec

from twisted_vllm.admin.fields import SPECIAL_MODELS, UNITS
from twisted_vllm.admin.limits import MAX_COUNT, LimitFields
from twisted_vllm.admin.model_limits import check_limited_models
from twisted_vllm.admin.models import Body
from twisted_vllm.admin.parsing import parse_body
from twisted_vllm.auth.policy import parse_rule
from twisted_vllm.auth.records import MANAGEMENT
from twisted_vllm.config.checks import MAX_DOLLARS
from twisted_vllm.config.log_bodies import OPT_OUT, opts_out
from twisted_vllm.config.restricting import asks_for_something
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.litellm_import.notes import Notes, Outcome, clean
from twisted_vllm.litellm_import.restrictions import HARMLESS, IN_METADATA, SILENT
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import Allowance, ModelBudget

BodyT = TypeVar("BodyT", bound=Body)

#: the words that LiteLLM takes for durations
_DURATIONS = {"hourly": "1h", "daily": "1d", "weekly": "7d", "monthly": "30d"}
_UNITS = re.compile(UNITS)

_COUNTS = ("rpm_limit", "tpm_limit", "max_parallel_requests")
_MONEY = ("max_budget", "soft_budget")
_PER_MODEL = ("model_rpm_limit", "model_tpm_limit")


@attrs.define
class Fields:
    """The fields of one object on their way into ours.

    Attributes:
        subject: what it is called in the report.
        notes: where to note what is lost.
        values: the fields that are left, in LiteLLM's names.
        restricting: what restricts it and has no equal here.
    """

    subject: str
    notes: Notes
    values: dict[str, Any]
    restricting: list[str] = attrs.field(factory=list)

    def take(self, *names: str) -> list[Any]:
        """Return fields and remove them; None for those that are absent."""
        return [self.values.pop(name, None) for name in names]

    def lose(self, name: str, why: str = "") -> None:
        """Note that a field that asks for something is left out."""
        if name in SILENT:
            return
        text = name + (f": {why}" if why else "")
        if name in HARMLESS:
            self.notes.add(Outcome.LESS, self.subject, text)
        else:
            self.restrict(text)

    def restrict(self, what: str) -> None:
        """Note that what restricts the object has no equal here."""
        if what not in self.restricting:
            self.restricting.append(what)

    def accept(self, model: type[BodyT]) -> tuple[BodyT, dict[str, Any]]:
        """Return the fields as a request of the admin API, and the values that it takes; the others are lost.

        Raises:
            InvalidRequest: the request lacks what it needs.
        """
        given = {name: value for name, value in self.values.items() if value is not None}
        for name in [name for name in given if name not in model.__struct_fields__]:
            value = given.pop(name)
            if asks_for_something(value) and value != model.UNSUPPORTED.get(name):
                self.lose(name)
        while True:
            try:
                return parse_body(given, model), given
            except InvalidRequest as error:
                name = (error.param or "").partition(".")[0].partition("[")[0]
                if name not in given:
                    raise
                del given[name]
                self.lose(name, "its value cannot be used here")

    def take_metadata(self) -> None:
        """Take LiteLLM's own fields out of ``metadata``, and put those that are set beside the others."""
        metadata = self.values.get("metadata")
        if not isinstance(metadata, Mapping):
            self.values["metadata"] = {}
            return
        own = dict(metadata)
        if opts_out(own):
            # also where it stands in a field that is left out
            own[OPT_OUT] = True
        for name in IN_METADATA & own.keys():
            value = own.pop(name)
            if asks_for_something(value) and not asks_for_something(self.values.get(name)):
                self.values[name] = value
        self.values["metadata"] = own

    def take_models(self, granted: Iterable[str] = ()) -> None:
        """Put ``models`` into our words.

        Args:
            granted: further models, of access groups; an empty list allows all models without them.
        """
        models = [str(each) for each in self.values.get("models") or ()]
        # LiteLLM does not look at a key's models then: those of the team decide.
        if "all-team-models" in models and "all-team-models" in SPECIAL_MODELS:
            models = []
        self.values["models"] = list(dict.fromkeys((*models, *granted))) if models else []

    def take_routes(self) -> None:
        """Leave out the routes that cannot be allowed here. If none is left, the key is restricted to nothing."""
        routes = [str(each) for each in self.values.get("allowed_routes") or ()]
        kept = []
        for route in routes:
            # In LiteLLM, what such a key may administer depends on the role of its user; here it may do everything.
            manages = route in (MANAGEMENT, "management_routes")
            if manages or not _is_rule("read_only" if route == "info_routes" else route):
                self.notes.add(Outcome.LESS, self.subject, f"allowed_routes: {clean(route)}")
            else:
                kept.append(route)
        if routes and not kept:
            self.restrict("allowed_routes, none of which can be allowed here")
        self.values["allowed_routes"] = kept

    def take_limits(self) -> Allowance:
        """Return the limits, and remove them from the fields."""
        given: dict[str, Any] = {}
        for name in (*_COUNTS, *_MONEY, *_PER_MODEL, "budget_duration"):
            value = self.values.pop(name, None)
            if value is not None and value != {}:
                given[name] = value
        budgets = self._model_budgets(self.values.pop("model_max_budget", None))
        for name in _COUNTS:
            if name in given:
                given[name] = _count(given[name])
        for name in _PER_MODEL:
            if isinstance(given.get(name), Mapping):
                given[name] = {str(model): _count(each) for model, each in given[name].items() if each is not None}
        for name in _MONEY:
            if name in given:
                given[name] = bounded_dollars(given[name])
        if "budget_duration" in given:
            given["budget_duration"] = self._duration(given["budget_duration"])
        given = {name: value for name, value in given.items() if value is not None}
        inner = Fields(self.subject, self.notes, given, self.restricting)
        limits, accepted = inner.accept(LimitFields)
        return msgspec.structs.replace(limits.limits(accepted), model_budgets=budgets)

    def _duration(self, value: object) -> str | None:
        text = str(value).strip()
        text = _DURATIONS.get(text.lower(), text)
        if _UNITS.fullmatch(text):
            return text
        self.lose("budget_duration", "its value cannot be used here, so its budget never begins anew")
        return None

    def _model_budgets(self, value: object) -> dict[str, ModelBudget]:
        """Return the budgets for single models (LiteLLM's BudgetConfig, whose fields have two names each)."""
        found: dict[str, ModelBudget] = {}
        for model, config in value.items() if isinstance(value, Mapping) else ():
            fields = dict(config) if isinstance(config, Mapping) else {"max_budget": config}
            money = fields.pop("max_budget", None)
            money = fields.pop("budget_limit", None) if money is None else money
            duration = fields.pop("budget_duration", None)
            duration = fields.pop("time_period", None) if duration is None else duration
            fields = {name: each for name, each in fields.items() if asks_for_something(each)}
            dollars = None if money is None else bounded_dollars(money)
            if not _names_one_model(str(model)):
                self.restrict("model_max_budget")
            elif dollars is not None:
                found[str(model)] = ModelBudget(
                    from_dollars(dollars), None if duration is None else self._duration(duration)
                )
            for name in fields:
                self.restrict(f"model_max_budget.{clean(name)}")
        return found


def _names_one_model(model: str) -> bool:
    try:
        check_limited_models((model,), "model_max_budget")
    except InvalidRequest:
        return False
    return True


def _is_rule(route: str) -> bool:
    try:
        parse_rule(route)
    except InvalidRequest:
        return False
    return True


def _count(value: Any) -> Any:
    """Return a whole number within what the admin API takes; anything else unchanged, so that its check refuses it.

    LiteLLM's users write larger ones to mean "no limit".
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return min(value, MAX_COUNT) if isinstance(value, int) and not isinstance(value, bool) else value


def bounded_dollars(value: Any) -> float | None:
    """Return an amount within what the admin API takes; None for an infinite one, which limits nothing.

    A negative amount, and one that is not a number, become 0: LiteLLM refuses with both, or did not mean to allow all.
    """
    try:
        amount = float(value)
    except (TypeError, ValueError):
        return 0.0
    if amount == float("inf"):
        return None
    return min(max(amount, 0.0), MAX_DOLLARS) if isfinite(amount) else 0.0


def moment(value: object) -> datetime | None:
    """Return one of LiteLLM's times, which are in UTC without a time zone."""
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
