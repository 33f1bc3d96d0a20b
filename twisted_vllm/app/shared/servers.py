"""What all processes of a gateway counted of its servers, for whoever asks one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from twisted_vllm.upstreams.server_report import Figures
from twisted_vllm.workers.siblings import Siblings

#: the topic of the question
FIGURES = "servers.figures"

#: seconds that another process has to answer; without its answer, what it counted is missing
_SECONDS = 1.0


class SharedFigures:
    """Asks the other processes, and answers them."""

    def __init__(self, own: Callable[[], Figures], siblings: Siblings) -> None:
        """Answer from now on.

        Args:
            own: returns what this process counted.
            siblings: the other processes.
        """
        self._siblings = siblings
        siblings.answers(FIGURES, type(None), lambda question, asker: own())

    def ask(self) -> Deferred[Sequence[Figures]]:
        """Return what the others counted."""
        asking = self._siblings.ask_others(FIGURES, None, Figures, _SECONDS)
        return asking.addCallback(lambda answers: list(answers.values()))
