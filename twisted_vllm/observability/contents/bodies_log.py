"""Keeps prompts and answers of the requests that are to have them, and makes JSON of them once they are over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.internet.task import CooperativeTask
from twisted.logger import Logger

from twisted_vllm.auth.records import Principal
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.config.log_bodies import DEFAULT_LOG_BODIES, OFF, LogBodiesSettings
from twisted_vllm.config.name_patterns import NamePattern, is_pattern
from twisted_vllm.context import Contents, RequestContext
from twisted_vllm.observability.contents.gathered import Caps, Gathered, Memory
from twisted_vllm.observability.contents.metrics import FAILED, TRUNCATED, WHOLE, ContentsMetrics
from twisted_vllm.observability.contents.modes import Wishes, decide, lowest, wants_no_texts, wants_nothing_kept
from twisted_vllm.observability.contents.redaction import Redaction, Secrets
from twisted_vllm.observability.contents.rendering import render
from twisted_vllm.observability.contents.routes import FORMATS
from twisted_vllm.observability.logging.redaction import Redactor

#: receives the JSON of a request's prompt and answer; None if nothing is kept
Tell = Callable[[msgspec.Raw | None], None]


class BodiesLog:
    """Prompts and answers.

    Attributes:
        memory: what they take.
        counted: what is told of them in metrics.
    """

    _log = Logger()

    def __init__(
        self,
        redact: Callable[[str], str],
        cooperate: Callable[[Iterator[Any]], CooperativeTask[Any]],
        counted: ContentsMetrics | None = None,
    ) -> None:
        """Keep nothing yet.

        Args:
            redact: removes known secrets from text, and what has the form of one.
            cooperate: runs an iterator in steps.
            counted: counts them for metrics; None for nobody's.
        """
        self.memory = Memory(DEFAULT_LOG_BODIES.max_total_bytes)
        self.counted = ContentsMetrics() if counted is None else counted
        self._redact = redact
        self._may_change: Callable[[str], bool] = redact.may_change if isinstance(redact, Redactor) else bool
        self._cooperate = cooperate
        self._over: deque[tuple[Gathered, RequestContext, Tell]] = deque()
        self._steps: Iterator[None] | None = None
        self.reconfigure(DEFAULT_LOG_BODIES, texts_off=False, allows_no_log=True)

    def reconfigure(self, settings: LogBodiesSettings, *, texts_off: bool, allows_no_log: bool) -> None:
        """Use other settings from the next request on, and what they switch off from now on.

        Args:
            settings: what is kept.
            texts_off: whether no texts are kept, of nobody.
            allows_no_log: whether clients may ask that nothing is kept.
        """
        self.memory.most = settings.max_total_bytes
        self._default = settings.mode
        self._models = {name: mode for name, mode in settings.models.items() if not is_pattern(name)}
        self._patterns = [(NamePattern(name), mode) for name, mode in settings.models.items() if is_pattern(name)]
        #: whether the settings ask for nothing
        self._is_quiet = settings.mode == OFF and not settings.models
        self._caps = Caps(settings.max_prompt_bytes, settings.max_answer_bytes)
        self._redaction = Redaction(settings.redact_fields, settings.redact_patterns)
        self._texts_off = texts_off
        self._allows_no_log = allows_no_log and settings.allow_no_log
        #: stands for these settings
        self._epoch = object()

    # while a request passes

    def begin(
        self,
        context: RequestContext,
        body: bytes | HeldBody | None,
        form: bool,
        of_entries: str | None,
    ) -> Gathered | None:
        """Return what gathers a request's prompt and answer, with the prompt if it is in hand; None keeps nothing.

        Args:
            context: the request; its model is known. Another model may take the place of the first.
            body: its body, or None if it streams.
            form: whether the body is a form.
            of_entries: the mode of the entries of its model; None if they say nothing.
        """
        principal = context.principal
        authorization = context.authorization
        assert principal is not None
        assert authorization is not None
        says_nothing = of_entries is None and principal.log_bodies is None and principal.team_log_bodies is None
        if says_nothing and self._is_quiet:
            return None
        format = FORMATS.get(authorization.route.row.path)
        if format is None or context.head.protocols:
            return None
        mode = self.mode_of(context, principal, of_entries)
        if context.fallback:
            former = context.contents
            # whoever was to see nothing of the first model's request sees nothing now
            if not isinstance(former, Gathered):
                return None
            mode = lowest((mode, former.mode))
        if mode == OFF:
            return None
        found = Gathered(mode, format, self._caps, self.memory)
        found.decided_by = (self._epoch, of_entries)
        try:
            if body and form:
                whole = body if isinstance(body, bytes) else body.whole()
                found.take_form(whole, context.head.first.get(b"content-type", b""))
            elif body:
                found.take_json(body)
        except Exception:
            # a fault of this does not concern the client
            self.counted.kept[FAILED] += 1
            self._log.failure("The prompt of a request could not be gathered")
            return None
        return found

    def mode_of(self, context: RequestContext, principal: Principal, of_entries: str | None) -> str:
        """Return the mode of a request by what everybody says, as `decide`."""
        first = context.head.first
        return decide(
            Wishes(
                self._default,
                self._modes_of_model(context.model, of_entries),
                principal.team_log_bodies,
                principal.log_bodies,
                self._texts_off or wants_no_texts(first),
                self._allows_no_log and wants_nothing_kept(first),
            )
        )

    def _modes_of_model(self, model: str, of_entries: str | None) -> tuple[str, ...]:
        found = [] if of_entries is None else [of_entries]
        if model in self._models:
            found.append(self._models[model])
        found += [mode for pattern, mode in self._patterns if pattern.match(model) is not None]
        return tuple(found)

    # once it is over

    def render(self, contents: Contents, context: RequestContext, tell: Tell) -> None:
        """Make the JSON of a request that is over, in steps, and then tell it."""
        assert isinstance(contents, Gathered)
        self._over.append((contents, context, tell))
        if self._steps is None:
            self._steps = self._work()
            self._cooperate(self._steps)

    def finish(self) -> None:
        """Render all that waits, without further steps: the gateway stops."""
        for _ in self._steps or ():
            pass

    def _work(self) -> Iterator[None]:
        while self._over:
            gathered, context, tell = self._over.popleft()
            found: msgspec.Raw | None = None
            try:
                if context.sent and self._is_still_kept(gathered, context):
                    found = yield from render(
                        gathered, self._redaction, self._secrets(context), allows_no_log=self._allows_no_log
                    )
            except Exception:
                found = None
                self.counted.kept[FAILED] += 1
                self._log.failure("The prompt and the answer of a request could not be kept")
            if found is not None:
                self.counted.kept[TRUNCATED if gathered.cut or gathered.truncated else WHOLE] += 1
            gathered.release()
            try:
                tell(found)
            except Exception:
                self._log.failure("A consumer of prompts and answers failed")
            yield
        self._steps = None

    def _is_still_kept(self, gathered: Gathered, context: RequestContext) -> bool:
        """Return whether anything is kept by the settings of now, which may have changed since the request began."""
        epoch, of_entries = gathered.decided_by
        if epoch is not self._epoch and context.principal is not None:
            gathered.mode = lowest((gathered.mode, self.mode_of(context, context.principal, of_entries)))
        return gathered.mode != OFF

    def _secrets(self, context: RequestContext) -> Secrets:
        return Secrets(self._redact, self._may_change, context.secrets)
