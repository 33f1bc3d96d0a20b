"""Checkers: each validates a value and converts it.

A checker takes a value and its place, and returns the converted value or raises ``Rejected``. A checker of a list or
mapping reports every wrong item and continues, so that all problems are reported at once. No message quotes a value: it
may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Generic, TypeVar

import attrs

from twisted_vllm.api_routes import RouteClass
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected, suggestion
from twisted_vllm.config.secret import HASH_PREFIX, Secret, hash_of
from twisted_vllm.field_policy.rules import EVERYTHING, MAX_LIMIT, parse_limited, parse_path

T = TypeVar("T")

#: a year: the maximum time in seconds
MAX_SECONDS = 31_536_000
#: the largest size or count, in bytes or pieces
MAX_WHOLE = 2**63 - 1
#: US dollars per token, second or request: a larger price is a typing error
MAX_PRICE = 10_000
#: US dollars of a budget: 64 bits of picodollars hold no more
MAX_DOLLARS = 9_000_000
#: stands for the origins of all web pages
ANY_ORIGIN = "*"
#: the classes of routes that a rule may name instead of a path
ROUTE_CLASSES = tuple(each.value for each in RouteClass)

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PERIOD = re.compile(r"[1-9][0-9]{0,4}(s|m|h|d|w)|[1-9][0-9]{0,3}mo")
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,31}://(?:[a-z0-9._~-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_HOST_PATTERN = re.compile(r"[a-z0-9*._-]{1,253}|\[?[0-9a-f:.*]{2,64}\]?")
_SECRET_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "cookie", "x-litellm-api-key", "api-key", "x-api-key")
) | {"sec-websocket-protocol"}


#: the most processes that serve clients, and the word for one on each core
MAX_WORKERS, AUTO = 256, "auto"


@attrs.frozen
class Checker(Generic[T]):
    """Validates and converts a value, and describes the accepted values for the reference.

    Attributes:
        check: returns the converted value; raises ``Rejected`` if it is not valid.
        kind: the kind of value in the file: ``whole number``.
        bounds: the accepted range: ``1 or more``; empty if all values are accepted.
        unit: the unit of the number, if the checker knows it: ``seconds``.
        null: the meaning of ``null``; empty if ``null`` is refused.
    """

    check: Callable[[object, Place], T]
    kind: str
    bounds: str = ""
    unit: str = ""
    null: str = ""

    def __call__(self, value: object, place: Place, /) -> T:
        return self.check(value, place)


def checker(kind: str, bounds: str = "", unit: str = "") -> Callable[[Callable[[object, Place], T]], Checker[T]]:
    """Make a checker of a function; the arguments are `Checker`'s attributes."""

    def make(check: Callable[[object, Place], T]) -> Checker[T]:
        return Checker(check, kind, bounds, unit)

    return make


def kind_of(value: object) -> str:
    """Return the kind of a value for a message; never the value itself."""
    words = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    if value is None:
        return "nothing"
    return "text" if isinstance(value, str) else words.get(type(value), "something else")


@checker("text")
def text(value: object, place: Place) -> str:
    """Check for text on one line."""
    if not isinstance(value, str):
        hint = " (put it into quotes)" if isinstance(value, (bool, int, float)) else ""
        raise Rejected(f"must be text, not {kind_of(value)}{hint}")
    if not value.strip():
        raise Rejected("must not be empty (write a value, or leave the setting out)")
    if not value.isprintable():
        raise Rejected("holds a line break or another control character (remove it)")
    return str(value)


@checker("text", "visible ASCII, no spaces")
def secret(value: object, place: Place) -> Secret:
    """Check for a credential that can be sent in a header."""
    found = text(value, place)
    if not _VISIBLE.fullmatch(found):
        raise Rejected("must be visible ASCII characters without spaces, as it is sent in a header")
    return Secret(found)


@checker("text", "visible ASCII, no spaces")
def master_key(value: object, place: Place) -> Secret:
    """Check for the administrator's key, or for ``sha256:`` and the 64 hex digits of its hash."""
    found = secret(value, place)
    if found.reveal().startswith(HASH_PREFIX) and hash_of(found) is None:
        raise Rejected('must have 64 hex digits after sha256: (printf %s "$KEY" | sha256sum)')
    return found


@checker("true or false")
def flag(value: object, place: Place) -> bool:
    """Check for true or false."""
    if isinstance(value, EnvironmentText):
        value = _FLAGS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise Rejected(f"must be true or false, not {kind_of(value)}")
    return value


def whole(minimum: int = 1, maximum: int = MAX_WHOLE) -> Checker[int]:
    """Return a checker for a whole number that is not below ``minimum`` and not above ``maximum``."""
    bounds = f"{minimum} or more" if maximum == MAX_WHOLE else f"{minimum} to {maximum:,}"

    @checker("whole number", bounds)
    def check(value: object, place: Place) -> int:
        if isinstance(value, EnvironmentText) and re.fullmatch(r"[0-9]{1,19}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            what = "a fraction" if isinstance(value, float) else kind_of(value)
            raise Rejected(f"must be a whole number, {bounds}, not {what}")
        if not minimum <= value <= maximum:
            raise Rejected("is too large" if value > maximum == MAX_WHOLE else f"must be {bounds}")
        return value

    return check


def seconds(*, zero: bool = False) -> Checker[float]:
    """Return a checker for a time in seconds above 0, or from 0 on."""
    lowest = "0 or more" if zero else "above 0"

    @checker("number", f"{lowest}, at most {MAX_SECONDS} (a year)", "seconds")
    def check(value: object, place: Place) -> float:
        if isinstance(value, EnvironmentText) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Rejected(f"must be a number of seconds {lowest}, not {kind_of(value)}")
        if not (value >= 0 if zero else value > 0):
            raise Rejected(f"must be a number of seconds {lowest}")
        if value > MAX_SECONDS:
            raise Rejected(f"must not be more than {MAX_SECONDS} seconds, a year")
        return float(value)

    return check


@checker("number", "above 0, at most 1")
def share(value: object, place: Place) -> float:
    """Check for a part of a whole."""
    if isinstance(value, EnvironmentText) and re.fullmatch(r"[01](\.[0-9]{1,9})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"must be a number above 0, at most 1, not {kind_of(value)}")
    if not 0 < value <= 1:
        raise Rejected("must be above 0 and at most 1, such as 0.25")
    return float(value)


def duration(minimum: str) -> Checker[float]:
    """Return a checker for a duration such as ``90d``, not below ``minimum``; it converts to seconds."""

    @checker("duration", f"{minimum} or more; a whole number and s, m, h, d or w")
    def check(value: object, place: Place) -> float:
        parts = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if parts is None:
            raise Rejected("must be a whole number and a unit, one of s, m, h, d and w (as in 90d)")
        found = float(int(parts[1]) * _DURATION_UNITS[parts[2]])
        if found < least:
            raise Rejected(f"must be {minimum} or more")
        return found

    smallest = _DURATION.fullmatch(minimum)
    assert smallest is not None, minimum
    least = int(smallest[1]) * _DURATION_UNITS[smallest[2]]
    return check


@checker("duration", "a whole number and s, m, h, d, w or mo")
def period(value: object, place: Place) -> str:
    """Check for a duration as the admin API has it, with calendar months, and return it as it is."""
    if not isinstance(value, str) or _PERIOD.fullmatch(value) is None:
        raise Rejected("must be a whole number and a unit, one of s, m, h, d, w and mo (as in 30d)")
    return str(value)


def amount(most: int) -> Checker[Decimal]:
    """Return a checker for an amount of dollars; a float counts as the shortest decimal that it prints as."""
    return Checker(partial(_amount, most=most), "decimal number", f"0 to {most}", "US dollars")


def _amount(value: object, place: Place, *, most: int) -> Decimal:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        # YAML 1.1 reads 1e-7 as text, like a quoted number
        found = Decimal(value.strip())
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"must be an amount of US dollars, 0 or more (such as 0.0000005 or 5e-7), not {kind_of(value)}")
    else:
        found = Decimal(repr(value))
    if not found.is_finite() or found < 0:
        raise Rejected("must be an amount of US dollars, 0 or more (such as 0.0000005 or 5e-7)")
    if found > most:
        raise Rejected(f"must not be more than {most} US dollars")
    return found


price = amount(MAX_PRICE)


@checker("header name")
def header_name(value: object, place: Place) -> str:
    """Check for the name of a header that may be stored, and return it in lower case."""
    found = text(value, place).lower()
    if not _HEADER_NAME.fullmatch(found):
        raise Rejected("must be the name of a header: letters, digits and hyphens")
    if found in _SECRET_HEADERS:
        raise Rejected("holds a credential, which is never kept")
    return found


@checker("route rule")
def route_rule(value: object, place: Place) -> str:
    """Check for a path, ``/prefix/*`` or the name of a class of routes."""
    found = text(value, place)
    if found in ROUTE_CLASSES:
        return found
    if not found.startswith("/"):
        classes = ", ".join(ROUTE_CLASSES)
        raise Rejected(f"must be a path that begins with / or one of {classes}{suggestion(found, ROUTE_CLASSES)}")
    if " " in found or "?" in found or "#" in found:
        raise Rejected("must be a path alone, without spaces, a query or a fragment")
    if "*" in found.removesuffix("/*"):
        raise Rejected("may have a * only at its end, after a slash (/prefix/*)")
    return found


@checker("field path")
def field_path(value: object, place: Place) -> str:
    """Check for the name of a field of a body, or a path to one; ``*`` is every field."""
    found = text(value, place)
    if found == EVERYTHING:
        return found
    try:
        parse_path(found)
    except ValueError as error:
        raise Rejected(str(error)) from None
    return found


@checker("field path")
def one_field_path(value: object, place: Place) -> str:
    """Check for the name of one field of a body, or a path to one."""
    found = field_path(value, place)
    if found == EVERYTHING:
        raise Rejected("must be one field")
    return found


@checker("mapping of fields to whole numbers", "0 or more, or null")
def field_limits(value: object, place: Place) -> Mapping[str, int | None]:
    """Check for limits of fields; ``null`` in place of a number lifts a default."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind_of(value)}")
    found: dict[str, int | None] = {}
    for name, most in value.items():
        here = place.key(name)
        if name == EVERYTHING:
            here.refuse("must be one field")
        if name == EVERYTHING or here.attempt(field_path, name) is None:
            continue
        try:
            parse_limited(name)
        except ValueError as error:
            here.refuse(str(error))
            continue
        if most is None:
            found[name] = None
        elif (number := here.attempt(whole(0), most)) is not None:
            found[name] = min(number, MAX_LIMIT)
    return found


@checker("scheme")
def url_scheme(value: object, place: Place) -> str:
    """Check for the scheme of a URL, and return it in lower case."""
    found = text(value, place).lower().removesuffix(":")
    if not _SCHEME.fullmatch(found):
        raise Rejected("must be the scheme of a URL alone (such as https)")
    return found


@checker("host pattern")
def host_pattern(value: object, place: Place) -> str:
    """Check for a host or an address, with ``*`` as wildcard, and return it in lower case."""
    found = text(value, place).lower()
    if not _HOST_PATTERN.fullmatch(found):
        raise Rejected("must be a host without scheme, port and path, with * as wildcard (such as *.example.com)")
    return found


@checker("origin")
def origin(value: object, place: Place) -> str:
    """Check for the origin of web pages, or ``*``, and return it in lower case, as a browser writes it."""
    found = text(value, place).lower()
    if found != ANY_ORIGIN and not _ORIGIN.fullmatch(found):
        raise Rejected("must be an origin, without a path (such as https://console.example.com)")
    return found.removesuffix(":443") if found.startswith("https:") else _without_80(found)


def _without_80(origin: str) -> str:
    return origin.removesuffix(":80") if origin.startswith("http:") else origin


@checker("network")
def network(value: object, place: Place) -> IPv4Network | IPv6Network:
    """Check for an address or a network in CIDR notation."""
    found = text(value, place)
    try:
        loose = ip_network(found, strict=False)
    except ValueError:
        raise Rejected("must be an address or a network (such as 10.0.0.0/8 or fd00::/8)") from None
    try:
        return ip_network(found)
    except ValueError:
        raise Rejected(f"has bits set after its prefix (write {loose})") from None


@checker("status", "100 to 599")
def status(value: object, place: Place) -> int:
    """Check for an HTTP status."""
    found = whole(100)(value, place)
    if found > 599:
        raise Rejected("must be an HTTP status, at most 599")
    return found


@checker("path", "begins with /")
def url_path(value: object, place: Place) -> str:
    """Check for the path of a URL, in visible ASCII and without a query."""
    found = text(value, place)
    if not found.startswith("/") or not found.isascii() or not found.isprintable() or set(found) & set(" ?#"):
        raise Rejected("must be a path that begins with /, without spaces, ? and #")
    return found


def one_of(*names: str) -> Checker[str]:
    """Return a checker for one of a few words."""

    @checker("choice", ", ".join(names))
    def check(value: object, place: Place) -> str:
        if isinstance(value, str) and value in names:
            return str(value)
        raise Rejected(f"must be one of {', '.join(names)}{suggestion(value, names)}")

    return check


def one_number_of(*numbers: int) -> Checker[int]:
    """Return a checker for one of a few whole numbers."""
    known = ", ".join(map(str, numbers))
    check_whole = whole()

    @checker("whole number", known)
    def check(value: object, place: Place) -> int:
        found = check_whole(value, place)
        if found not in numbers:
            raise Rejected(f"must be one of {known}")
        return found

    return check


@checker("whole number", f"1 to {MAX_WORKERS}, or auto")
def process_count(value: object, place: Place) -> int | str:
    """Check for a number of processes; ``auto`` is one for each core."""
    return AUTO if value == AUTO else whole(1, MAX_WORKERS)(value, place)


def optional(check: Checker[T], null: str, *, empty: bool = False) -> Checker[T | None]:
    """Return a checker that also accepts ``null``.

    Args:
        check: the checker of other values.
        null: the meaning of ``null``, for the reference.
        empty: whether empty text means the same.
    """

    def or_none(value: object, place: Place) -> T | None:
        return None if value is None or (empty and value == "") else check(value, place)

    return Checker(or_none, check.kind, check.bounds, check.unit, null)


def list_of(check: Checker[T], *, lone: bool = False) -> Checker[tuple[T, ...]]:
    """Return a checker for a list; ``null`` means an empty one, and ``lone`` accepts one item without a list."""

    plural = f"{check.kind}{'es' if check.kind.endswith('s') else 's'}"

    @checker(f"list of {plural}{', or one' if lone else ''}", check.bounds)
    def check_all(value: object, place: Place) -> tuple[T, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            if lone:
                return (check(value, place),)
            raise Rejected(f"must be a list, not {kind_of(value)} (write each piece on its own line after '- ')")
        found = (place.item(index).attempt(check, piece) for index, piece in enumerate(value))
        return tuple(piece for piece in found if piece is not None)

    return check_all
