"""What a process keeps: a walk over all objects that the gateway and the loaded modules refer to."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import deque
from functools import _lru_cache_wrapper, cache
from types import CodeType, FrameType, FunctionType, MemberDescriptorType, ModuleType, TracebackType
from typing import Any

import attrs
import msgspec

from twisted_vllm.bounded_cache import BoundedCache

#: what holds many objects: the interpreter's own containers, and those that are built on them
CONTAINERS = (dict, list, set, deque, bytearray)
#: what is not looked into: it holds nothing for long, or is walked by its name
_LEAVES = (str, bytes, int, float, bool, type(None), FrameType, TracebackType, CodeType, ModuleType)
_TESTS = ("tests.", "_pytest.", "pytest", "pluggy", "hypothesis", "greenlet")
#: a module that grows when it is looked at
_LAZY = ("_openssl",)


@attrs.frozen
class Container:
    """A container, or a cache of `functools`.

    Attributes:
        name: who refers to it: the class and the attribute, or the module and the name.
        length: how many entries it has.
        bound: the most entries that it can have, or None if it does not say.
    """

    name: str
    length: int
    bound: int | None


class HeldObjects:
    """All objects that were reachable.

    Attributes:
        containers: the containers by their ids.
        size: the bytes of all objects.
    """

    def __init__(self, root: Any, mark: str) -> None:
        """Walk.

        Args:
            root: what to walk from, besides all modules.
            mark: texts with this mark are kept in `texts`.
        """
        self._mark, self._mark_bytes = mark, mark.encode()
        self.containers: dict[int, Container] = {}
        self.size = 0
        #: the texts with the mark: how long they are, and who refers to them
        self.texts: list[tuple[int, str]] = []
        gc.collect()
        seen: set[int] = set()
        waiting: deque[tuple[Any, str]] = deque([(root, "the gateway")])
        modules = sorted(name for name in sys.modules if not f"{name}.".startswith(_TESTS + _LAZY))
        waiting.extend((vars(sys.modules[name]), name) for name in modules if sys.modules[name] is not None)
        # the walk does not walk itself
        seen.update(map(id, (seen, waiting, self.__dict__, self.containers, self.texts)))
        while waiting:
            found, owner = waiting.popleft()
            if id(found) not in seen:
                seen.add(id(found))
                self._visit(found, owner, waiting)

    def _visit(self, found: Any, owner: str, waiting: deque[tuple[Any, str]]) -> None:
        self.size += sys.getsizeof(found, 0)
        if isinstance(found, str):
            if self._mark in found:
                self.texts.append((len(found), owner))
            return
        if isinstance(found, (bytes, bytearray)):
            if self._mark_bytes in found:
                self.texts.append((len(found), owner))
            return
        kind = type(found)
        if isinstance(found, _LEAVES) or f"{kind.__module__}.".startswith(_TESTS):
            return
        if isinstance(found, (_lru_cache_wrapper, BoundedCache)):
            self._visit_cache(found, owner, waiting)
        elif isinstance(found, CONTAINERS):
            if id(found) not in self.containers:
                self._count(found, owner, None)
            if isinstance(found, dict):
                waiting.extend((key, owner) for key in list(found))
                waiting.extend((value, _within(owner, key)) for key, value in list(found.items()))
            if kind not in CONTAINERS or not isinstance(found, dict):
                waiting.extend((each, owner) for each in gc.get_referents(found))
        elif isinstance(found, msgspec.Struct):
            # a struct that the collector does not track does not tell what it refers to
            names = found.__struct_fields__
            waiting.extend((getattr(found, name), f"{kind.__name__}.{name}") for name in names)
        else:
            self._look_into(found, kind, owner, waiting)

    def _visit_cache(self, found: Any, owner: str, waiting: deque[tuple[Any, str]]) -> None:
        """Look into a cache that tells its bound: its dictionary has the same."""
        if isinstance(found, BoundedCache):
            bound, referents = found.max_entries, gc.get_referents(found.get)
        else:
            bound, referents = found.cache_info().maxsize or 0, gc.get_referents(found)
        for each in referents:
            if isinstance(each, dict):
                self._count(each, owner, bound)
            waiting.append((each, owner))

    def _look_into(self, found: Any, kind: type, owner: str, waiting: deque[tuple[Any, str]]) -> None:
        if isinstance(found, tuple):
            waiting.extend((each, owner) for each in found)
            return
        if isinstance(found, FunctionType):
            # not its module: the modules are walked by their names
            parts = (found.__closure__, found.__defaults__, found.__kwdefaults__, vars(found))
            waiting.extend((each, found.__qualname__) for each in parts if each)
            return
        named = dict(vars(found)) if isinstance(found, type) else dict(getattr(found, "__dict__", None) or {})
        for key, descriptor in _slots(kind):
            with contextlib.suppress(AttributeError):
                named[key] = descriptor.__get__(found, kind)
        name = found.__qualname__ if isinstance(found, type) else kind.__qualname__
        waiting.extend((value, f"{name}.{key}") for key, value in named.items())
        waiting.extend((each, owner if each is not kind else name) for each in gc.get_referents(found))

    def _count(self, container: Any, owner: str, bound: int | None) -> None:
        self.containers[id(container)] = Container(owner, len(container), bound)

    def grown_since(self, before: HeldObjects, least: int) -> list[Container]:
        """Return the containers that have at least so many entries more than before."""
        return [
            each
            for number, each in self.containers.items()
            if each.length - (before.containers[number].length if number in before.containers else 0) >= least
        ]


@cache
def _slots(kind: type) -> list[tuple[str, MemberDescriptorType]]:
    """Return the slots of a class."""
    return [
        (name, each)
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for name, each in vars(base).items()
        if isinstance(each, MemberDescriptorType)
    ]


def _within(owner: str, key: object) -> str:
    """Return who refers to a value of a dictionary: a module names its own."""
    return f"{owner}.{key}" if owner in sys.modules and isinstance(key, str) else owner
