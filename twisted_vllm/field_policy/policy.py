"""The policy of one key for the fields of a body: what the key, its team and the gateway say together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any

import attrs
import msgspec

from twisted_vllm.errors import FieldNotAllowed
from twisted_vllm.field_policy import media
from twisted_vllm.field_policy.checks import Forbidden, Level, Limit
from twisted_vllm.field_policy.media_hosts import MAX_URL, MediaRules
from twisted_vllm.field_policy.rules import (
    DEFAULT_FORBIDDEN,
    DEFAULT_LIMITS,
    NUMBERS,
    SERVER_TOOLS,
    SYNONYMS,
    FieldRules,
    covers,
    parse_path,
)
from twisted_vllm.field_policy.shortened import ShortenedText

#: policies to keep; the least recently used is dropped first
MAX_POLICIES = 512

#: fields whose value is an object, so that members of it can be decoded by name
_OBJECTS = frozenset(("chat_template_kwargs", "sampling_params"))

#: bytes of a character in a JSON text: two escapes
_LONGEST_CHARACTER = 12
#: URLs that are judged in one step
_URLS_IN_STEP = 64

Check = Forbidden | Limit


@attrs.frozen
class GatewayFields:
    """What the operator says about the fields of virtual keys, besides the defaults.

    Attributes:
        allow: default paths that are allowed to every key.
        deny: paths that are forbidden to every key.
        limits: limits in place of the defaults; None lifts one.
        media: which URLs a server may fetch; None means any.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    limits: tuple[tuple[str, int | None], ...] = ()
    media: MediaRules | None = attrs.field(factory=MediaRules)


class FieldPolicy:
    """Checks the fields of bodies. Equal policies share one object, see `policy_of`.

    An ordinary body is checked while it is decoded: `types` admit only what needs no look, and the members `raws` are
    looked at one by one. A body that does not decode so is read whole, and `check` decides.

    Attributes:
        types: the members that are decoded as a type that accepts only what is certainly allowed, and their types. All
            have the default None.
        raws: the members that `check_raw` must see.
        decoders: room for the decoders that were made of it, by what they decode; it makes none itself.
    """

    def __init__(self, checks: Iterable[Check], rules: MediaRules | None) -> None:
        """Compile the checks.

        Args:
            checks: what is forbidden and limited.
            rules: which URLs a server may fetch; None means any.
        """
        self._media = rules
        by_name: dict[str, list[Check]] = {}
        for each in checks:
            by_name.setdefault(each.path.names[0], []).append(each)
        self._checks: Mapping[str, tuple[Check, ...]] = {name: tuple(found) for name, found in by_name.items()}
        # members whose size alone counts; none of them holds a URL that a server fetches
        self._sized = frozenset(
            name
            for name, found in self._checks.items()
            if all(isinstance(each, Limit) and each.measures_json for each in found)
        )
        self.decoders: dict[Any, Any] = {}
        self.types: dict[str, Any] = {}
        raws: list[str] = []
        for name, found in self._checks.items():
            kind = _type_of(name, found)
            if kind is None:
                raws.append(name)
            else:
                self.types[name] = kind
        if rules is not None:
            raws += [name for name in media.URL_LISTS if name not in self._checks]
        self.raws = tuple(raws)

    def looks_at(self, name: str, value: Any) -> bool:
        """Return whether `check` must see a member, by its name and its decoded value."""
        return name in self._checks or (
            self._media is not None and (isinstance(value, (dict, list)) or name in media.URL_LISTS)
        )

    def check(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Check all members of a body.

        Args:
            members: their names, decoded, and the JSON text of their values in UTF-8; repeated ones included.

        Raises:
            FieldNotAllowed: one is not allowed.
            ValueError, RecursionError: a value cannot be decoded, or has too many values in it.
        """
        for name, raw in members:
            if name in self._sized:
                for each in self._checks[name]:
                    each.check(None, len(raw))
            elif name in self._checks or (self._media is not None and media.looks_into(name, raw, self._media)):
                self.check_value(name, json.loads(raw, object_pairs_hook=media.pairs), len(raw))

    def check_value(self, name: str, value: Any, size: int) -> None:
        """Check one member that is decoded.

        Args:
            name: its name.
            value: its value; of equal keys in it, those count that it has.
            size: the size of its JSON text in bytes.

        Raises:
            FieldNotAllowed: it is not allowed.
            ValueError: it has too many values in it.
        """
        for _ in self.checking(name, value, size):
            pass

    def checking(self, name: str, value: Any, size: int) -> Iterator[None]:
        """Check one member that is decoded, in steps; see `check_value`."""
        for each in self._checks.get(name, ()):
            each.check(value, size)
            yield
        rules = self._media
        if rules is None or not (isinstance(value, (dict, list)) or name in media.URL_LISTS):
            return
        number = 0
        for found in media.urls_in([(name, value)]):
            if found is media.PAUSE:
                yield
                continue
            number += 1
            if number > media.MAX_URLS:
                raise ValueError("too many URLs")
            member, url = found
            if member == media.CACHE_NAME:
                raise FieldNotAllowed(
                    "`uuid` of an image, sound or video is not allowed: vLLM's cache of media is shared, and whoever "
                    "names an entry gets what another caller sent. Leave it out (passthrough.tenant_fields.media).",
                    param=member,
                )
            if isinstance(url, ShortenedText) and url[:5].lower() != "data:":
                # more than these bytes are more than the longest URL, however they are spelled
                url = url.beginning(MAX_URL * _LONGEST_CHARACTER)
            reason = rules.refusal(url)
            if member == media.PROCESSORS_IMAGE and url:
                reason = "would be opened past the checks of the server; send image_url"
            if reason is not None:
                raise _refused_url(member, reason)
            if number % _URLS_IN_STEP == 0:
                yield

    def check_raw(self, name: str, raw: bytes) -> None:
        """Check one of the members `raws`.

        Args:
            name: its name.
            raw: the JSON text of its value.

        Raises:
            FieldNotAllowed: it is not allowed.
        """
        self.check([(name, raw)])

    def holds_for_urls(self, body: bytes) -> bool:
        """Return whether no URL of a JSON body needs a look; False means that `check` must see the body.

        Args:
            body: a valid JSON body. No key of it has an escaped letter.
        """
        rules = self._media
        return rules is None or not media.may_hold_urls(body) or media.all_allowed(body, rules)

    def largest_size(self, name: str) -> int | None:
        """Return the largest allowed size of a member's JSON text in bytes, if the policy limits nothing else of it."""
        if name not in self._sized:
            return None
        return min(each.most for each in self._checks[name] if isinstance(each, Limit))

    def is_list_of_urls(self, name: str) -> bool:
        """Return whether a member is checked only because it may be a list of URLs."""
        return name in media.URL_LISTS and name not in self._checks

    def form_checks(self, name: str) -> tuple[Check, ...]:
        """Return the checks for a field of a form."""
        return tuple(each for each in self._checks.get(name, ()) if len(each.path.names) == 1)


def policy_of(
    gateway: GatewayFields,
    key: FieldRules,
    team: FieldRules,
    exempt: tuple[str, ...] = (),
    *,
    server_tools: bool = False,
) -> FieldPolicy | None:
    """Return the policy of a key; None if nothing is forbidden or limited.

    All levels apply together, and the strictest limit wins. What the key's rules allow is free of the gateway's
    defaults, of its `deny` and of its limits, and not of what the key and its team forbid.

    Args:
        gateway: what the operator says.
        key: the rules of the key.
        team: the rules of its team.
        exempt: paths that the gateway does not forbid to this key, because the key has them in another way.
        server_tools: whether the route runs tools by itself.
    """
    return _policy_of(gateway, key, team, exempt, server_tools)


@lru_cache(maxsize=MAX_POLICIES)
def _policy_of(
    gateway: GatewayFields, key: FieldRules, team: FieldRules, exempt: tuple[str, ...], server_tools: bool
) -> FieldPolicy | None:
    forbidden: dict[str, Forbidden] = {}
    defaults = {**DEFAULT_FORBIDDEN, **(SERVER_TOOLS if server_tools else {})}
    granted = (*key.allowed, *exempt)
    for text, reason in defaults.items():
        if not _covered((*granted, *gateway.allow), text):
            forbidden[text] = Forbidden(parse_path(text), Level.GATEWAY, reason)
    for text in gateway.deny:
        if not _covered(granted, text):
            forbidden[text] = Forbidden(parse_path(text), Level.GATEWAY, defaults.get(text, ""))
    for level, rules in ((Level.TEAM, team), (Level.KEY, key)):
        for text in rules.forbidden:
            forbidden[text] = Forbidden(parse_path(text), level)
    limits: dict[str, Limit] = {}
    of_gateway: dict[str, int | None] = {**DEFAULT_LIMITS, **dict(gateway.limits)}
    for text, most in of_gateway.items():
        if most is not None and not _covered(granted, text):
            _tighten(limits, text, most, Level.GATEWAY)
    for level, rules in ((Level.TEAM, team), (Level.KEY, key)):
        for text, most in rules.limits:
            _tighten(limits, text, most, level)
    if not forbidden and not limits and gateway.media is None:
        return None
    return _interned((*forbidden.values(), *limits.values()), gateway.media)


@lru_cache(maxsize=MAX_POLICIES)
def _interned(checks: tuple[Check, ...], rules: MediaRules | None) -> FieldPolicy:
    return FieldPolicy(checks, rules)


def _covered(allowed: Iterable[str], text: str) -> bool:
    return any(covers(each, text) for each in allowed)


def _tighten(limits: dict[str, Limit], text: str, most: int, level: Level) -> None:
    for name in SYNONYMS.get(text, (text,)):
        before = limits.get(name)
        if before is None or most < before.most:
            limits[name] = Limit(parse_path(name), most, level)


def _type_of(name: str, checks: Iterable[Check]) -> Any:
    """Return the type that accepts only what is certainly allowed in a member, or None if there is no such type."""
    own = [each for each in checks if len(each.path.names) == 1]
    if any(isinstance(each, Forbidden) and each.path.value is None for each in own):
        return type(None)
    if len(own) == 1 and len(tuple(checks)) == 1 and isinstance(own[0], Limit):
        if name in NUMBERS:
            return Annotated[int, msgspec.Meta(ge=0, le=own[0].most)] | None
        if name == "logit_bias":
            return Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=own[0].most)] | None
    if own or name not in _OBJECTS:
        return None
    inner: dict[str, list[Check]] = {}
    for each in checks:
        if each.path.names[1] == "*":
            return None
        inner.setdefault(each.path.names[1], []).append(_below(each))
    types = {member: _type_of(member, found) for member, found in inner.items()}
    if not all(member.isidentifier() for member in types) or None in types.values():
        return None
    return msgspec.defstruct("_Inner", [(member, kind, None) for member, kind in types.items()], gc=False) | None


def _below(check: Check) -> Check:
    path = check.path
    return attrs.evolve(check, path=attrs.evolve(path, names=path.names[1:]))


def _refused_url(member: str, reason: str) -> FieldNotAllowed:
    return FieldNotAllowed(
        f"A URL in `{member}` is not allowed: it {reason}. The gateway restricts what servers fetch for virtual keys "
        "(passthrough.tenant_fields.media). Send the content in a data: URL, or ask the operator to allow the host.",
        param=member,
    )
