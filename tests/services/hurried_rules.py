"""The alerting rules that operators use, with each minute of theirs made a second, so that a test can wait for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[2] / "config" / "prometheus" / "alerts.yml"

#: how much faster time goes
HURRY = 60
_MILLISECONDS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: the ranges and offsets of an expression
_DURATION = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]")


def hurried(duration: str) -> str:
    """Return a duration as Prometheus writes it, divided by `HURRY`."""
    return f"{int(duration[:-1]) * _MILLISECONDS[duration[-1]] // HURRY}ms"


def every_rule() -> list[dict[str, Any]]:
    """Return the rules as they are."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def write_hurried_rules(file: Path) -> None:
    """Write the rules with shorter times: ``for``, the ranges in brackets, and ``offset``. Nothing else differs."""
    content = yaml.safe_load(RULES.read_text("utf-8"))
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _DURATION.sub(lambda found: hurried(found[0]), rule["expr"])
            texts = rule["annotations"]
            texts["description"] = _DURATION.sub(lambda found: hurried(found[0]), texts["description"])
            if "for" in rule:
                rule["for"] = hurried(rule["for"])
    file.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
