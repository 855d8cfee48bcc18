"""The runner of workflows under test: it drives them in the test's own thread, moves time, and lets things go wrong."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.durations import Duration, parse_duration
from pgworkflows.engine import WorkflowEngine
from pgworkflows.operations import RunId, run_key
from pgworkflows.plugins import Plugin
from pgworkflows.testing.clock import Clock
from pgworkflows.testing.driver import Driver
from pgworkflows.testing.faults import Fault, Faults
from pgworkflows.testing.run import Run
from pgworkflows.worker_connection import WorkerConnection

STUCK_AFTER = 100


class Workflows:
    """Drives the workflows of an engine, whose database is the test's own.

    What starts or changes a run returns once every run has come to its next wait, or to its end. Nothing else passes
    the time: it moves by `travel`, and then in the database, for all that the library judges by the clock.
    """

    def __init__(
        self, engine: WorkflowEngine, connection: WorkerConnection | None = None, plugins: tuple[Plugin, ...] = ()
    ) -> None:
        self.engine = engine
        self._connection = connection or WorkerConnection(engine.conninfo, engine.schema)
        self._faults = Faults()
        self._clock = Clock(self._connection)
        self._driver = Driver(engine, self._connection, (*plugins, self._faults), self._faults)
        self.driving = False
        """Whether runs are being driven at the moment: what wakes others then is seen to without being asked."""

    def register(self, *workflows: Workflow[Any, Any]) -> None:
        """Make workflows known: those that are started by their id, by a schedule, or as a child."""
        for workflow in workflows:
            if self.engine.registered.get(workflow.id) is not workflow:
                self.engine.register_workflow(workflow)

    def start(self, workflow: WorkflowRef[Any, Any] | str, input: Any = None, **options: Any) -> Run:
        """Start a run, registering its workflow; options as those of `start_workflow`."""
        if isinstance(workflow, Workflow):
            self.register(workflow)
        if options.get("queue") is not None:
            self._driver.serve(options["queue"])
        started = self.engine.start_workflow(workflow, input, **options)
        self.run_until_idle()
        return self.run(started.id)

    def run(self, run_id: RunId) -> Run:
        """A run that was started elsewhere: by a view, a schedule, a parent."""
        return Run(self.engine, run_key(run_id), self.run_until_idle, self._faults)

    def last_run(self, workflow: WorkflowRef[Any, Any] | str) -> Run:
        """The newest run of a workflow. Raises AssertionError if there is none."""
        workflow_id = workflow if isinstance(workflow, str) else workflow.id
        found = self.engine.get_workflow_last_run(workflow_id)
        if found is None:
            raise AssertionError(f"workflow {workflow_id!r} has no run")
        return self.run(found.id)

    def run_until_idle(self) -> None:
        """Advance every run that is ready to its next wait or its end, and fire the schedules that are due."""
        if self.driving:
            return
        self.driving = True
        try:
            self._driver.run_until_idle()
        finally:
            self.driving = False

    def now(self) -> datetime:
        """The time by the database's clock, which `travel` moves."""
        return self._clock.now()

    def travel(self, duration: Duration | None = None, /, **parts: float) -> None:
        """Let time pass: `travel("3 days")`, or with the arguments of timedelta, `travel(days=3, hours=12)`. What falls
        due on the way happens in order, each at its time: waits end, retries and polls are made, schedules fire."""
        if (duration is None) is (not parts):
            raise TypeError(
                'travel takes a duration, such as travel("3 days"), or parts of one, such as travel(days=3)'
            )
        self.travel_to(self.now() + parse_duration(timedelta(**parts) if duration is None else duration))

    def travel_to(self, moment: datetime) -> None:
        """Let time pass until then, in the same way. Raises ValueError for a moment that is past."""
        if moment.tzinfo is None:
            raise ValueError(f"travel_to takes an aware datetime, not {moment!r}: give it a tzinfo")
        if moment < self.now():
            raise ValueError(f"time goes forward only: it is {self.now():%Y-%m-%d %H:%M:%S%z}, later than {moment}")
        self.run_until_idle()
        with self._clock.standing():
            while (due := self._next_due(moment)) is not None:
                self._go_to(due)
            self._clock.stand_at(moment)
            self.run_until_idle()

    def travel_to_next(self) -> datetime:
        """Let time pass until something is due: the end of a wait, a retry, a poll, a run's timeout, a schedule. Which
        moment that was. Raises AssertionError if nothing ever will be."""
        self.run_until_idle()
        with self._clock.standing():
            due = self._next_due()
            if due is None:
                raise AssertionError("nothing waits for a time: no timer, timeout, retry, poll or schedule is ahead")
            self._go_to(due)
        return due

    def fail_step(
        self,
        step_id: str,
        times: int | None = 1,
        error: BaseException | type[BaseException] | None = None,
    ) -> None:
        """Let the next calls of a step, in whatever run, raise `error` (by default a RuntimeError) and not call its
        function; with `times` None all of them."""
        self._faults.fail(Fault(step_id, times, error or RuntimeError("the test lets it fail")))

    def crash_after(self, step_id: str) -> None:
        """Let the worker die once, right after the step's outcome is stored. Another takes the run over at once."""
        self._faults.crash("after", Fault(step_id))

    def crash_before_checkpoint(self, step_id: str) -> None:
        """Let the worker die once, after the step's function has returned and before that is stored: it is called
        again."""
        self._faults.crash("before", Fault(step_id))

    def check_faults(self) -> None:
        """Raise AssertionError if a step was to fail, or to be crashed at, that was never called. The fixture does."""
        unmet = self._faults.unmet()
        if unmet:
            names = ", ".join(map(repr, sorted(set(unmet))))
            raise AssertionError(f"nothing ever happened at step {names}, where the test lets something happen")

    def sign_off(self) -> None:
        """Drive no more, and leave the engine as it is."""
        self._driver.close()
        self._connection.close()

    def close(self) -> None:
        """Drive no more, and close the engine."""
        self.sign_off()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_due(self, until: datetime | None = None) -> datetime | None:
        """The next moment at which something is due, if that comes by then."""
        due, gone_on = self._clock.next_due()
        tick = self._driver.next_tick
        if until is not None and due is not None and due > until + gone_on:
            due = None
        if until is not None and tick is not None and tick > until:
            tick = None
        return min((each for each in (due, tick) if each is not None), default=None)

    def _go_to(self, due: datetime) -> None:
        for _ in range(STUCK_AFTER):
            self._clock.stand_at(due)
            self.run_until_idle()
            if self._next_due() != due:
                return
        raise RuntimeError(
            f"what was due at {due} is not done: end the transaction in which the test, or what it runs, has changed it"
        )
