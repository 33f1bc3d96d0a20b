"""A batch of ledger rows as columns.

The writer's thread spends microseconds on a row, so work per row is done by column, in the interpreter's own loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.tables import DAY_US, STORED_SUMS
from twisted_vllm.usage.records import UsageRow, target_of

_json = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

#: in the order of `STORED_SUMS`
Sums = list[int]


@attrs.frozen(eq=False)
class UsageBatch:
    """Rows of requests.

    Attributes:
        columns: the values of each column of the table `usage`, in its order.
        times: when each request began, in microseconds since 1970.
        days: the same in days.
        payers: the id of each row's payer.
        targets: likewise.
        payer_texts: the payers' JSON by id.
        models: the model of each target, by the target's id.
        end_users: the end user of each row, or None.
        request_ids: the client's id of each row's request, or empty.
        response_ids: likewise of the answer.
        request_tags: the tags that the client gave each row.
        statuses: the status of each row.
        errors: the code of each row's error, or empty.
        measures: columns of the values that are added up, in the order of `STORED_SUMS`.
    """

    columns: Sequence[Sequence[Any]]
    times: Sequence[int]
    days: Sequence[int]
    payers: Sequence[int]
    targets: Sequence[int]
    payer_texts: Mapping[int, bytes]
    models: Mapping[int, str]
    end_users: Sequence[str | None]
    request_ids: Sequence[str]
    response_ids: Sequence[str]
    request_tags: Sequence[tuple[str, ...]]
    statuses: Sequence[int]
    errors: Sequence[str]
    measures: Sequence[Sequence[int]]

    @classmethod
    def of(cls, rows: Sequence[UsageRow], references: References) -> UsageBatch:
        """Turn rows into columns.

        Args:
            rows: at least one.
            references: assigns ids to payers and targets.
        """
        column: dict[str, Sequence[Any]] = dict(
            zip(UsageRow.__struct_fields__, zip(*map(_astuple, rows), strict=True), strict=True)
        )
        requests = column["requests"]
        successes = [
            count if outcome == "completed" and status < 400 else 0
            for outcome, status, count in zip(column["outcome"], column["status"], requests, strict=True)
        ]
        payer_texts, target_texts = list(map(bytes, column["payer"])), list(map(bytes, column["target"]))
        payers = list(map(references.payers.__getitem__, payer_texts))
        targets = list(map(references.targets.__getitem__, target_texts))
        measures = [requests, successes, *(column[name] for name in STORED_SUMS[2:])]
        end_users, request_ids, response_ids = column["end_user"], column["request_id"], column["response_id"]
        request_tags, errors = column["request_tags"], column["error"]
        column["payer"], column["target"] = payers, targets
        column["request_tags"] = [_json(each).decode() if each else None for each in column["request_tags"]]
        column["headers"] = [_json(each).decode() if each else None for each in column["headers"]]
        for name in ("spend_metadata", "response_id", "request_id", "error", "attempts", "details"):
            column[name] = [each or None for each in column[name]]
        column["requests"] = [None if each == 1 else each for each in requests]
        return cls(
            columns=list(column.values()),
            times=column["time"],
            days=_days(column["time"]),
            payers=payers,
            targets=targets,
            payer_texts=dict(zip(payers, payer_texts, strict=True)),
            models={id: target_of(text).model for id, text in dict(zip(targets, target_texts, strict=True)).items()},
            end_users=end_users,
            request_ids=request_ids,
            response_ids=response_ids,
            request_tags=request_tags,
            statuses=column["status"],
            errors=errors,
            measures=measures,
        )


def _days(times: Sequence[int]) -> Sequence[int]:
    """Return times in microseconds as days."""
    first, last = min(times) // DAY_US, max(times) // DAY_US
    # one object for all, as nearly always
    return [first] * len(times) if first == last else [time // DAY_US for time in times]
