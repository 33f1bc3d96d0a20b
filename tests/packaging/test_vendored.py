"""The JavaScript libraries that the console ships are what they are said to be."""

from __future__ import annotations

import hashlib

from tests.packaging.vendored import VENDOR, packages


def test_each_file_is_the_one_that_was_fetched_and_none_is_added() -> None:
    said = {name: file["sha256"] for package in packages().values() for name, file in package["files"].items()}
    there = {each.name for each in VENDOR.iterdir() if each.name != "vendored.toml"}
    assert there == set(said)
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in said} == said


def test_each_package_comes_with_its_licence_and_npms_hash() -> None:
    for package in packages().values():
        assert package["licence"] in ("0BSD", "MIT")
        assert package["integrity"].startswith("sha512-")
        assert any(file["path"].startswith("LICENSE") for file in package["files"].values())
