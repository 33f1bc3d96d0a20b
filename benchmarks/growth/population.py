"""Who uses the gateway in a filled database: keys, users, teams, organizations and end users, each known by its number.

Nothing here is random, so that the load, the reads and the filled database agree on who there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import attrs

from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.storage.records import Member, OrganizationRecord, TeamRecord, UserRecord
from twisted_vllm.usage.records import Payer, Target

#: a format of C and Lua as well: the load makes keys and end users from their numbers
KEY_FORMAT, END_USER_FORMAT = "sk-growth-%013d", "end-user-%07d"
#: what a key with tags has of these, and which of the keys have any
TAGS, TAGGED_EVERY = 50, 4
#: the models that rows name; the load asks for the first
MODELS = ("bench", "qwen-72b", "llama-70b", "mistral-24b", "gemma-27b")
#: US dollars, as in a configuration
PRICES = {"input_cost_per_token": 2e-7, "output_cost_per_token": 6e-7}
#: of a row, in picodollars
PROMPT_PRICE, COMPLETION_PRICE = 200_000, 600_000

_MADE_BY = "master"


@attrs.frozen
class Size:
    """How large a deployment is.

    Attributes:
        keys: virtual keys.
        users: their users; each key has one.
        teams: their teams; each key is in one.
        end_users: whom requests name.
        rows: requests in the ledger.
        months: over so many months before now.
    """

    keys: int = 10_000
    users: int = 2_000
    teams: int = 100
    end_users: int = 5_000
    rows: int = 500_000
    months: float = 12.0

    @property
    def organizations(self) -> int:
        """One for ten teams."""
        return -(-self.teams // 10)

    def words(self) -> str:
        """Return the size in words."""
        return (
            f"{self.keys:,} keys, {self.users:,} users, {self.teams:,} teams, {self.end_users:,} end users, "
            f"{self.rows:,} rows over {self.months:g} months"
        )


@attrs.frozen
class Population:
    """Who there is in a deployment of a size."""

    size: Size

    @staticmethod
    def key(number: int) -> str:
        """Return a key."""
        return KEY_FORMAT % number

    @staticmethod
    def end_user(number: int) -> str:
        """Return an end user."""
        return END_USER_FORMAT % number

    def token(self, number: int) -> str:
        """Return a key's hash, as the database has it."""
        return hash_key(self.key(number))

    def user(self, key: int) -> str | None:
        """Return the user of a key."""
        return f"user-{key % self.size.users:06d}" if self.size.users else None

    def team(self, key: int) -> str | None:
        """Return the team of a key."""
        return f"team-{key % self.size.teams:05d}" if self.size.teams else None

    def organization(self, key: int) -> str | None:
        """Return the organization of a key's team."""
        return f"organization-{key % self.size.teams // 10:04d}" if self.size.teams else None

    @staticmethod
    def tags(key: int) -> tuple[str, ...]:
        """Return the tags of a key."""
        return () if key % TAGGED_EVERY else (f"tag-{key // TAGGED_EVERY % TAGS:02d}",)

    def payer(self, key: int) -> Payer:
        """Return who pays for the requests of a key."""
        token = self.token(key)
        return Payer(
            "key",
            token[:32],
            token[:8],
            f"key {key}",
            self.user(key),
            self.team(key),
            self.tags(key),
            self.organization(key),
        )

    @staticmethod
    def target(model: str) -> Target:
        """Return what the requests for a model ask."""
        prices = (("name", "default"), *((name, f"{price:.7f}") for name, price in PRICES.items()))
        return Target(model, "vllm", "/v1/chat/completions", "POST", prices)

    def key_records(self, at: datetime, start: int, end: int) -> list[KeyRecord]:
        """Return the keys with these numbers."""
        return [
            KeyRecord(
                token=self.token(number),
                key_name=f"sk-...{number % 10_000:04d}",
                created_at=at,
                updated_at=at,
                created_by=_MADE_BY,
                key_alias=f"key {number}",
                user_id=self.user(number),
                team_id=self.team(number),
                tags=self.tags(number),
            )
            for number in range(start, min(end, self.size.keys))
        ]

    def user_records(self, at: datetime) -> list[UserRecord]:
        """Return the users."""
        return [
            UserRecord(f"user-{number:06d}", at, at, _MADE_BY, _MADE_BY, user_email=f"user-{number:06d}@example.com")
            for number in range(self.size.users)
        ]

    def team_records(self, at: datetime) -> list[TeamRecord]:
        """Return the teams."""
        return [
            TeamRecord(
                f"team-{number:05d}",
                at,
                at,
                _MADE_BY,
                _MADE_BY,
                team_alias=f"team {number}",
                organization_id=self.organization(number),
            )
            for number in range(self.size.teams)
        ]

    def organization_records(self, at: datetime) -> list[OrganizationRecord]:
        """Return the organizations."""
        return [
            OrganizationRecord(f"organization-{number:04d}", at, at, _MADE_BY, _MADE_BY)
            for number in range(self.size.organizations)
        ]

    def members(self) -> Iterator[Member]:
        """Return the membership of each user in the team of its first key."""
        for number in range(self.size.users):
            team, user = self.team(number), self.user(number)
            if team is not None and user is not None:
                yield Member(team, user)
