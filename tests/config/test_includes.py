"""``include``: other files whose settings are read as if they stood in the first one."""

from __future__ import annotations

from pathlib import Path

import pytest

from twisted_vllm.config.includes import MAX_FILES, read_with_includes
from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError


def write(directory: Path, **files: str) -> str:
    for name, text in files.items():
        path = directory / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return str(directory / "main.yaml")


def entry(name: str) -> str:
    return (
        f"model_list: [{{model_name: {name}, litellm_params: {{model: hosted_vllm/m, api_base: 'http://{name}'}}}}]\n"
    )


def refusal(file: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read_with_includes(file)
    return str(refused.value)


def test_lists_are_joined_and_sections_are_added(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        main="include: [more/models.yaml, keys.yaml]\n" + entry("a"),
        more__models="include: [last.yaml]\n" + entry("b"),
        more__last=entry("c"),
        keys="general_settings: {master_key: sk-1}\n",
    )
    settings = load(file=file, environ={})
    assert [model.model_name for model in settings.models] == ["a", "b", "c"]
    assert settings.master_key is not None
    assert settings.warnings == ()


def test_a_name_may_stand_beside_the_first_file_and_each_file_is_read_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        main="include: [more/one.yaml]\n" + entry("a"),
        more__one="include: [two.yaml, ../main.yaml, one.yaml]\n",
        two=entry("b"),
    )
    assert [each["model_name"] for each in read_with_includes(file)["model_list"]] == ["a", "b"]


def test_a_section_in_two_files_is_refused_because_one_would_be_forgotten(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        main="include: [other.yaml]\ngeneral_settings: {master_key: sk-1}\n",
        other="general_settings: {allowed_ips: [10.0.0.1]}\n",
    )
    assert refusal(file) == (
        f"general_settings: stands in {file} and in {tmp_path / 'other.yaml'}, which it includes "
        "(keep it in one of them)"
    )


@pytest.mark.parametrize("names", ["other.yaml", "{a: b}", "[1]", "['']"])
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, names: str) -> None:
    assert refusal(write(tmp_path, main=f"include: {names}\n")).startswith("include: must be a list of file names in ")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, main="include: [gone.yaml]\n")).startswith(
        f"{tmp_path / 'gone.yaml'}: cannot be read: No such file"
    )


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    files = {f"f{number}": f"include: [f{number + 1}.yaml]\n" for number in range(MAX_FILES + 1)}
    assert refusal(write(tmp_path, main="include: [f0.yaml]\n", **files)).startswith("include: names more than 100")
