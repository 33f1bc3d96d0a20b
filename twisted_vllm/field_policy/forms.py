"""Checks the fields of a multipart form while it is parsed."""

from __future__ import annotations

from twisted_vllm.field_policy.checks import Forbidden, Limit
from twisted_vllm.field_policy.policy import Check, FieldPolicy
from twisted_vllm.field_policy.rules import NUMBERS

#: bytes of a field's content that are kept, to read it as a number or to compare it
_KEPT = 512


class FormFields:
    """Observes the parts of a form, see `twisted_vllm.bodies.multipart.FormObserver`.

    A field that is forbidden is refused at its name, whatever it holds.
    """

    __slots__ = ("_checks", "_content", "_name", "_policy", "_size")

    def __init__(self, policy: FieldPolicy) -> None:
        self._policy = policy
        self._name = ""
        self._checks: tuple[Check, ...] = ()
        self._content = b""
        self._size = 0

    def part(self, name: bytes) -> None:
        """A part with this field name begins.

        Raises:
            FieldNotAllowed: it is forbidden, or the part before it is not allowed.
        """
        self.finish()
        self._name = name.decode("utf-8", "replace")
        self._checks = self._policy.form_checks(self._name)
        for each in self._checks:
            if isinstance(each, Forbidden) and each.path.value is None:
                raise each.refusal()

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of its content arrived.

        Raises:
            FieldNotAllowed: it is too long.
        """
        if not self._checks:
            return
        self._size += end - start
        room = _KEPT - len(self._content)
        if room > 0:
            self._content += data[start : min(end, start + room)]
        for each in self._checks:
            if isinstance(each, Limit) and self._name not in NUMBERS:
                each.check_size(self._size)

    def finish(self) -> None:
        """Check the part that ended.

        Raises:
            FieldNotAllowed: it is not allowed.
        """
        checks, self._checks = self._checks, ()
        if not checks:
            return
        text = self._content.decode("utf-8", "replace")
        size, self._content, self._size = self._size, b"", 0
        for each in checks:
            if isinstance(each, Forbidden):
                if each.means(text):
                    raise each.refusal()
            elif self._name in NUMBERS:
                each.check("inf" if size > _KEPT else text, size)
