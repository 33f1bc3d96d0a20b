"""What a start would open and import: ``--check`` looks whether it can, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from twisted_vllm.config.problems import Problem
from twisted_vllm.config.settings import Settings


def unopenable(settings: Settings, directory: str) -> list[Problem]:
    """Return what would keep the gateway from starting: files that cannot be written, objects that cannot be imported.

    Args:
        settings: the settings.
        directory: where the names of files begin.
    """
    found: list[Problem] = []
    if settings.log.file is not None:
        found += _unwritable("passthrough.log.file", os.path.join(directory, settings.log.file))
    for index, sink in enumerate(settings.sinks):
        place = f"passthrough.sinks[{index}]"
        if sink.type == "file" and sink.path is not None:
            found += _unwritable(f"{place}.path", os.path.join(directory, sink.path))
    for sink in settings.all_sinks:
        if sink.type == "python" and sink.object is not None:
            at = next((f"passthrough.sinks[{i}].object" for i, own in enumerate(settings.sinks) if own is sink), "")
            found += _unimportable(at or f"litellm_settings.callbacks: {sink.name}", sink.object, sink.import_from)
    return found


def write_fault(path: str) -> int | None:
    """Return why a file cannot be opened for writing, as an errno; None if it can."""
    parent = os.path.dirname(path) or "."
    if os.path.isdir(path):
        return errno.EISDIR
    if not os.path.isdir(parent):
        return errno.ENOENT
    if not os.access(path if os.path.exists(path) else parent, os.W_OK):
        return errno.EACCES
    return None


def _unwritable(place: str, path: str) -> Iterator[Problem]:
    number = write_fault(path)
    if number is not None:
        text = f"cannot be opened: {os.strerror(number)}: {path} (the gateway's user must be able to write there)"
        yield Problem(place, text)


def _unimportable(place: str, path: str, directory: str) -> Iterator[Problem]:
    # imported here: most configurations name no object
    from twisted_vllm.observability.sinks.python_object import ObjectError, load_object

    try:
        load_object(path, directory)
    except ObjectError as error:
        yield Problem(place, str(error))
