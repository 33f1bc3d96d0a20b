"""From what was written of servers to the servers: one equal value for each, whoever names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from twisted_vllm.config.address import Address
from twisted_vllm.config.models import Row
from twisted_vllm.config.passthrough import Override
from twisted_vllm.config.problems import nearest
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Limits, ModelEntry, Server, Timeouts


@attrs.frozen
class Fleet:
    """Every server that is used.

    Attributes:
        default: what serves a request that no entry names.
        models: the rows of ``model_list`` with their servers.
    """

    default: Server | None
    models: tuple[ModelEntry, ...]


def assemble(
    rows: Sequence[Row],
    default: Address | None,
    default_key: Secret | None,
    timeouts: Timeouts,
    limits: Limits,
    overrides: Mapping[Address, Override],
) -> Fleet:
    """Give each row its server; what cannot be is noted at the place of the row or of the override."""
    placed: list[tuple[Row, Address, Secret | None]] = []
    for row in rows:
        address = row.api_base or default
        if address is None:
            row.place.key("litellm_params").key("api_base").refuse(
                "is missing (write it, or set HOSTED_VLLM_API_BASE for all entries without one)"
            )
            continue
        # The default server's key goes to that server alone.
        key = row.api_key or (default_key if address == default else None)
        placed.append((row, address, key))

    longest = _longest_timeouts(placed)
    smallest = _smallest_caps(placed)
    _refuse_strangers(overrides, [address for _, address, _ in placed] + ([default] if default else []))

    def server(address: Address, key: Secret | None) -> Server:
        own = timeouts
        if (address, key) in longest:
            own = attrs.evolve(own, total=longest[address, key])
        caps: dict[str, Any] = {
            "max_concurrent_requests": smallest.get(address, limits.max_concurrent_requests),
            "max_queued_requests": limits.max_queued_requests,
        }
        if address in overrides:
            own = overrides[address].apply(own)
            caps.update(overrides[address].caps)
        return Server(
            name=address.name,
            host=address.host,
            port=address.port,
            tls=address.tls,
            base_path=address.base_path.encode("ascii"),
            host_header=address.host_header,
            api_key=key,
            timeouts=own,
            **caps,
        )

    return Fleet(
        default=server(default, default_key) if default else None,
        models=tuple(
            ModelEntry(row.model_name, row.model, server(address, key), row.weight, row.prices)
            for row, address, key in placed
        ),
    )


def _longest_timeouts(
    placed: Sequence[tuple[Row, Address, Secret | None]],
) -> dict[tuple[Address, Secret | None], float]:
    """Return the total timeout of each server that an entry gives one; where entries differ, the longest holds."""
    longest: dict[tuple[Address, Secret | None], float] = {}
    for row, address, key in placed:
        if row.timeout is None:
            continue
        known = longest.setdefault((address, key), row.timeout)
        if row.timeout != known:
            longest[address, key] = max(known, row.timeout)
            row.place.key("litellm_params").key("timeout").warn(
                "differs from another entry's of the same server: the longest is used for both"
            )
    return longest


def _smallest_caps(placed: Sequence[tuple[Row, Address, Secret | None]]) -> dict[Address, int]:
    """Return the cap of each address that an entry gives one; where entries differ, the smallest holds."""
    smallest: dict[Address, int] = {}
    for row, address, _ in placed:
        cap = row.max_parallel_requests
        if cap is None:
            continue
        known = smallest.setdefault(address, cap)
        if cap != known:
            smallest[address] = min(known, cap)
            row.place.key("litellm_params").key("max_parallel_requests").warn(
                "differs from another entry's of the same server: the smallest is used for both"
            )
    return smallest


def _refuse_strangers(overrides: Mapping[Address, Override], used: Sequence[Address]) -> None:
    names = {address.url: address for address in used}
    for address, override in overrides.items():
        if address not in used:
            close = nearest(address.url, names, cutoff=0.6)
            override.place.refuse(
                "is the api_base of no server here (write it as model_list does)"
                + (f"; did you mean '{close}'?" if close else "")
            )
