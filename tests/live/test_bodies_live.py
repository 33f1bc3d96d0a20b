"""The gateway reads from a body what vLLM reads: on each inference route, odd bodies through both.

``VLLM_PYTHON`` is the Python of a vLLM 0.32; no server is needed. ``ODD_BODIES`` is the number of bodies for each route
(2,000; the full run has 100,000), and ``ODD_SEED`` chooses them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import attrs
import pytest

from tests.bodies.json_texts import held
from tests.live.live_oracle import Job, Oracle
from tests.live.odd_bodies import FAMILIES, JSON_TYPE, SERVERS, Draft, odd_draft
from tests.live.odd_forms import AUDIO, FormDraft, odd_form
from twisted_vllm.api_routes import ModelPlace, PrefixCache, VllmRoute, classify
from twisted_vllm.bodies.edits import Edit, name_edit, salt_edit, splice, usage_edits
from twisted_vllm.bodies.json_body import BodyFacts, read_body
from twisted_vllm.bodies.multipart import find_model_in_form
from twisted_vllm.errors import BodyTooComplex, GatewayError, ModelNotFound, ModelUndetermined

BATCH = 250
#: seconds of CPU that the gateway may take for one body, however odd: ten times what any took
SLOWEST = 0.25
#: the gateway must read at least this share of the bodies that vLLM accepts: of odd forms it reads few
READ_SHARE, READ_FORMS = 0.75, 0.4
#: of each batch, this many are read again after the gateway's edits
EDITED = 40
#: vLLM's own default on completions
DEFAULT_LIMIT = 16
#: the length in tokens of the oracle's model
LONGEST = 10_000_000
NAME, SALT = "renamed", "s1"


@attrs.frozen
class Odd:
    """An odd body on its way through both readers."""

    route: str
    draft: Draft | FormDraft
    server: str = "generate"

    @property
    def job(self) -> Job:
        """What the oracle is asked."""
        content_type = self.draft.content_type if isinstance(self.draft, FormDraft) else JSON_TYPE
        return Job(self.route, content_type, self.draft.encode(), self.server)


def read(job: Job, row: VllmRoute) -> BodyFacts | None:
    """Return what the gateway reads; None if it refuses the body."""
    try:
        if job.route in AUDIO:
            return BodyFacts(model=find_model_in_form(job.body, job.content_type.encode("latin-1")))
        facts = read_body(job.body, row.fields)
    except (ModelNotFound, ModelUndetermined):
        return None
    return None if facts.model_repeated else facts


def read_held(job: Job, row: VllmRoute, random: Random, ours: BodyFacts | None) -> BodyFacts | None:
    """Return what the gateway reads of a large body, which arrives in pieces; None if it refuses the body.

    One that is too complex as a large body counts as one that was read in one piece, as `ours`.
    """
    cuts = sorted(random.randrange(len(job.body) + 1) for _ in range(random.randrange(4)))
    pieces = [job.body[start:end] for start, end in zip([0, *cuts], [*cuts, len(job.body)], strict=True)]
    try:
        facts = read_body(held(pieces), row.fields)
    except BodyTooComplex:
        return ours
    except (ModelNotFound, ModelUndetermined):
        return None
    return None if facts.model_repeated else facts


def disagreements(job: Job, row: VllmRoute, ours: BodyFacts | None, theirs: dict[str, Any] | None) -> list[str]:
    """Tell in which respects the gateway's reading allows more than vLLM's."""
    if ours is None or theirs is None:
        return []
    found = []
    # Amazon's container standards remove the model from the body
    model = "" if row.model is ModelPlace.HEADER or ours.model is None else ours.model.name
    if model != (theirs["model"] or ""):
        found.append("model")
    if job.route in AUDIO:
        return found
    if row.generates and theirs["sequences"]:
        if ours.choices < theirs["sequences"]:
            found.append("choices")
        if not _limits(ours.max_tokens, theirs["most_tokens"]):
            found.append("limit")
        if theirs["in_pieces"] and not ours.stream:
            found.append("stream")
        if row.stream_options:
            if ours.stream and not theirs["stream"]:
                found.append("no stream")
            if theirs["stream"] and ours.include_usage not in (None, theirs["include_usage"]):
                found.append("include_usage")
    # what is repeated is counted in bytes of the body, and vLLM may write the JSON of a state with spaces
    if ours.repeated_bytes < theirs["repeated"] / 2:
        found.append("repeated")
    if theirs["cache_salt"] is not None and row.prefix_cache is PrefixCache.SALTED and not ours.salted:
        found.append("cache_salt")
    return found


def _limits(ours: int | None, theirs: int | None) -> bool:
    """Tell whether the gateway's limit of a sequence is vLLM's, or larger.

    Where the gateway reads no limit, it assumes some tokens: more than vLLM's default, perhaps fewer than the body's.
    """
    if ours is None:
        return theirs is None or theirs <= DEFAULT_LIMIT
    return ours >= (LONGEST if theirs is None else theirs)


def edited(job: Job, row: VllmRoute, facts: BodyFacts) -> bytes | None:
    """Return the body as the gateway would send it with another model, a salt and usage; None if it refuses it."""
    edits: list[Edit] = [name_edit(job.body, facts, NAME)]
    try:
        if row.prefix_cache is PrefixCache.SALTED:
            edits.append(salt_edit(job.body, facts, SALT))
    except GatewayError:
        return None
    if row.stream_options:
        edits += usage_edits(job.body, facts)
    return splice(job.body, edits)


def edit_faults(row: VllmRoute, before: dict[str, Any], after: dict[str, Any] | None) -> list[str]:
    """Tell which edits vLLM does not see, and what else they changed."""
    if after is None:
        return ["refused after the edits"]
    same = {"stream", "sequences", "most_tokens", "prompts", "priority", "user", "type"}
    found = [f"{name} changed" for name in sorted(same) if before[name] != after[name]]
    if row.model is ModelPlace.BODY and after["model"] != NAME:
        found.append("not renamed")
    if row.prefix_cache is PrefixCache.SALTED and not _salted(before, after):
        found.append("not salted")
    if row.stream_options and after["stream"] and not after["include_usage"]:
        found.append("no usage")
    return found


def _salted(before: dict[str, Any], after: dict[str, Any]) -> bool:
    own: str | None = before["cache_salt"]
    salt: str | None = after["cache_salt"]
    return salt == SALT if own is None else salt not in (None, own) and len(salt or "") == 64


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """vLLM's readers, in one process for all tests."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("this test needs vLLM's readers: set VLLM_PYTHON to the Python of a vLLM 0.32")
    started = Oracle(python)
    yield started
    started.stop()


def odd_bodies(route: str, random: Random, count: int) -> Iterator[Odd]:
    """Make odd bodies for a route."""
    for _ in range(count):
        draft = odd_form(random) if route in AUDIO else odd_draft(route, random)
        yield Odd(route, draft, random.choice(SERVERS) if route == "/invocations" else "generate")


def shrunk(odd: Odd, fault: str, oracle: Oracle, row: VllmRoute) -> Odd:
    """Return the smallest part of a body on which both still disagree."""
    while True:
        smaller = [attrs.evolve(odd, draft=draft) for draft in odd.draft.smaller()]
        answers = oracle.ask([each.job for each in smaller])
        for each, theirs in zip(smaller, answers, strict=True):
            if fault in disagreements(each.job, row, read(each.job, row), theirs):
                odd = each
                break
        else:
            return odd


@pytest.mark.parametrize("route", (*FAMILIES, *AUDIO))
def test_both_read_the_same(oracle: Oracle, route: str) -> None:
    if route not in oracle.routes:
        pytest.skip(f"this vLLM has no {route}: Cohere's chat needs the package cohere beside it")
    row = classify(b"POST", route.encode()).row
    count, seed = int(os.environ.get("ODD_BODIES", "2000")), os.environ.get("ODD_SEED", "0")
    bodies = odd_bodies(route, Random(f"{seed} {route}"), count)
    pieces = Random(f"{seed} {route} pieces")
    accepted = refused = 0
    slowest = 0.0
    began = time.monotonic()
    crashes: Counter[str] = Counter()
    found: dict[str, list[Odd]] = {}
    faults: Counter[str] = Counter()
    examples: dict[str, bytes] = {}
    with ThreadPoolExecutor(1) as executor:
        while odds := [odd for _, odd in zip(range(BATCH), bodies, strict=False)]:
            jobs = [odd.job for odd in odds]
            asked = executor.submit(oracle.ask, jobs)
            readings = []
            for job in jobs:
                at = time.thread_time()
                readings.append(read(job, row))
                slowest = max(slowest, time.thread_time() - at)
            changed: list[tuple[Job, dict[str, Any]]] = []
            for odd, job, ours, theirs in zip(odds, jobs, readings, asked.result(), strict=True):
                if theirs is None:
                    continue
                if "crash" in theirs:
                    kind, _, words = theirs["crash"].partition(":")
                    crashes[kind if kind != "AttributeError" else kind + words] += 1
                    continue
                accepted += 1
                refused += ours is None
                for fault in disagreements(job, row, ours, theirs):
                    found.setdefault(fault, []).append(odd)
                if route not in AUDIO:
                    large = read_held(job, row, pieces, ours)
                    assert (large is None) == (ours is None), job
                    assert disagreements(job, row, large, theirs) == disagreements(job, row, ours, theirs), job
                if ours is not None and route not in AUDIO and len(changed) < EDITED:
                    body = edited(job, row, ours)
                    if body is not None:
                        changed.append((attrs.evolve(job, body=body), theirs))
            for (job, before), after in zip(changed, oracle.ask([job for job, _ in changed]), strict=True):
                for fault in edit_faults(row, before, after):
                    faults[fault] += 1
                    examples.setdefault(fault, job.body)
    seconds = time.monotonic() - began
    print(
        f"\n{route}: {count} bodies in {seconds:.1f} s ({count / seconds:.0f}/s), accepted by vLLM {accepted}, "
        f"of these refused by the gateway {refused}, slowest reading {slowest * 1000:.1f} ms, vLLM's crashes {crashes}"
    )
    report = [
        f"{fault}: {len(odds)}, as\n  "
        + "\n  ".join(_told(shrunk(odd, fault, oracle, row), oracle, row) for odd in odds[:4])
        for fault, odds in found.items()
    ]
    # nothing that vLLM's code needs is missing from the oracle
    assert not any(kind.startswith("AttributeError") for kind in crashes), crashes
    assert not report, "\n".join(report)
    assert not faults, {fault: (number, examples[fault]) for fault, number in faults.items()}
    assert refused <= accepted * (1 - (READ_FORMS if route in AUDIO else READ_SHARE))
    assert accepted > count / 6
    assert slowest < SLOWEST


def _told(odd: Odd, oracle: Oracle, row: VllmRoute) -> str:
    job = odd.job
    return f"{job.body[:500]!r} on {odd.server}\n    gateway: {read(job, row)}\n    vLLM: {oracle.ask([job])[0]}"
