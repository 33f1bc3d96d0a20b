"""The example and the reference: made from the declarations, complete, loadable, and true about the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.config.config_harness import somewhere
from twisted_vllm.config import litellm, restricting
from twisted_vllm.config.checks import ROUTE_CLASSES, Checker, whole
from twisted_vllm.config.declaration import Inherited, Required, Section, Setting, section, setting, yaml_of
from twisted_vllm.config.describe import describe
from twisted_vllm.config.load import DOCUMENT, load, variables
from twisted_vllm.config.reference import FILES, example, main, reference, sections
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.sources import parse

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "config" / "example.yaml"
ENVIRON = {"LITELLM_MASTER_KEY": "sk-example-master", "HOSTED_VLLM_API_KEY": "example-server-key"}


@pytest.fixture(scope="module")
def loaded() -> Settings:
    return load(file=str(EXAMPLE), environ=ENVIRON)


def every_setting() -> Iterator[tuple[str, Setting]]:
    """Every setting of the file that is no mapping of others, with its path."""
    for path, _, found in [("", "", DOCUMENT), *sections()]:
        for each in found.settings:
            if not isinstance(each.check, Section) and each.items is None:
                yield f"{path}.{each.name}" if path else each.name, each


SETTINGS = dict(every_setting())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_declarations_make(name: str) -> None:
    assert (REPOSITORY / name).read_text("utf-8") == FILES[name](), "run make reference"


def test_the_command_writes_the_files_and_tells_which_are_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "config/example.yaml").write_text("passthrough: {}\n")
    capsys.readouterr()
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == "config/example.yaml is out of date: run make reference\n"
    assert (tmp_path / "config/example.yaml").read_text() == "passthrough: {}\n"


def test_the_example_loads_without_a_warning(loaded: Settings) -> None:
    assert loaded.warnings == ()


def test_the_example_needs_only_the_variables_that_it_names() -> None:
    named = set(re.findall(r"^[^#\n]*os\.environ/(\w+)", EXAMPLE.read_text("utf-8"), re.MULTILINE))
    assert named == set(ENVIRON)


def test_the_defaults_that_the_example_shows_are_the_defaults(loaded: Settings) -> None:
    bare = load(file=None, environ={"HOSTED_VLLM_API_BASE": "http://127.0.0.1:8000"} | ENVIRON)
    tracing = attrs.evolve(loaded.tracing, enabled=None, destinations=())
    assert attrs.evolve(loaded, models=(), tracing=tracing, sinks=()) == bare


@cache
def written_example() -> Any:
    return parse(EXAMPLE.read_text("utf-8"), "example.yaml")


@cache
def written_reference() -> str:
    return reference()


def written_at(path: str) -> Any:
    """What the example has at a path, in the first entry of a list and the first server; KeyError where it has none."""
    found = written_example()
    for name in path.replace("[]", ".[]").split("."):
        if name == "[]":
            found = found[0]
        elif name == "API_BASE":
            (found, *_) = found.values()
        else:
            found = found[name]
    return found


@pytest.mark.parametrize("path", [path for path in SETTINGS if ".model_info." not in path])
def test_every_setting_stands_in_the_example(path: str) -> None:
    written_at(path)


@pytest.mark.parametrize("path", [path for path in SETTINGS if "servers.API_BASE." in path and ".ssl_" not in path])
def test_the_example_shows_for_one_server_what_differs_for_it(path: str) -> None:
    default = SETTINGS[path].default
    # what each server has of its own has no value for all servers
    assert written_at(path) != (SETTINGS[default.path].default if isinstance(default, Inherited) else default)


def test_every_variable_and_every_class_of_routes_stands_in_the_example() -> None:
    text = EXAMPLE.read_text("utf-8")
    names = {name for each in variables() for name in (each.environment[0], each.environment[-1])}
    assert [name for name in sorted(names | set(ROUTE_CLASSES)) if name not in text] == []


def test_the_description_of_the_example_names_no_secret(loaded: Settings) -> None:
    assert not [line for line in describe(loaded) if any(secret in line for secret in ENVIRON.values())]


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_has_a_row_in_the_reference_with_its_default_and_its_variables(path: str) -> None:
    each = SETTINGS[path]
    place, _, name = path.rpartition(".")
    heading = f"## `{place}`" if place else "## The blocks of the file"
    _, _, after = written_reference().partition(f"\n{heading}\n")
    (row,) = re.findall(rf"^\| `{name}` \|.*$", after.partition("\n## ")[0], re.MULTILINE)
    if isinstance(each.default, Required):
        assert "| required |" in row
    elif isinstance(each.default, Inherited):
        assert f"| that of `{each.default.path}` |" in row
    else:
        assert f"| `{yaml_of(each.default)}` |" in row
    assert all(f"`{variable}`" in row for variable in each.environment)
    assert each.doc.partition(" ")[0] in row


@pytest.mark.parametrize("path", SETTINGS)
def test_a_default_is_a_value_that_the_file_may_hold(path: str) -> None:
    each = SETTINGS[path]
    if isinstance(each.default, (Required, Inherited)):
        return
    written = parse(f"setting: {yaml_of(each.default)}", "f.yaml")["setting"]
    assert each.check(written, somewhere()) == each.default


def test_no_two_settings_have_a_variable_in_common() -> None:
    names = [name for each in variables() for name in each.environment]
    assert len(names) == len(set(names))


def test_what_is_said_to_be_litellms_setting_is_one_that_the_gateway_knows() -> None:
    known = {
        "general_settings": litellm.GENERAL_SETTINGS | set(restricting.GENERAL_SETTINGS),
        "litellm_settings": litellm.LITELLM_SETTINGS | set(restricting.LITELLM_SETTINGS),
        "router_settings": litellm.ROUTER_SETTINGS | set(restricting.ROUTER_SETTINGS),
    }
    named = [each.litellm.split(".") for each in SETTINGS.values() if each.litellm]
    assert named
    assert [(block, name) for block, name in named if name not in known[block]] == []


@attrs.frozen
class Kitchen:
    """Settings of a made-up block."""

    beans: str = setting(
        Required("write a sort"), Checker(lambda value, place: str(value), "text"), "The sort.", example="robusta"
    )
    cups: int = setting(3, whole(), "Cups of coffee to keep ready | hot.", unit="cups")


def test_a_new_setting_needs_its_declaration_alone() -> None:
    document: Section[dict[str, Any]] = Section(
        dict, (Setting({}, section(Kitchen), "The kitchen.", name="kitchen", attribute="kitchen"),)
    )
    assert document({"kitchen": {"beans": "arabica"}}, somewhere("")) == {"kitchen": Kitchen("arabica", 3)}
    _, _, body = example(document).partition("\n\n")
    assert body.splitlines() == [
        "# The kitchen.",
        "kitchen:",
        "  # The sort.",
        "  beans: robusta  # example; required",
        "",
        "  # Cups of coffee to keep ready | hot.",
        "  cups: 3  # cups",
    ]
    _, _, body = reference(document).partition("## `kitchen`\n")
    assert body.partition("\n## ")[0].splitlines() == [
        "",
        "The kitchen.",
        "",
        "| Setting | Type | Default | Bounds | Unit | Description | LiteLLM's name |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `beans` | text | required |  |  | The sort. | the same |",
        "| `cups` | whole number | `3` | 1 or more | cups | Cups of coffee to keep ready \\| hot. | the same |",
    ]
