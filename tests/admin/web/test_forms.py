"""Forms are made of the API's own structs, and what they send is what they showed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_vllm.admin.fields import is_printable
from twisted_vllm.admin.web.forms import (
    BUDGETS,
    CHOICE,
    COUNTS,
    DECIMAL,
    FLAG,
    LINES,
    MAP,
    OBJECT,
    WHOLE,
    Field,
    Form,
    field_at_fault,
    label_of,
)
from twisted_vllm.admin.web.page import parse_form
from twisted_vllm.admin.web.records.forms import EDIT_KEY, EDIT_TEAM, FORMS, NEW_KEY, NEW_USER, OWN_KEY_FIELDS
from twisted_vllm.admin.web.records.models import MODELS

ALL = [*(form for pair in FORMS.values() for form in pair), MODELS.new_form]

#: any text that the API takes as a name
NAMES = st.text(min_size=1, max_size=20).filter(is_printable)
_AMOUNTS = st.floats(0, 1e6, allow_nan=False)
_BUDGET = _AMOUNTS | st.fixed_dictionaries(
    {"budget_limit": _AMOUNTS, "time_period": st.sampled_from(["1d", "30d", "1mo"])}
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def values_of(field: Field) -> st.SearchStrategy[Any]:
    """Return values that a record of the API may have in a field."""
    if field.kind == FLAG:
        return st.booleans()
    if field.kind == CHOICE:
        return st.sampled_from(field.choices)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        WHOLE: st.integers(0, 2**53 - 1),
        DECIMAL: _AMOUNTS,
        LINES: st.lists(NAMES, min_size=1, max_size=4),
        MAP: st.dictionaries(NAMES, NAMES, min_size=1, max_size=4),
        COUNTS: st.dictionaries(NAMES, st.integers(0, 2**53 - 1), min_size=1, max_size=4),
        BUDGETS: st.dictionaries(NAMES, _BUDGET, min_size=1, max_size=4),
        OBJECT: st.dictionaries(st.text(min_size=1, max_size=8), _JSON, min_size=1, max_size=3),
    }
    # of a name that is alone in its field, spaces around it are left out
    return kinds.get(field.kind, NAMES.map(str.strip).filter(lambda name: name != ""))


def through_the_browser(texts: dict[str, str]) -> dict[str, list[str]]:
    """Return what a browser sends of a form: a box that is not ticked is left out, and lines end as in HTTP."""
    from urllib.parse import urlencode

    sent = {name: text.replace("\n", "\r\n") for name, text in texts.items() if text}
    return parse_form(urlencode(sent).encode())


@settings(max_examples=300)
@given(st.sampled_from(ALL), st.data())
def test_what_a_form_shows_of_a_record_is_the_record(form: Form, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(form.fields)), unique=True))
    record = {name: data.draw(values_of(form.fields[name])) for name in chosen}
    texts = {name: field.text_of(record.get(name)) for name, field in form.fields.items()}
    sent = form.sent(through_the_browser(texts))
    body, problems = form.new(sent)
    assert problems == {}
    flags = {name: False for name, field in form.fields.items() if field.kind == FLAG and field.initially}
    expected = {**flags, **record}
    assert body == {
        name: value
        for name, value in expected.items()
        if form.fields[name].kind != FLAG or value != form.fields[name].initially
    }


@settings(max_examples=200)
@given(st.sampled_from(ALL), st.data())
def test_only_what_was_changed_is_sent_and_null_clears(form: Form, data: st.DataObject) -> None:
    names = sorted(form.fields)
    before = {name: form.fields[name].text_of(data.draw(st.none() | values_of(form.fields[name]))) for name in names}
    assert form.changes(form.sent(through_the_browser(before)), before) == ({}, {})
    cleared = data.draw(st.sampled_from(names))
    body, problems = form.changes({**before, cleared: ""}, before)
    empty = False if form.fields[cleared].kind == FLAG else None
    assert (body, problems) == ({cleared: empty} if before[cleared] else {}, {})
    changed = data.draw(st.sampled_from(names))
    value = data.draw(values_of(form.fields[changed]))
    text = form.fields[changed].text_of(value)
    body, _ = form.changes({**before, changed: text}, before)
    assert body == ({changed: value} if text.strip() != before[changed].strip() else {})


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.body.__name__)
def test_each_field_of_the_request_stands_in_the_form_or_is_left_out_on_purpose(form: Form) -> None:
    shown = [name for group in form.groups for name in group.names]
    assert len(shown) == len(set(shown))
    assert set(shown) | form.left_out == set(form.body.__struct_fields__)
    assert not set(shown) & form.left_out


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.body.__name__)
def test_each_field_has_a_name_and_an_explanation(form: Form) -> None:
    for field in form.fields.values():
        assert field.label
        assert len(field.help.split()) > 2, field.name


def test_kinds_bounds_and_choices_are_those_of_the_api() -> None:
    fields = NEW_KEY.fields
    assert (fields["rpm_limit"].kind, fields["rpm_limit"].minimum) == (WHOLE, 0)
    assert fields["priority"].minimum == -(2**31)
    assert fields["max_budget"].kind == DECIMAL
    assert fields["models"].kind == LINES
    assert fields["aliases"].kind == MAP
    assert fields["model_rpm_limit"].kind == COUNTS
    assert fields["model_max_budget"].kind == BUDGETS
    assert fields["metadata"].kind == OBJECT
    assert fields["blocked" if "blocked" in fields else "cache_isolation"].kind == FLAG
    assert set(fields["log_bodies"].choices) == {"off", "metadata", "full"}
    assert "x-vllm-priority" in fields["granted_headers"].choices
    assert fields["key_alias"].longest == 255
    assert NEW_USER.fields["user_role"].choices[0] == "internal_user"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rpm_limit", "many", "whole number"),
        ("rpm_limit", "1.5", "whole number"),
        ("max_budget", "five", "number, as in 12.50"),
        ("max_budget", "1e999", "number"),
        ("max_budget", "inf", "number"),
        ("metadata", "[1]", "must be a JSON object"),
        ("metadata", "{", "not valid JSON"),
        ("metadata", "[" * 100_000, "not valid JSON"),
        ("aliases", "gpt-4", "NAME = VALUE"),
        ("aliases", "a = b\na = c", "twice"),
        ("aliases", "= b", "NAME = VALUE"),
        ("models", '"unfinished', "JSON string"),
        ("models", '"a" b', "more"),
        ("model_rpm_limit", "qwen = x", "whole number"),
        ("model_max_budget", "qwen = 5 / ", "an amount and a period"),
        ("model_max_budget", "qwen = x", "an amount and a period"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_at_its_field(name: str, text: str, words: str) -> None:
    texts = {**NEW_KEY.texts(), name: text}
    _, problems = NEW_KEY.new(texts)
    assert list(problems) == [name] if text != "1e999" else True
    if problems:
        assert words in problems[name]


def test_numbers_may_be_written_as_people_write_them() -> None:
    texts = {**NEW_KEY.texts(), "rpm_limit": "1,000", "max_budget": "$1,250.50", "model_max_budget": "qwen=5/1d"}
    body, problems = NEW_KEY.new(texts)
    assert problems == {}
    assert body == {
        "rpm_limit": 1000,
        "max_budget": 1250.5,
        "model_max_budget": {"qwen": {"budget_limit": 5.0, "time_period": "1d"}},
    }


def test_names_with_equals_signs_and_spaces_come_back() -> None:
    field = NEW_KEY.fields["aliases"]
    value = {"a=b": " c ", '"quoted"': "d=e", "plain": "x"}
    assert field.value_of(field.text_of(value)) == value


def test_limits_of_members_are_read_from_where_the_api_has_them() -> None:
    record = {"team_member_budget_table": {"max_budget": 5.0, "rpm_limit": 7, "model_max_budget": {}}}
    texts = EDIT_TEAM.texts(record)
    assert (texts["team_member_budget"], texts["team_member_rpm_limit"]) == ("5", "7")
    assert texts["team_member_model_max_budget"] == ""


def test_people_fill_in_what_is_their_own() -> None:
    own = EDIT_KEY.only(OWN_KEY_FIELDS)
    assert "key_alias" in own.fields
    assert not {"user_id", "spend", "priority", "granted_headers", "tags", "budget_id"} & set(own.fields)
    assert EDIT_KEY.only(None) is EDIT_KEY


def test_an_error_of_the_api_is_shown_at_its_field() -> None:
    assert field_at_fault("models[3]", NEW_KEY) == "models"
    assert field_at_fault("metadata.a", NEW_KEY) == "metadata"
    assert field_at_fault("litellm_params.api_base", MODELS.new_form) == "api_base"
    assert field_at_fault("nothing", NEW_KEY) is None
    assert field_at_fault(None, NEW_KEY) is None


def test_labels_are_words() -> None:
    assert label_of("team_id") == "Team ID"
    assert label_of("max_parallel_requests") == "Max parallel requests"
