"""Decoders that check the fields of a body while they decode it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from twisted_vllm.field_policy.policy import FieldPolicy

#: the default of a member that is kept undecoded
NO_VALUE = msgspec.Raw()


class CheckedDecoder:
    """Decodes the bodies of one route by the policy of some keys.

    Attributes:
        decode: decodes a body into the struct of the route. It fails with ``msgspec.MsgspecError`` if a member needs a
            look that the types cannot take; the body must then be read whole.
    """

    __slots__ = ("_in_lists", "_looks", "_policy", "_small", "_small_looks", "decode")

    def __init__(
        self, policy: FieldPolicy, decode: Callable[[bytes], Any], looks: tuple[str, ...], *, in_lists: bool
    ) -> None:
        self._policy = policy
        self._looks = tuple((name, b'"%b"' % name.encode()) for name in looks)
        # no member of a small body can be over a limit of its size
        sizes = {name: most for name in looks if (most := policy.largest_size(name)) is not None}
        self._small = min(sizes.values(), default=0)
        self._small_looks = tuple(each for each in self._looks if each[0] not in sizes)
        self._in_lists = in_lists
        self.decode = decode

    def holds(self, found: Any, body: bytes) -> bool:
        """Check what the types did not; return whether that is all, or whether the body must be read whole.

        Args:
            found: what `decode` returned.
            body: the body; no key has an escaped letter.

        Raises:
            FieldNotAllowed: a field is not allowed.
        """
        for name, key in self._small_looks if len(body) <= self._small else self._looks:
            raw = getattr(found, name)
            if raw is not NO_VALUE:
                if body.find(key) != body.rfind(key):
                    return False
                self._policy.check_raw(name, bytes(raw))
        # an ordinary chat has one list, the messages, and its parts are in a list within; that takes 0.1 µs to see
        if self._in_lists and body.find(b"[") == body.rfind(b"["):
            return True
        return self._policy.holds_for_urls(body)


def checked_decoder(
    policy: FieldPolicy, base: type[msgspec.Struct], own: Mapping[str, tuple[Any, Any]], *, in_lists: bool
) -> CheckedDecoder | None:
    """Return the decoder of a route for a policy; None if the policy needs each body read whole.

    Args:
        policy: the policy.
        base: the struct of the members that all routes have.
        own: the type and the default of the route's own members.
        in_lists: whether the route takes parts only in a list within a list.
    """
    fields = dict(own)
    # such a route has no lists of URLs
    raws = [name for name in policy.raws if not (in_lists and policy.is_list_of_urls(name))]
    looks = [name for name in raws if name.isidentifier()]
    if len(looks) != len(raws) or set(looks) & set(base.__struct_fields__):
        return None
    for name in looks:
        if fields.setdefault(name, (msgspec.Raw, NO_VALUE))[0] is not msgspec.Raw:
            return None
    defaults = {each.name: each.default for each in msgspec.structs.fields(base)}
    for name, kind in policy.types.items():
        if not name.isidentifier():
            return None
        of_route, default = fields.get(name, (kind, defaults.get(name)))
        if of_route is msgspec.Raw:
            looks.append(name)
        elif default is msgspec.UNSET:
            fields[name] = (kind | msgspec.UnsetType, default)
        else:
            fields[name] = (kind, None)
    structure = msgspec.defstruct(
        "_CheckedBody", [(name, kind, default) for name, (kind, default) in fields.items()], bases=(base,), gc=False
    )
    return CheckedDecoder(policy, msgspec.json.Decoder(structure).decode, tuple(looks), in_lists=in_lists)
