"""Rows as LiteLLM's database holds them, all of them invented."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from twisted_vllm.litellm_import.conversion import Converted, convert, importer
from twisted_vllm.litellm_import.notes import Notes, Outcome
from twisted_vllm.litellm_import.source import LiteLLMRows

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def token_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def key_row(key: str = "sk-a-key-of-litellm", **values: Any) -> dict[str, Any]:
    return {"token": token_of(key), "key_name": "sk-...tllm", "models": [], "metadata": {}, "spend": 0.0, **values}


def user_row(user_id: str = "ada", **values: Any) -> dict[str, Any]:
    return {"user_id": user_id, "models": [], "metadata": {}, "spend": 0.0, **values}


def team_row(team_id: str = "blue", **values: Any) -> dict[str, Any]:
    return {
        "team_id": team_id,
        "models": [],
        "metadata": {},
        "spend": 0.0,
        "members_with_roles": [],
        "blocked": False,
        **values,
    }


def budget_row(budget_id: str = "small", **values: Any) -> dict[str, Any]:
    return {"budget_id": budget_id, **values}


def converted(master_token: str | None = None, **rows: Any) -> tuple[Converted, Notes]:
    """Convert some rows, at NOW."""
    notes = Notes()
    return convert(LiteLLMRows(**rows), notes, importer(NOW, lambda count: b"\x07" * count), master_token), notes


def texts(notes: Notes, outcome: Outcome) -> list[str]:
    return [f"{note.subject}: {note.text}" for note in notes.of(outcome)]
