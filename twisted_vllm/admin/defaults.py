"""Fills in what new keys, users and teams get that the request leaves out."""

from __future__ import annotations

from collections.abc import Container
from typing import TypeVar

import attrs
import msgspec

from twisted_vllm.admin.keys.models import GenerateRequest
from twisted_vllm.admin.models import Body, Json
from twisted_vllm.admin.teams.models import NewTeamRequest
from twisted_vllm.admin.users.models import NewUserRequest, NewUserTeam
from twisted_vllm.auth.roles import INTERNAL_USER
from twisted_vllm.config.new_records import RecordDefaults

BodyT = TypeVar("BodyT", bound=Body)


def with_key_defaults(body: GenerateRequest, given: Container[str], defaults: RecordDefaults) -> GenerateRequest:
    """Return the request for a key, with the operator's defaults.

    Args:
        body: the request.
        given: the names of the fields that it has.
        defaults: the operator's.
    """
    return _filled(body, given, attrs.asdict(defaults.keys, recurse=False))


def with_user_defaults(body: NewUserRequest, given: Container[str], defaults: RecordDefaults) -> NewUserRequest:
    """Return the request for a user, likewise. The budget of internal users comes last."""
    values = attrs.asdict(defaults.users, recurse=False)
    teams = values.pop("teams")
    values["teams"] = tuple(
        NewUserTeam(
            team_id=each.team_id,
            user_role=each.role,
            max_budget_in_team=None if each.max_budget is None else float(each.max_budget),
        )
        for each in teams
    )
    if body.team_id is not None:
        del values["teams"]
    body = _filled(body, given, values)
    if body.user_role in (None, INTERNAL_USER):
        budget = {"max_budget": defaults.user_budget, "budget_duration": defaults.user_budget_duration}
        body = _filled(body, given, budget)
    return body


def with_team_defaults(body: NewTeamRequest, given: Container[str], defaults: RecordDefaults) -> NewTeamRequest:
    """Return the request for a team, likewise."""
    return _filled(body, given, attrs.asdict(defaults.teams, recurse=False))


def _filled(body: BodyT, given: Container[str], defaults: Json) -> BodyT:
    """Return a body with defaults for the fields that are null or empty.

    A period that is null was asked for: as in LiteLLM, it gets no default.
    """
    values = {
        name: value
        for name, value in defaults.items()
        if value not in (None, (), {})
        and getattr(body, name) in (None, (), {})
        and not (name == "budget_duration" and name in given)
    }
    return msgspec.structs.replace(body, **values) if values else body
