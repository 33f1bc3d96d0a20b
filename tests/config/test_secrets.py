"""Whatever the file holds, loading ends in settings or in a ``ConfigError``, and neither shows a secret."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.config_harness import Loader, default_server
from twisted_vllm.config.declaration import Section
from twisted_vllm.config.describe import describe
from twisted_vllm.config.load import DOCUMENT, load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.servers import ENTRY_SECTION
from twisted_vllm.config.settings import Settings

HUSH = "hush"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "http://gpu:8000/v1",
            "hosted_vllm/m",
            "openai/x",
            "os.environ/SET",
            "os.environ/UNSET",
            "os.environ/",
            "tcp:4000",
            "tcp:4000:interface=127.0.0.1",
            "unix:/x",
            "/a/*",
            "10.0.0.0/8",
            "sqlite:///f",
            "postgresql://u@h/d",
            "privileged",
            "debug",
        ]
    ),
)

secrets = st.sampled_from(
    [
        HUSH,
        f"{HUSH} {HUSH}",
        f"{HUSH}\n",
        f"http://u:{HUSH}@gpu:8000",
        f"http://{HUSH}:x@gpu/{HUSH}/",
        f"http://gpu?key={HUSH}",
        f"postgresql://u:{HUSH}@db/keys",
        f"postgresql://u:{HUSH}@db:{HUSH}/keys",
        f"mysql://u:{HUSH}@db/keys",
        f"sqlite://{HUSH}",
        f"os.environ/{HUSH} {HUSH}",
        "os.environ/SECRET",
        [HUSH],
        {"value": HUSH},
        [{HUSH + ":": HUSH}],
    ]
)


def is_url(secret: object) -> bool:
    return isinstance(secret, str) and "/" in secret


def section_of(section: Section[Any], name: str) -> Section[Any]:
    (found,) = [each.check for each in section.settings if each.name == name]
    assert isinstance(found, Section)
    return found


def mappings(section: Section[Any]) -> st.SearchStrategy[Any]:
    """Mappings with the names of a section, right and wrong, and values of any kind."""
    nested = {
        each.name: mappings(each.check)
        if isinstance(each.check, Section)
        else st.one_of(scalars, st.lists(scalars, max_size=3))
        for each in section.settings
        if each.name != "model_list"
    }
    for name in ("master_key", "api_key", "api_base", "database_url"):
        if name in nested:
            nested[name] = st.one_of(nested[name], secrets)
    known = st.fixed_dictionaries({}, optional=nested) if nested else st.just({})
    strange = st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), st.booleans()), scalars, max_size=1)
    return st.one_of(st.tuples(known, strange).map(lambda both: {**both[1], **both[0]}), scalars)


#: every place that may hold a secret holds one, or a good value so that what comes after it is reached
secret_places = st.fixed_dictionaries(
    {
        "general_settings": st.fixed_dictionaries(
            {"master_key": secrets | st.just("sk-1"), "database_url": secrets | st.just("sqlite:///f")}
        ),
        "model_list": st.lists(
            st.fixed_dictionaries(
                {
                    "model_name": st.just("a"),
                    "litellm_params": st.fixed_dictionaries(
                        {
                            "model": st.just("hosted_vllm/m"),
                            "api_base": secrets | st.just("http://gpu"),
                            "api_key": secrets | st.just("k"),
                        }
                    ),
                }
            ),
            max_size=2,
        ),
        "passthrough": st.fixed_dictionaries(
            {
                "api_base": secrets | st.just("http://gpu"),
                "api_key": secrets | st.just("k"),
                "servers": st.dictionaries(secrets.filter(is_url) | st.just("http://gpu"), st.just({}), max_size=2),
            }
        ),
        "environment_variables": st.dictionaries(st.sampled_from(["A", "LITELLM_MASTER_KEY"]), secrets) | secrets,
    }
)

entries = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(["a", "b", "a*", "", None, 7]),
        "litellm_params": mappings(section_of(ENTRY_SECTION, "litellm_params")),
    },
    optional={"model_info": scalars, "rpm": scalars, "wieght": scalars},
)

#: documents with the right and wrong names at every level
shapes = st.tuples(mappings(DOCUMENT), st.lists(entries | mappings(ENTRY_SECTION), max_size=3) | scalars).map(
    lambda both: {**both[0], "model_list": both[1]} if isinstance(both[0], dict) else both[0]
)

environments = st.fixed_dictionaries(
    {"SET": st.text(max_size=10), "SECRET": st.just(HUSH)},
    optional={
        name: st.one_of(st.text(max_size=10), secrets.filter(lambda secret: isinstance(secret, str)))
        for name in (
            "LITELLM_MASTER_KEY",
            "DATABASE_URL",
            "HOSTED_VLLM_API_BASE",
            "HOSTED_VLLM_API_KEY",
            "VLLM_PASSTHROUGH_API_BASE",
            "VLLM_PASSTHROUGH_MASTR_KEY",
        )
    },
)


@settings(max_examples=300, deadline=None)
@given(secret_places, environments)
def test_no_secret_is_shown_wherever_it_stands_and_whatever_else_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, written: Any, environ: dict[str, str]
) -> None:
    assert HUSH not in outcome(tmp_path_factory, written, environ)


@settings(max_examples=200, deadline=None)
@given(shapes, environments)
def test_any_document_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, written: Any, environ: dict[str, str]
) -> None:
    assert HUSH not in outcome(tmp_path_factory, written, environ)


@settings(max_examples=100, deadline=None)
@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=8))
def test_any_yaml_in_place_of_any_section_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    for written in (value, *({name: value} for name in DOCUMENT.names)):
        outcome(tmp_path_factory, written, {"HOSTED_VLLM_API_BASE": "http://gpu"})


def test_settings_with_every_secret_there_is_show_none(load_text: Loader) -> None:
    found = load_text(
        f"""
        general_settings: {{master_key: sk-{HUSH}, database_url: "postgresql://u:{HUSH}@db/keys?password={HUSH}"}}
        model_list: [{{model_name: a, litellm_params: {{model: hosted_vllm/a, api_key: {HUSH}}}}}]
        passthrough: {{api_base: "http://gpu", api_key: "{HUSH}"}}
        """,
        {"HOSTED_VLLM_API_KEY": HUSH},
    )
    assert default_server(found).api_key == Secret(HUSH)
    assert HUSH not in f"{found!r}{found}{describe(found)}"


def outcome(tmp_path_factory: pytest.TempPathFactory, written: Any, environ: dict[str, str]) -> str:
    """Load, and return everything that a person or a log may see of it."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(written), encoding="utf-8")
    try:
        found = load(file=str(file), environ=environ)
    except ConfigError as refusal:
        assert refusal.problems
        assert all(problem.message for problem in refusal.problems)
        return f"{refusal}{refusal!r}"
    assert isinstance(found, Settings)
    return f"{found!r}{describe(found)}"
