"""A run under test: what a test does to it, and what it claims of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID

from pgworkflows.engine import WorkflowEngine
from pgworkflows.history import StepRecord
from pgworkflows.runs import RunStatus, WorkflowRun
from pgworkflows.testing.faults import Faults
from pgworkflows.testing.timeline import difference, indented, state, timeline, waiting_step

ANYTHING: Any = object()


class Run:
    """One run. Each call reads it anew; what changes it returns when it has come to its next wait, or to its end."""

    def __init__(
        self, engine: WorkflowEngine, run_id: UUID, run_until_idle: Callable[[], None], faults: Faults
    ) -> None:
        self.id = run_id
        self._engine = engine
        self._run_until_idle = run_until_idle
        self._faults = faults

    def __repr__(self) -> str:
        record = self.record
        return f"<run {self.id} of {record.workflow_id!r}, {state(record, self.steps)}>"

    @property
    def record(self) -> WorkflowRun:
        """The run as it is stored."""
        return self._engine.get_run(self.id)

    @property
    def status(self) -> RunStatus:
        return self.record.status

    @property
    def output(self) -> Any:
        """What the handler returned, as JSON."""
        return self.record.output

    @property
    def error(self) -> dict[str, Any] | None:
        """What the run failed with: `type`, `message`, `traceback`, `step_id`."""
        return self.record.error

    @property
    def steps(self) -> list[StepRecord]:
        """The steps it has reached, in order."""
        return self._engine.get_steps(self.id)

    @property
    def timeline(self) -> str:
        """The same to look at: one line a step."""
        return timeline(self.steps)

    def step(self, step_id: str) -> StepRecord:
        """One of its steps. Raises AssertionError if the run has not reached it."""
        found = next((step for step in self.steps if step.step_id == step_id), None)
        if found is None:
            self._fail(f"has not reached step {step_id!r}")
        return found

    def calls(self, step_id: str) -> int:
        """How often the step's function was called, in this test."""
        return self._faults.calls[self.id, step_id]

    def send(self, event_name: str, data: Any = None) -> None:
        """Send it an event."""
        self._engine.trigger_event(self.id, event_name, data)
        self._run_until_idle()

    def pause(self) -> None:
        self._engine.pause_workflow(self.id)

    def resume(self) -> None:
        self._engine.resume_workflow(self.id)
        self._run_until_idle()

    def cancel(self) -> None:
        self._engine.cancel_workflow(self.id)
        self._run_until_idle()

    def retry(self) -> None:
        self._engine.retry_workflow(self.id)
        self._run_until_idle()

    def fast_forward(self, data: Any = None) -> None:
        """Complete the wait that it is in."""
        self._engine.fast_forward_workflow(self.id, data)
        self._run_until_idle()

    def assert_completed(self, output: Any = ANYTHING) -> None:
        """It is completed, with this output if one is given."""
        __tracebackhide__ = True
        record = self.record
        if record.status is not RunStatus.COMPLETED:
            self._fail("is not completed")
        if output is not ANYTHING and record.output != output:
            self._fail("is completed, but with another output", difference(output, record.output))

    def assert_failed(self, error_type: str | None = None, *, step: str | None = None) -> None:
        """It has failed: with an exception of a class of this name, with that of this step, if they are given."""
        __tracebackhide__ = True
        error = self.record.error
        if self.status is not RunStatus.FAILED or error is None:
            self._fail("has not failed")
        if error_type is not None and error["type"] != error_type:
            self._fail("has failed, but with another error", difference(error_type, error["type"]))
        if step is not None and error["step_id"] != step:
            self._fail("has failed, but elsewhere", difference(step, error["step_id"]))

    def assert_waiting_for(self, name: str) -> None:
        """It waits for the event of this name, or in the step of this id; a pause step is a wait as well."""
        __tracebackhide__ = True
        wait = waiting_step(self.steps)
        if self.status.finished or wait is None or name not in (wait.event_name, wait.step_id):
            self._fail(f"is not waiting for {name!r}")

    def assert_step_ran_once(self, step_id: str) -> None:
        """The step's function was called once in this test, crashes and retries included, and the step is completed."""
        __tracebackhide__ = True
        self.assert_step_ran(step_id, times=1)
        step = self.step(step_id)
        if step.completed_at is None or step.error is not None:
            self._fail(f"has called step {step_id!r} once, but that is {step.status}")

    def assert_step_ran(self, step_id: str, *, times: int) -> None:
        """The step's function was called so often in this test."""
        __tracebackhide__ = True
        calls = self.calls(step_id)
        if calls != times:
            self._fail(f"has called the function of step {step_id!r} {_times(calls)}, not {_times(times)}")

    def _fail(self, what: str, detail: str = "") -> NoReturn:
        __tracebackhide__ = True
        record, steps = self.record, self.steps
        said = [f"run {self.id} of workflow {record.workflow_id!r} {what}"]
        if detail:
            said.append(indented(detail))
        said += [f"it is {state(record, steps)}", "timeline:", indented(timeline(steps))]
        cause = self._faults.raised.get(self.id) if record.error is not None else None
        raise AssertionError("\n".join(said)) from cause


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
