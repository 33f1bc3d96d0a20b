"""What LiteLLM's rows become here: nothing that restricts somebody is dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.litellm_import.rows import NOW, budget_row, converted, key_row, team_row, texts, token_of, user_row
from twisted_vllm.admin.fields import is_printable
from twisted_vllm.litellm_import.notes import Notes, Outcome
from twisted_vllm.litellm_import.restrictions import IN_METADATA
from twisted_vllm.money import PICODOLLARS
from twisted_vllm.ratelimit.allowance import Allowance, ModelBudget

HASH = token_of("sk-a-key-of-litellm")


def the_key(**values: Any) -> tuple[Any, Notes]:
    found, notes = converted(keys=[key_row(**values)])
    [key] = found.keys
    return key, notes


def test_a_key_keeps_its_hash_so_that_it_keeps_working() -> None:
    key, notes = the_key(key_alias="ada", expires=datetime(2027, 1, 1), created_at=datetime(2025, 5, 5))
    assert key.token == HASH
    assert (key.key_alias, key.key_name, key.blocked) == ("ada", "sk-...tllm", False)
    assert key.expires == datetime(2027, 1, 1, tzinfo=UTC)
    assert key.created_at == datetime(2025, 5, 5, tzinfo=UTC)
    assert list(notes) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rpm_limit": 5, "tpm_limit": 7, "max_parallel_requests": 2}, Allowance(rpm=5, tpm=7, parallel=2)),
        ({"max_budget": 2.5, "budget_duration": "30d"}, Allowance(max_budget=2_500_000_000_000, budget_duration="30d")),
        ({"max_budget": 1, "budget_duration": "daily"}, Allowance(max_budget=PICODOLLARS, budget_duration="1d")),
        ({"metadata": {"model_rpm_limit": {"qwen": 3}}}, Allowance(model_rpm={"qwen": 3})),
        ({"rpm_limit": 2**63 - 1}, Allowance(rpm=2**53 - 1)),
        ({"max_budget": 1e15}, Allowance(max_budget=9_000_000 * PICODOLLARS)),
        ({"max_budget": float("inf")}, Allowance()),
        ({"max_budget": float("nan")}, Allowance(max_budget=0)),
        ({"max_budget": -1.0}, Allowance(max_budget=0)),
        (
            {"model_max_budget": {"qwen": {"budget_limit": 0.5, "time_period": "1d"}}},
            Allowance(model_budgets={"qwen": ModelBudget(PICODOLLARS // 2, "1d")}),
        ),
        (
            {"model_max_budget": '{"qwen": {"max_budget": 2, "budget_duration": null}}'},
            Allowance(model_budgets={"qwen": ModelBudget(2 * PICODOLLARS)}),
        ),
    ],
)
def test_limits_are_kept(values: dict[str, Any], expected: Allowance) -> None:
    key, notes = the_key(**values)
    assert key.allowance == expected
    assert not key.blocked
    assert list(notes) == []


def test_a_period_that_is_no_duration_makes_the_budget_endless_and_is_told() -> None:
    key, notes = the_key(max_budget=1.0, budget_duration="now and then")
    assert key.allowance == Allowance(max_budget=PICODOLLARS)
    assert texts(notes, Outcome.LESS) == [
        f'key "sk-...tllm" ({HASH[:8]}): budget_duration: its value cannot be used here, so its budget never begins '
        "anew"
    ]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([], ()),
        (["qwen", "llama-*"], ("qwen", "llama-*")),
        (["all-proxy-models"], ()),
        (["all-team-models", "qwen"], ()),
    ],
)
def test_the_models_mean_the_same(models: list[str], expected: tuple[str, ...]) -> None:
    assert the_key(models=models)[0].models == expected


def test_an_access_group_adds_its_models_to_a_list_and_nothing_to_an_empty_one() -> None:
    group = {"access_group_id": "g", "access_model_names": ["mixtral"]}
    keys = [
        key_row("sk-with-a-list-00", models=["qwen"], access_group_ids=["g"]),
        key_row("sk-without-a-list", access_group_ids=["g"]),
    ]
    found, notes = converted(keys=keys, access_groups=[group])
    assert [key.models for key in found.keys] == [("qwen", "mixtral"), ()]
    assert list(notes) == []


RESTRICTING = [
    {"metadata": {"guardrails": ["pii"]}},
    {"metadata": {"enforced_params": ["user"]}},
    {"metadata": {"tag_rpm_limit": {"x": 1}}},
    {"metadata": {"end_user_budget_id": "b"}},
    {"policies": ["p"]},
    {"tpd_limit": 5},
    {"budget_limits": [{"budget_duration": "1d", "max_budget": 1}]},
    {"model_max_budget": {"qwen": {"max_budget": 1, "rpm_limit": 2}}},
    {"models": ["no-default-models"]},
    {"allowed_routes": ["management_routes"]},
    {"allowed_routes": ["mcp_routes", "/a?b"]},
    {"a_column_of_a_newer_litellm": {"limit": 1}},
    {"rpm_limit": "many"},
    {"team_id": "x" * 300},
]


@pytest.mark.parametrize("values", RESTRICTING, ids=lambda values: next(iter(values)))
def test_what_restricts_a_key_and_does_not_exist_here_blocks_it(values: dict[str, Any]) -> None:
    key, notes = the_key(**values)
    assert key.blocked
    [told] = texts(notes, Outcome.BLOCKED)
    assert told.startswith(f'key "sk-...tllm" ({HASH[:8]}): ')
    assert HASH not in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"config": {"model_list": [1]}}, "config"),
        ({"metadata": {"logging": [{"secret": "sk-0123456789abcdefg"}]}}, "logging"),
        ({"permissions": {"get_spend_routes": True}}, "permissions"),
        ({"key_alias": "sk-looks-like-a-key"}, "key_alias: its value cannot be used here"),
        ({"allowed_routes": ["llm_api_routes", "management_routes"]}, "allowed_routes: management_routes"),
        ({"auto_rotate": True}, "auto_rotate"),
    ],
)
def test_what_restricts_nobody_is_left_out_and_told(values: dict[str, Any], told: str) -> None:
    key, notes = the_key(**values)
    assert not key.blocked
    [text] = texts(notes, Outcome.LESS)
    assert text.endswith(f": {told}")
    assert "0123456789abcdefg" not in text + repr(key.metadata)


def test_a_route_rule_of_administrators_never_makes_a_key_administer() -> None:
    key, _ = the_key(allowed_routes=["llm_api_routes", "management_routes", "management"])
    assert key.allowed_routes == ("llm_api_routes",)
    assert not key.manages


def test_labels_move_out_of_the_metadata_and_the_rest_stays() -> None:
    key, _ = the_key(metadata={"tags": ["gold"], "cost_center": 7})
    assert key.tags == ("gold",)
    assert key.metadata == {"cost_center": 7}


@pytest.mark.parametrize("table", ["users", "teams", "projects", "organizations", "object_permissions", "tags"])
def test_what_restricts_an_owner_blocks_its_keys(table: str) -> None:
    rows: dict[str, Any] = {
        "users": [user_row(policies=["p"])],
        "teams": [team_row(tpd_limit=9)],
        "projects": [{"project_id": "p", "models": ["qwen"]}],
        "organizations": [{"organization_id": "o", "budget_id": "small", "object_permission_id": "op"}],
        "object_permissions": [{"object_permission_id": "op", "models": ["qwen"]}],
        "tags": [{"tag_name": "gold", "budget_id": "small"}],
    }
    needed = {"organizations": ["organizations", "object_permissions"]}.get(table, [table])
    key = key_row(
        user_id="ada",
        team_id="blue",
        project_id="p",
        organization_id="o",
        object_permission_id="op" if table == "object_permissions" else None,
        metadata={"tags": ["gold"]},
    )
    found, _ = converted(keys=[key], budgets=[budget_row()], **{name: rows[name] for name in needed})
    [made] = found.keys
    # a blocked team refuses all its keys
    assert made.blocked or [team.blocked for team in found.teams] == [True]


def test_no_default_models_of_a_user_blocks_its_keys_outside_teams_alone() -> None:
    found, _ = converted(
        users=[user_row(models=["no-default-models"])],
        teams=[team_row()],
        keys=[key_row("sk-personal-00000", user_id="ada"), key_row("sk-of-a-team-0000", user_id="ada", team_id="blue")],
    )
    assert [key.blocked for key in found.keys] == [True, False]
    assert found.users[0].models == ()


def test_a_budget_is_shared_as_in_litellm() -> None:
    found, _ = converted(
        budgets=[budget_row(max_budget=3.0, budget_duration="1mo")],
        keys=[key_row(budget_id="small", spend=1.0), key_row("sk-without-budget", budget_id="gone")],
    )
    assert found.budgets[0].allowance == Allowance(max_budget=3 * PICODOLLARS, budget_duration="1mo")
    assert [key.budget_id for key in found.keys] == ["small", None]
    assert found.spent[0].allowance.budget_duration == "1mo"


def test_a_budget_with_a_limit_that_does_not_exist_here_blocks_who_names_it() -> None:
    found, notes = converted(budgets=[budget_row(tpd_limit=4)], keys=[key_row(budget_id="small")])
    assert found.keys[0].blocked
    assert texts(notes, Outcome.BLOCKED)[0].endswith('tpd_limit of budget "small"')


def test_the_members_of_a_team_have_its_budget_for_members_unless_they_have_their_own() -> None:
    team = team_row(
        metadata={"team_member_budget_id": "small"},
        members_with_roles='[{"user_id": "ada", "role": "admin"}, {"user_id": "bob", "role": "user"}]',
    )
    found, _ = converted(
        budgets=[budget_row(max_budget=1.0), budget_row("large", max_budget=9.0)],
        teams=[team],
        memberships=[{"user_id": "bob", "team_id": "blue", "budget_id": "large", "spend": 2.0}],
    )
    assert [(each.user_id, each.role, each.budget_id) for each in found.members] == [
        ("ada", "admin", "small"),
        ("bob", "user", "large"),
    ]
    assert [(each.kind, each.id) for each in found.spent] == [("member", "blue\x1fbob")]
    assert found.teams[0].metadata == {}


def test_a_team_keeps_its_aliases_models_and_organization() -> None:
    found, _ = converted(
        organizations=[{"organization_id": "o", "organization_alias": "Org", "budget_id": "small", "models": ["qwen"]}],
        aliases=[{"id": 4, "aliases": {"gpt-4": "qwen"}}],
        teams=[team_row(organization_id="o", model_id=4, models=["qwen"], team_alias="Blue")],
    )
    [team] = found.teams
    assert (team.team_alias, team.organization_id, team.models) == ("Blue", "o", ("qwen",))
    assert team.aliases == {"gpt-4": "qwen"}
    assert found.organizations[0].models == ("qwen",)


@pytest.mark.parametrize(
    ("row", "blocked"),
    [
        ({"blocked": True}, True),
        ({"blocked": False, "default_model": "qwen"}, False),
        ({"blocked": False, "models": ["qwen"]}, True),
        ({"blocked": False, "allowed_model_region": "eu"}, True),
    ],
)
def test_an_end_user_is_kept_and_blocked_by_what_does_not_exist_here(row: dict[str, Any], blocked: bool) -> None:
    found, _ = converted(end_users=[{"user_id": "eve", "spend": 0.0, **row}])
    assert [user.blocked for user in found.end_users] == [blocked]


def test_spend_counts_in_the_period_unless_it_is_over() -> None:
    running, over = NOW + timedelta(days=3), NOW - timedelta(days=1)
    found, _ = converted(
        keys=[
            key_row("sk-running-period", spend=1.5, max_budget=9.0, budget_duration="7d", budget_reset_at=running),
            key_row("sk-period-is-over", spend=1.5, total_spend=4.0, budget_duration="7d", budget_reset_at=over),
        ]
    )
    assert [(each.spend / PICODOLLARS, each.total / PICODOLLARS) for each in found.spent] == [(1.5, 1.5), (0.0, 4.0)]


def test_a_former_value_of_a_key_works_until_litellm_would_refuse_it() -> None:
    rows = [
        {"token": token_of(name), "active_token_id": HASH, "revoke_at": NOW + timedelta(hours=hours)}
        for name, hours in (("still", 1), ("no more", -1))
    ]
    found, _ = converted(keys=[key_row()], former_keys=rows)
    assert [each.token for each in found.former] == [token_of("still")]


def test_sessions_of_the_web_page_and_the_master_key_are_not_copied() -> None:
    found, notes = converted(
        master_token=token_of("sk-master"),
        keys=[key_row("sk-master"), key_row("sk-a-session", team_id="litellm-dashboard"), key_row(token="sk-unhashed")],
    )
    assert found.keys == []
    assert [text.partition(": ")[2] for text in texts(notes, Outcome.SKIPPED)] == [
        "it is the master key",
        "each is one session",
        "its token is no SHA-256: LiteLLM hashed no key with it",
    ]


def test_an_id_that_cannot_be_one_here_skips_its_owner_and_blocks_the_keys() -> None:
    found, notes = converted(users=[user_row("sk-as-an-id-0000000")], keys=[key_row(user_id="sk-as-an-id-0000000")])
    assert found.users == []
    assert found.keys[0].blocked
    assert "sk-as-an-id" not in "".join(f"{note.subject}{note.text}" for note in notes)


def test_what_the_whole_proxy_spent_is_no_user() -> None:
    found, _ = converted(users=[user_row("litellm-proxy-budget", spend=12.0)])
    assert found.users == []
    assert [(each.kind, each.id) for each in found.spent] == [("proxy", "proxy")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.none() | st.text(max_size=300)
#: what LiteLLM's own code never writes, and a hand in the database may, by the types of the columns
COLUMNS = {
    **dict.fromkeys(
        ("key_name", "key_alias", "user_id", "team_id", "budget_duration", "budget_id", "project_id"), TEXT
    ),
    **dict.fromkeys(("aliases", "config", "permissions", "model_max_budget", "router_settings", "budget_limits"), JSON),
    **dict.fromkeys(("models", "allowed_routes", "access_group_ids", "policies"), st.none() | st.lists(st.text())),
    **dict.fromkeys(("max_parallel_requests", "tpm_limit", "rpm_limit", "tpd_limit"), st.none() | st.integers()),
    **dict.fromkeys(("spend", "max_budget", "total_spend"), st.none() | st.floats()),
    "metadata": JSON | st.dictionaries(st.sampled_from(sorted(IN_METADATA)), JSON, max_size=3),
    "blocked": st.none() | st.booleans(),
    "expires": st.none() | st.datetimes(),
}


@given(st.fixed_dictionaries({}, optional=COLUMNS))
def test_no_row_of_a_key_breaks_an_import(values: dict[str, Any]) -> None:
    found, notes = converted(keys=[key_row(**values)])
    for key in found.keys:
        assert key.token == HASH
        assert not key.manages
        msgspec.json.encode([key.models, key.aliases, key.metadata, key.tags])
    assert all(note.subject.isprintable() and note.text.isprintable() for note in notes)


def test_what_is_not_copied_blocks_what_it_restricted() -> None:
    found, _ = converted(
        budgets=[budget_row("two\nlines", rpm_limit=1)],
        organizations=[{"organization_id": "a\x1fb", "models": ["qwen"]}],
        keys=[key_row("sk-1", budget_id="two\nlines"), key_row("sk-2", organization_id="a\x1fb"), key_row("sk-3")],
    )
    assert [key.blocked for key in found.keys] == [True, True, False]
    assert [(key.budget_id, key.organization_id) for key in found.keys] == [(None, None)] * 3


def test_a_budget_for_a_model_that_has_no_such_name_blocks() -> None:
    for name in ("a\x1fb", "../qwen", "qwen*"):
        key, _ = the_key(model_max_budget={name: 1})
        assert (key.blocked, key.allowance.model_budgets) == (True, {})


NAMES = st.text(max_size=300) | st.sampled_from(["a\x1fb", "a\nb", "sk-a-key-that-stands-where-a-name-should"])
ANY = st.none() | NAMES
OF_ALL = {
    **dict.fromkeys(("budget_id", "organization_id", "user_role", "user_email", "user_alias", "team_alias"), ANY),
    **dict.fromkeys(("organization_alias", "alias", "budget_duration", "model_id"), ANY),
    **dict.fromkeys(("metadata", "model_max_budget", "members_with_roles", "default_model"), JSON),
    **dict.fromkeys(("models", "teams"), st.none() | st.lists(NAMES, max_size=3)),
    **dict.fromkeys(("rpm_limit", "tpm_limit"), st.none() | st.integers()),
    **dict.fromkeys(("spend", "max_budget"), st.none() | st.floats()),
}


@given(NAMES, NAMES, st.fixed_dictionaries({}, optional=OF_ALL), st.dictionaries(NAMES, NAMES, max_size=2))
def test_no_row_of_any_table_breaks_an_import_or_smuggles_a_name(
    name: str, other: str, values: dict[str, Any], aliases: dict[str, str]
) -> None:
    members = [{"user_id": other, "role": "admin"}, values.get("members_with_roles")]
    found, notes = converted(
        budgets=[{**values, "budget_id": name}],
        organizations=[{"models": [], **values, "organization_id": name}],
        organization_members=[{"organization_id": name, "user_id": other, "user_role": values.get("user_role")}],
        users=[user_row(name, **values)],
        teams=[team_row(name, **{**values, "members_with_roles": members, "model_id": "m"})],
        aliases=[{"id": "m", "aliases": aliases}],
        memberships=[{"team_id": name, "user_id": other, "spend": 1.0}],
        end_users=[{**values, "user_id": name}],
    )
    records = [*found.budgets, *found.organizations, *found.organization_members, *found.users, *found.teams]
    for record in (*records, *found.members, *found.end_users):
        for value in msgspec.to_builtins(record).values():
            assert not isinstance(value, str) or (is_printable(value) and not value.startswith("sk-")), record
        msgspec.json.encode(record)
    assert all(is_printable(each) for team in found.teams for pair in (team.aliases or {}).items() for each in pair)
    assert all(note.subject.isprintable() and note.text.isprintable() for note in notes)


def test_whoever_wants_no_texts_logged_has_none_logged_here() -> None:
    opted = {"logging": [{"callback_name": "langfuse", "callback_vars": {"turn_off_message_logging": True}}]}
    found, _ = converted(keys=[key_row(metadata=opted, team_id="blue")], teams=[team_row(metadata=opted)])
    assert found.keys[0].log_bodies == "off"
    assert found.teams[0].log_bodies == "off"
    key, _ = the_key(metadata={"logging": [{"callback_name": "langfuse"}]})
    assert key.log_bodies is None
