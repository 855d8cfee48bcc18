"""One claimed run: decide, call, and say what is to be written; the same object goes on after the write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from pgworkflows.calls import Call, perform, perform_inside
from pgworkflows.claims import ClaimedRun
from pgworkflows.commands import ScheduleContext, Step, StepContext
from pgworkflows.declarations import options_of
from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.entries import Entry
from pgworkflows.errors import StepTimeoutError, WorkflowEngineError
from pgworkflows.history import ErrorInfo
from pgworkflows.payloads import AS_IS, Payloads
from pgworkflows.plugins import ExecutionOutcome, Plugin
from pgworkflows.replay import (
    CallStep,
    ChildStart,
    Complete,
    Fail,
    Raised,
    Replay,
    StepOutcome,
    Suspend,
    Trail,
    Turn,
    error_info,
)
from pgworkflows.retry import run_retry_pause
from pgworkflows.run_loggers import LoggerOfRun, SilentWhileReplaying
from pgworkflows.sealing import opened, sealed
from pgworkflows.store import interval_text
from pgworkflows.wrapping import Wrapping, run_context

SUSPECT_FROM = 3
"""After how many interruptions in a row a run is claimed alone; `claim` in SQL says the same."""


class Execution:
    """A claimed run in this process. One thread at a time works on it; `control` and `dropped` may be set by others.
    `suspect`: so many workers died with it that it is worked on alone, until its next checkpoint clears it. `ending`:
    what its plugins are told if it ends without a last entry."""

    __slots__ = (
        "_failure",
        "_logger",
        "_outcome",
        "_payloads",
        "_pending",
        "_replay",
        "_run_id",
        "_wrapping",
        "call",
        "control",
        "dropped",
        "ending",
        "run",
        "suspect",
        "workflow",
    )

    def __init__(
        self,
        run: ClaimedRun,
        workflow: Workflow[Any, Any],
        logger: logging.Logger,
        plugins: Sequence[Plugin] = (),
        payloads: Payloads = AS_IS,
    ) -> None:
        """`plugins` are the engine's; the workflow's stand inside them. `payloads` open what is stored, and seal what
        will be."""
        self.run = run
        self.workflow = workflow
        self.control: str | None = None
        self.dropped = False
        self.suspect = run.interruptions >= SUSPECT_FROM
        self.ending = ExecutionOutcome.LOST
        self.call: Call | None = None
        self._logger = logger
        self._payloads = payloads
        all_plugins = (*plugins, *workflow.plugins)
        self._wrapping = Wrapping(all_plugins, logger) if all_plugins else None
        self._failure: BaseException | None = None
        self._run_id = UUID(run.run_id)
        self._replay: Replay | None = None
        self._pending: CallStep | None = None
        self._outcome: StepOutcome | None = None

    def next_call(self) -> Call | None:
        """The call that `work` will make, all before it being durable; None when it will make none."""
        if self._pending is None or self._outcome is not None:
            return None
        self.call = Call(self._pending, self._run_id)
        return self.call

    def work(self, call: Call | None) -> Entry | None:
        """Make the call and go on to the next thing that has to be stored. None when a timeout ended the call first.
        Raises Unreadable, with nothing begun, if the run's payloads cannot be decoded here."""
        if self._replay is None:
            if self.run.encoded:
                self.run = opened(self.run, self._payloads)
            return self._sealed(self._entry(self._begin()))
        if call is not None:
            outcome = perform(call) if self._wrapping is None else perform_inside(call, self._wrapping)
            if not call.settle():
                return None
            self._outcome = outcome
        return self._sealed(self._entry(self._resolve()))

    def expire(self, call: Call) -> bool:
        """End a call by its timeout, unless it has ended; whether `work` is due now."""
        limit_s = call.timeout_s
        if limit_s is None or not call.settle():
            return False
        call.current.cancel()
        error = StepTimeoutError(
            f"its function did not return within {limit_s:g} s",
            step_id=call.decision.command.id,
            error_type="StepTimeoutError",
        )
        self._outcome = Raised(error, error_info(error, call.decision.command.id), limit_s)
        return True

    def release_entry(self) -> Entry:
        """Give the run back as it was last stored."""
        return Entry(self.run.run_id, self.run.claim_id, self.run.signal, "release")

    def ask(self, control: str) -> None:
        """Note that a client asks for something. A cancelled run's step is told; no further step is begun."""
        self.control = control
        call = self.call
        if control == "cancel" and call is not None:
            call.current.cancel()

    def drop(self) -> None:
        """Forget the run: whatever its step returns is not wanted any more."""
        self.dropped = True
        call = self.call
        if call is not None:
            call.current.cancel()

    def let_go(self) -> None:
        """Stop waiting for the step in flight: its run is given back, and its late result is not wanted."""
        call = self.call
        if call is not None and call.settle():
            call.current.cancel()

    def failure_entry(self, error: BaseException) -> Entry:
        """Fail the run for what is nobody's step."""
        run = self.run
        self._failure = error
        info = error_info(error)
        entry = Entry(run.run_id, run.claim_id, run.signal, "fail", error=info, parent_run_id=run.parent_run_id)
        return self._sealed(entry)

    def close(self) -> None:
        """Let the generator go; only while no thread works on it."""
        if self._replay is None:
            return
        if self._wrapping is None:
            self._replay.close()
        else:
            self._wrapping.inside_if_free(self._replay.close)

    @property
    def wrapped(self) -> bool:
        """Whether it has plugins, which have to be left."""
        return self._wrapping is not None

    def leave(self, outcome: ExecutionOutcome) -> bool:
        """Leave the plugins, once; whether that is done. Not in a thread that others need: a plugin may hang in it."""
        return self._wrapping is None or self._wrapping.leave(outcome, self._failure)

    def headers_for_child(self) -> Mapping[str, str]:
        """What goes along with the start of a child run: what came along with this one, and what plugins add. Not while
        the handler is advanced."""
        return self.run.headers if self._wrapping is None else self._wrapping.headers(self.run.headers)

    def _begin(self) -> Turn:
        run = self.run
        trail = Trail()
        refused: Fail | None = None
        try:
            value = self.workflow.load_input(run.input)
        except WorkflowEngineError as error:
            value, refused = None, Fail(ErrorInfo(type(error).__name__, error.message), retryable=False, cause=error)
        extra: dict[str, object] = {"run_id": run.run_id, "workflow_id": run.workflow_id}
        context = StepContext(
            run_id=self._run_id,
            workflow_id=run.workflow_id,
            resource_id=run.resource_id,
            attempt=run.retry_count + 1,
            input=value,
            timeline=trail.timeline,
            schedule=None if run.schedule_tick is None else ScheduleContext(run.schedule_tick),
            logger=SilentWhileReplaying(self._logger, extra, trail),
        )
        if self._wrapping is not None:
            self._wrapping.enter(run_context(run, context, LoggerOfRun(self._logger, extra)))
        if refused is not None:
            return Turn((), (), refused)
        generator = self.workflow.begin(Step(context), value)
        self._replay = Replay(
            generator,
            history=run.steps,
            mailbox=run.events,
            as_of=run.as_of,
            trail=trail,
            child=run.child,
            # Not a function that knows this execution: a circle is freed only by the garbage collector, which costs a
            # fifth of a worker's time when each run leaves one.
            encode_output=partial(self.workflow.output_codec.encode, what="the output of the workflow"),
            workflow_id=run.workflow_id,
            run_id=self._run_id,
        )
        return self._replay.begin() if self._wrapping is None else self._wrapping.inside(self._replay.begin)

    def _resolve(self) -> Turn:
        assert self._replay is not None
        assert self._pending is not None
        assert self._outcome is not None
        pending, outcome = self._pending, self._outcome
        self._pending = self._outcome = self.call = None
        if self._wrapping is None:
            return self._replay.resolve(pending, outcome)
        return self._wrapping.inside(partial(self._replay.resolve, pending, outcome))

    def _entry(self, turn: Turn) -> Entry:
        run = self.run
        decision = turn.decision
        entry = Entry(
            run.run_id,
            run.claim_id,
            run.signal,
            "checkpoint",
            turn.writes,
            turn.events,
            parent_run_id=run.parent_run_id,
        )
        match decision:
            case CallStep():
                self._pending = decision
                return entry
            case Suspend(step_id, wait_kind, wait_event):
                child = None if turn.child is None else self._child_row(turn.child)
                return entry._replace(
                    action="suspend", step_id=step_id, wait_kind=wait_kind, wait_event=wait_event, child=child
                )
            case Complete(output):
                last = turn.writes[-1].step_id if turn.writes else None
                return entry._replace(action="complete", step_id=last, output=output)
            case Fail(error, retryable) if retryable and run.retry_count < run.max_retries:
                self._failure = decision.cause
                pause = run_retry_pause(run.retry_count + 1)
                return entry._replace(action="retry", step_id=error.step_id, wake_after=pause, error=error)
            case Fail(error):
                self._failure = decision.cause
                return entry._replace(action="fail", step_id=error.step_id, error=error)

    def _sealed(self, entry: Entry) -> Entry:
        """An entry as it is stored."""
        if not self._payloads.writes:
            return entry
        entry, refused = sealed(entry, self._payloads)
        if refused is not None:
            self._logger.error("pgworkflows: run %s: %s", self.run.run_id, refused.message)
        return entry

    def _child_row(self, start: ChildStart) -> dict[str, Any]:
        """What a child is started with, as the journal writes it."""
        command = start.command
        return {
            "workflow_id": command.workflow_id,
            "input": start.input,
            "resource_id": command.resource_id,
            "idempotency_key": command.idempotency_key,
            "priority": command.priority,
            "retries": command.retries,
            "timeout": interval_text(command.run_timeout),
            "headers": self.headers_for_child() or None,
            "fallback": options_of(command.workflow) if isinstance(command.workflow, WorkflowRef) else None,
        }
