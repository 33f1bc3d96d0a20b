"""The export of usage of a gateway with several processes: the housekeeper exports, and any worker asks it to."""

from __future__ import annotations

from twisted_vllm.usage_export.service import UsageExport
from twisted_vllm.workers.siblings import Siblings

#: what the messages are about: there is a day to export
TOPIC = "usage_export.look"


def share_export(siblings: Siblings, export: UsageExport) -> None:
    """Have the housekeeper look when a worker is asked for a day, or look when one says so.

    Args:
        siblings: the other processes.
        export: of this process.
    """
    if siblings.housekeeps:
        siblings.on(TOPIC, type(None), lambda message, sender: export.look_soon())
    else:
        export.look_elsewhere = lambda: siblings.share(TOPIC, None)
