"""The parts of the command line that the filling and the measurements share."""

from __future__ import annotations

import argparse

from benchmarks.growth.population import Size
from benchmarks.growth.traffic import SPREADS, UNIFORM, Spread
from benchmarks.options import number, whole


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add the options of a deployment's size and of its traffic."""
    add, default = parser.add_argument, Size()
    most = 10_000_000
    add("--keys", type=whole(1, most), default=default.keys, metavar="N", help="keys [%(default)s]")
    add("--users", type=whole(0, most), default=default.users, metavar="N", help="users of the keys [%(default)s]")
    add("--teams", type=whole(0, most), default=default.teams, metavar="N", help="teams of the keys [%(default)s]")
    add("--end-users", type=whole(0, most), default=default.end_users, metavar="N", help="end users [%(default)s]")
    add("--rows", type=whole(0, 10**9), default=default.rows, metavar="N", help="rows of the ledger [%(default)s]")
    add("--months", type=number(0.01, 120), default=default.months, metavar="M", help="their months [%(default)s]")
    add("--spread", choices=SPREADS, default=UNIFORM, help="of requests over keys and end users [%(default)s]")
    add("--named", type=number(0, 1), default=0.5, metavar="SHARE", help="requests with an end user [%(default)s]")


def size_of(chosen: argparse.Namespace) -> Size:
    """Return the size that was chosen."""
    return Size(chosen.keys, chosen.users, chosen.teams, chosen.end_users, chosen.rows, chosen.months)


def spread_of(chosen: argparse.Namespace) -> Spread:
    """Return the spread that was chosen."""
    return Spread(chosen.spread, chosen.spread, chosen.named)
