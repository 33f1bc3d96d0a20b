"""Paths of fields in a body."""

from __future__ import annotations

import pytest

from twisted_vllm.config.body_paths import BadPath, Step, parse_path


def test_a_path_is_read() -> None:
    assert parse_path("metadata.secret") == (Step("metadata"), Step("secret"))
    assert parse_path("messages[].content[type=image_url]") == (
        Step("messages", True),
        Step("content", True, "type", "image_url"),
    )


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a[x=]", "a[=y]", "a]b", "a[]b", "a." * 17 + "a"]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(BadPath):
        parse_path(path)
