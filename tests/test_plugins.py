"""Plugins: what they see, how they are nested, and that nothing they do loses what a step did or how a run ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plays import Play, ending
from random_workflows import Block, Mail, mails, trees
from waiting import until
from working import HandWorker, make_due, rows, value, working

from pgworkflows import (
    ExecutionOutcome,
    RunContext,
    RunStatus,
    Step,
    StepFailedError,
    StepInfo,
    Steps,
    StepTimeoutError,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRun,
    crew,
    current_step,
    heartbeat,
    workflow,
    workflow_ref,
)
from pgworkflows.plugins import checked_plugins, injected

Call = Callable[[], Any]


class Diary:
    """A plugin that notes what it sees."""

    def __init__(self, name: str = "diary", lines: list[str] | None = None) -> None:
        self.name = name
        self.lines: list[str] = [] if lines is None else lines
        self.contexts: list[RunContext] = []
        self.steps: list[StepInfo] = []
        self.failures: list[BaseException | None] = []

    @contextmanager
    def wrap_run(self, context: RunContext) -> Generator[None]:
        assert context.outcome is None
        self.contexts.append(context)
        self.lines.append(f"{self.name}: enter")
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            self.failures.append(failure)
            self.lines.append(f"{self.name}: {context.outcome}")

    def wrap_step(self, context: RunContext, step: StepInfo, call: Call) -> Any:
        self.steps.append(step)
        self.lines.append(f"{self.name}: {step.id} begins")
        try:
            return call()
        finally:
            self.lines.append(f"{self.name}: {step.id} ends")


class Around:
    """A plugin made of functions."""

    def __init__(self, name: str = "around", **hooks: Callable[..., Any]) -> None:
        self.name = name
        self.__dict__ |= hooks


class Lines(logging.Handler):
    """What was logged about plugins."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "plugin" in record.getMessage():
            assert not record.exc_info  # its frames would hold what the user's variables do
            line, where = record.getMessage().split("\n", 1)
            assert 'File "' in where
            self.lines.append(line)


@pytest.fixture
def complaints() -> Lines:
    return Lines()


@pytest.fixture
def engine(database_url: str, complaints: Lines) -> Iterator[WorkflowEngine]:
    logger = logging.Logger("plugins under test")
    logger.addHandler(complaints)
    with WorkflowEngine(database_url, logger=logger) as engine:
        yield engine


@pytest.fixture
def calls() -> list[str]:
    return []


def worked(engine: WorkflowEngine, name: Any, input: Any = None) -> WorkflowRun:
    """A new run, after a worker has found nothing more to do."""
    run = engine.start_workflow(name, input)
    engine.worker(threads=2).run_until_idle("20s")
    return engine.get_run(run.id)


def lines_of(url: str) -> list[tuple[Any, ...]]:
    return rows(url, "select step_id, status, output::text, attempts from pgworkflows.steps order by position")


# What they see ------------------------------------------------------------------------------------------------------


def test_the_first_plugin_is_the_outermost_and_the_engines_stand_outside_the_workflows(database_url: str) -> None:
    lines: list[str] = []
    names = ("engine's first", "engine's second", "workflow's first", "workflow's second")
    a, b, c, d = (Diary(name, lines) for name in names)

    @workflow("nested", plugins=[c, d])
    def nested(step: Step) -> Steps[None]:
        lines.append("handler")
        yield step.run("only", lines.append, "step")

    with WorkflowEngine(database_url, workflows=[nested], plugins=[a, b]) as engine:
        assert worked(engine, "nested").status == "completed"
    assert lines == [
        *(f"{name}: enter" for name in names),
        "handler",
        *(f"{name}: only begins" for name in names),
        "step",
        *(f"{name}: only ends" for name in reversed(names)),
        *(f"{name}: completed" for name in reversed(names)),
    ]


def test_a_plugin_of_a_reference_s_handler_stands_around_its_runs(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow_ref("referred").handler(plugins=(diary,))
    def referred(step: Step, input: Any) -> Steps[None]:
        yield step.delay("no time", 0)

    engine.register_workflow(referred)
    worked(engine, "referred")
    assert diary.lines == ["diary: enter", "diary: completed"]


def test_only_executed_steps_are_wrapped_and_each_execution_is_entered_and_left_once(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow("over waits", plugins=[diary])
    def over_waits(step: Step) -> Steps[Any]:
        one = yield step.run("one", lambda: 1)
        event = yield step.wait_for("event", "go")
        found = yield step.poll("poll", lambda: "found" if current_step().attempt == 2 else None, interval=1)
        return [one, event, found.data]

    engine.register_workflow(over_waits)
    run = worked(engine, "over waits")
    assert run.status == "waiting"
    engine.trigger_event(run.id, "go", 2)
    engine.worker().run_until_idle("20s")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).output == [1, 2, "found"]
    assert diary.lines == [
        *("diary: enter", "diary: one begins", "diary: one ends", "diary: waiting"),
        *("diary: enter", "diary: poll begins", "diary: poll ends", "diary: waiting"),
        *("diary: enter", "diary: poll begins", "diary: poll ends", "diary: completed"),
    ]
    assert [(step.step_id, step.kind, step.attempt) for step in diary.steps] == [
        ("one", "run", 1),
        ("poll", "poll", 1),
        ("poll", "poll", 2),
    ]


def test_the_context_tells_what_step_context_tells_and_more(database_url: str) -> None:
    seen: dict[str, Any] = {}
    records: list[logging.LogRecord] = []

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    def wrap_step(context: RunContext, step: StepInfo, call: Call) -> Any:
        seen["timeline"] = dict(context.timeline)
        seen["step"] = (step, current_step().idempotency_key)
        context.logger.warning("a plugin speaks")
        return call()

    diary = Diary()
    logger = logging.Logger("theirs")
    logger.addHandler(Records())

    @workflow("told", plugins=[diary, Around(wrap_step=wrap_step)])
    def told(step: Step, input: dict[str, int]) -> Steps[None]:
        yield step.delay("first", 0)
        yield step.run("second", lambda: None)

    with WorkflowEngine(database_url, workflows=[told], logger=logger) as engine:
        run = engine.start_workflow(told, {"n": 1}, resource_id="ada")
        engine.worker().run_until_idle("20s")
    [context] = diary.contexts
    assert (context.run_id, context.workflow_id, context.resource_id) == (run.id, "told", "ada")
    assert (context.attempt, context.input, context.schedule) == (1, {"n": 1}, None)
    assert context.outcome is ExecutionOutcome.COMPLETED
    assert seen["timeline"] == {"first": None}
    step, key = seen["step"]
    assert step == StepInfo("second", "run", 1, key)
    [said] = [record for record in records if "plugin" in record.getMessage()]
    assert (said.getMessage(), vars(said)["run_id"]) == ("a plugin speaks", str(run.id))


def test_a_handler_s_failure_is_given_to_the_plugins(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow("fails", retries=1, plugins=[diary])
    def fails(step: Step, input: str) -> Steps[None]:
        if input == "step":
            yield step.run("bad", int, "x")
        raise KeyError(input)

    engine.register_workflow(fails)
    for what in ("handler", "step"):
        run = worked(engine, "fails", what)
        assert (run.status, run.retry_count) == ("pending", 1)
        make_due(engine.conninfo)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).status == "failed"
    assert [context.attempt for context in diary.contexts] == [1, 2, 1, 2]
    assert [str(context.outcome) for context in diary.contexts] == ["retrying", "failed"] * 2
    assert [type(failure) for failure in diary.failures] == [KeyError, KeyError, StepFailedError, StepFailedError]


def test_an_input_that_does_not_fit_any_more_fails_inside_the_plugins(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow("typed", plugins=[diary])
    def typed(step: Step, input: int) -> Steps[None]:
        yield step.delay("no time", 0)

    with WorkflowClient(engine.conninfo) as client:
        client.start_workflow("typed", "three")
    engine.register_workflow(typed)
    engine.worker().run_until_idle("20s")
    assert diary.lines == ["diary: enter", "diary: failed"]
    assert [type(failure).__name__ for failure in diary.failures] == ["InvalidInputError"]
    assert diary.contexts[0].input is None


@pytest.mark.parametrize("control", ["pause", "cancel"])
def test_what_a_client_asks_for_ends_the_execution(
    engine: WorkflowEngine, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 60.0)
    diary = Diary()
    cleaned: list[str] = []
    threads: list[str] = []

    def ask() -> str:
        getattr(engine, f"{control}_workflow")(diary.contexts[0].run_id)
        return "asked"

    @workflow("steered", plugins=[diary])
    def steered(step: Step) -> Steps[None]:
        try:
            yield step.run("asks", ask)
            yield step.run("never", ask)
        finally:
            cleaned.append(diary.lines[-1])
            threads.append(threading.current_thread().name)

    engine.register_workflow(steered)
    run = worked(engine, "steered")
    outcome = {"pause": "paused", "cancel": "cancelled"}[control]
    assert run.status == outcome
    assert diary.lines == ["diary: enter", "diary: asks begins", "diary: asks ends", f"diary: {outcome}"]
    assert diary.failures == [None]
    assert (cleaned, threads) == (["diary: asks ends"], ["pgworkflows-step"])


def test_a_run_that_was_taken_over_is_lost(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 60.0)
    diary = Diary()

    def lose() -> None:
        if len(diary.contexts) == 1:
            rows(engine.conninfo, "update pgworkflows.queue set claim_id = claim_id - 1")

    @workflow("lost", plugins=[diary])
    def lost(step: Step) -> Steps[None]:
        yield step.run("loses", lose)
        yield step.run("never", lose)

    engine.register_workflow(lost)
    with working(engine):
        engine.start_workflow("lost")
        until(lambda: diary.failures, "the execution is left")
    assert diary.lines == ["diary: enter", "diary: loses begins", "diary: loses ends", "diary: lost"]


def test_a_worker_that_was_declared_dead_has_lost_its_runs(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.05)
    diary = Diary()
    inside = threading.Event()

    def held() -> str:
        if len(diary.contexts) == 1:
            inside.set()
            until(lambda: current_step().cancelled, "it is told")
        return "again"

    @workflow("held", plugins=[diary])
    def held_up(step: Step) -> Steps[str]:
        return (yield from step.run("held", held))

    engine.register_workflow(held_up)
    with working(engine):
        run = engine.start_workflow("held")
        assert inside.wait(20)
        former = value(engine.conninfo, "delete from pgworkflows.workers returning id")
        until(lambda: rows(engine.conninfo, "select id from pgworkflows.workers where id <> %s", former), "it is back")
        with HandWorker(engine.conninfo, []) as other:
            until(lambda: other.take_over() or len(diary.contexts) > 1, "its runs are given back")
            other.die()
        assert engine.wait_for_run(run.id, timeout=20).output == "again"
    assert sorted(str(context.outcome) for context in diary.contexts) == ["completed", "lost"]
    assert len(diary.failures) == 2


def test_a_result_that_only_the_server_refuses_gives_the_run_back_and_then_fails_it(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow("refused", plugins=[diary])
    def refused(step: Step, input: str) -> Steps[Any]:
        yield step.run("bad", lambda: "bad")
        if input == "goes on":
            yield step.run("never", lambda: None)

    engine.register_workflow(refused)
    rows(engine.conninfo, "alter table pgworkflows.steps add check (output::text <> '\"bad\"')")
    for what, outcome in (("goes on", "released"), ("ends", "completed")):
        diary.contexts.clear()
        run = worked(engine, "refused", what)
        assert run.error is not None
        assert (run.status, run.error["type"]) == ("failed", "SerializationError")
        assert [str(context.outcome) for context in diary.contexts] == [outcome, "failed"]
    assert len(diary.failures) == 4


def test_a_worker_that_stops_leaves_every_execution_once(engine: WorkflowEngine) -> None:
    diary = Diary()
    inside, door = threading.Semaphore(0), threading.Event()

    def held() -> None:
        inside.release()
        door.wait(20)

    @workflow("held", plugins=[diary])
    def held_up(step: Step) -> Steps[None]:
        yield step.run("held", held)
        yield step.run("never", lambda: None)

    engine.register_workflow(held_up)
    engine.start_workflows("held", [None] * 3)
    with working(engine, threads=2, grace=0):
        for _ in range(2):
            assert inside.acquire(timeout=20)
    begun = len(diary.contexts)
    assert begun in (2, 3)
    assert diary.lines.count("diary: released") == begun
    door.set()
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue where status = 'pending'") == 3
    engine.worker().run_until_idle("20s")
    assert diary.lines.count("diary: released") == begun
    assert diary.lines.count("diary: completed") == 3


# What they may change -----------------------------------------------------------------------------------------------


def test_what_wrap_step_returns_is_the_result_of_the_step(engine: WorkflowEngine) -> None:
    twice = Around(wrap_step=lambda context, step, call: call() * 2)

    @workflow("doubled", plugins=[twice])
    def doubled(step: Step) -> Steps[Any]:
        return (yield step.run("two", lambda: 1))

    engine.register_workflow(doubled)
    assert worked(engine, "doubled").output == 2
    assert lines_of(engine.conninfo) == [("two", "completed", "2", 1)]


def test_a_plugin_may_answer_in_the_place_of_a_step_or_make_its_failure_a_result(
    engine: WorkflowEngine, calls: list[str], complaints: Lines
) -> None:
    def wrap_step(context: RunContext, step: StepInfo, call: Call) -> Any:
        if step.id == "known":
            return "from the shelf"
        try:
            return call()
        except ZeroDivisionError:
            return "no number"

    @workflow("answered", plugins=[Around(wrap_step=wrap_step)])
    def answered(step: Step) -> Steps[Any]:
        known = yield step.run("known", calls.append, "never")
        divided = yield step.run("divided", lambda: 1 // 0)
        return [known, divided]

    engine.register_workflow(answered)
    assert worked(engine, "answered").output == ["from the shelf", "no number"]
    assert (calls, complaints.lines) == ([], [])


def test_a_plugin_that_raises_before_it_calls_fails_the_step_under_the_step_s_own_policy(
    engine: WorkflowEngine, calls: list[str]
) -> None:
    def wrap_step(context: RunContext, step: StepInfo, call: Call) -> Any:
        if step.attempt == 1:
            raise ConnectionError("not today")
        return call()

    @workflow("refused", plugins=[Around(wrap_step=wrap_step)])
    def refused(step: Step) -> Steps[Any]:
        with_policy = yield step.run("tried again", calls.append, "called").retry(attempts=2)
        try:
            yield step.run("refused", calls.append, "never")
        except StepFailedError as error:
            return [with_policy, error.error_type, error.message]

    engine.register_workflow(refused)
    run = worked(engine, "refused")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).output == [None, "ConnectionError", "not today"]
    assert calls == ["called"]


def test_the_stored_traceback_of_a_step_begins_in_its_own_code(engine: WorkflowEngine) -> None:
    def bad() -> None:
        raise OSError("no")

    @workflow("traced", plugins=[Diary("one"), Diary("two")])
    def traced(step: Step) -> Steps[None]:
        yield step.run("bad", bad)

    engine.register_workflow(traced)
    run = worked(engine, "traced")
    assert run.error is not None
    assert run.error["traceback"].splitlines()[1].endswith("in bad")
    assert run.error["traceback"].count("File") == 1


# What they may not change -------------------------------------------------------------------------------------------

ERRORS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration]


class Hostile:
    """A plugin that does its worst at one place."""

    name = "hostile"

    def __init__(self, where: str, error: type[BaseException] = ValueError) -> None:
        self.where = where
        self.error = error

    def hit(self, where: str) -> None:
        if where == self.where:
            raise self.error("a plugin's own")

    def wrap_run(self, context: RunContext) -> Any:
        self.hit("wrap_run")
        if self.where == "nonsense":
            return 42
        return self

    def __enter__(self) -> None:
        self.hit("enter")

    def __exit__(self, *failure: object) -> bool:
        self.hit("exit")
        return self.where == "swallow"

    def wrap_step(self, context: RunContext, step: StepInfo, call: Call) -> Any:
        try:
            found = call()
        except BaseException:
            self.hit("after a failed call")
            raise
        self.hit("after a call")
        return object() if self.where == "result" else found


PLACES = ["wrap_run", "nonsense", "enter", "exit", "swallow", "after a failed call", "after a call", "result"]


def fails() -> None:
    raise OSError("the step's own")


def check_a_run(engine: WorkflowEngine, plugins: list[Any]) -> None:
    """Run a workflow with every kind of end to an execution in it, and find it as it is without plugins."""

    @workflow("checked", retries=1, plugins=plugins)
    def checked(step: Step, input: str) -> Steps[Any]:
        told: str | None = None
        number = yield step.run("number", lambda: {"n": 1})
        try:
            yield step.run("fails", fails)
        except StepFailedError as error:
            told = error.message
        yield step.delay("wait", "1 hour")
        last = yield step.run("last", lambda: "last")
        if input == "raise" or (input == "raise once" and step.context.attempt == 1):
            raise KeyError("the handler's own")
        return [number, told, last]

    engine.register_workflow(checked)
    runs = [engine.start_workflow("checked", end) for end in ("return", "raise", "raise once")]
    for _ in range(3):
        engine.worker(threads=2).run_until_idle("20s")
        make_due(engine.conninfo)
    ends = [engine.get_run(run.id) for run in runs]
    output = [{"n": 1}, "the step's own", "last"]
    assert [(end.status, end.output, end.retry_count) for end in ends] == [
        ("completed", output, 0),
        ("failed", None, 1),
        ("completed", output, 1),
    ]
    assert ends[1].error is not None
    assert ends[1].error["type"] == "KeyError"
    for end in ends:
        assert [(step.step_id, step.status, step.output, step.attempts) for step in engine.get_steps(end.id)] == [
            ("number", "completed", {"n": 1}, 1),
            ("fails", "failed", None, 1),
            ("wait", "completed", None, 0),
            ("last", "completed", "last", 1),
        ]


@pytest.mark.parametrize("where", PLACES)
def test_a_hostile_plugin_loses_no_checkpoint_and_the_run_ends_as_without_it(
    engine: WorkflowEngine, complaints: Lines, where: str
) -> None:
    outer, inner = Diary("outer"), Diary("inner")
    check_a_run(engine, [outer, Hostile(where), inner])
    assert (complaints.lines == []) == (where == "swallow")
    assert all("plugin hostile raised in " in line for line in complaints.lines)
    for diary in (outer, inner):
        assert sorted(str(context.outcome) for context in diary.contexts) == sorted(
            ["waiting"] * 3 + ["completed"] * 2 + ["failed"] + ["retrying"] * 2
        )
        assert len(diary.failures) == 8
        assert sum(isinstance(failure, KeyError) for failure in diary.failures) == 3


@pytest.mark.parametrize("error", ERRORS[1:])
def test_neither_does_one_that_raises_what_hardly_anybody_catches(
    engine: WorkflowEngine, complaints: Lines, error: type[BaseException]
) -> None:
    places = [place for place in PLACES if place not in ("nonsense", "swallow", "result")]
    check_a_run(engine, [Hostile(place, error) for place in places])
    assert {line.rsplit(": ", 1)[1] for line in complaints.lines} == {error.__name__}


def test_without_plugins_it_ends_like_that(engine: WorkflowEngine) -> None:
    check_a_run(engine, [])


def test_every_complaint_names_the_plugin_the_place_and_the_run(engine: WorkflowEngine, complaints: Lines) -> None:
    class Quiet(Hostile):
        name = "quiet"

    @workflow("complained", plugins=[Quiet("exit"), Hostile("enter"), Hostile("after a call"), Hostile("result")])
    def complained(step: Step) -> Steps[None]:
        yield step.run("only", lambda: None)

    engine.register_workflow(complained)
    run = worked(engine, "complained")
    about = f"of run {run.id}"
    step = "in wrap_step around step 'only'"
    unstorable = "what it returned cannot be stored, and the step's own result stands"
    assert complaints.lines == [
        f"pgworkflows: plugin hostile raised in wrap_run {about}; this execution goes on without it: ValueError",
        f"pgworkflows: plugin hostile raised {step} {about}; what the step did stands: ValueError",
        f"pgworkflows: plugin hostile raised {step} {about}; {unstorable}: SerializationError",
        f"pgworkflows: plugin quiet raised in wrap_run {about}; the run's outcome stands: ValueError",
    ]


@pytest.mark.timeout(60)
def test_a_plugin_that_hangs_when_it_is_left_holds_up_neither_the_run_nor_others_nor_the_end_of_the_worker(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LEAVE_S", 0.1)
    hanging, door = threading.Event(), threading.Event()

    class Hangs:
        name = "hangs"

        @contextmanager
        def wrap_run(self, context: RunContext) -> Generator[None]:
            yield
            if context.input == "hang":
                hanging.set()
                door.wait(50)

    @workflow("left", plugins=[Hangs()])
    def left(step: Step, input: str) -> Steps[str]:
        return (yield from step.run("only", lambda: input))

    engine.register_workflow(left)
    try:
        with working(engine, threads=2):
            run = engine.start_workflow("left", "hang")
            assert engine.wait_for_run(run.id, timeout=20).output == "hang"
            assert hanging.wait(20)
            for _ in range(5):
                other = engine.start_workflow("left", "go on")
                assert engine.wait_for_run(other.id, timeout=20).status == "completed"
    finally:
        door.set()


def test_a_worker_that_stops_waits_for_plugins_that_take_their_time(engine: WorkflowEngine) -> None:
    leaving, door, left = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        @contextmanager
        def wrap_run(self, context: RunContext) -> Generator[None]:
            yield
            leaving.set()
            door.wait(20)
            left.set()

    @workflow("slowly left", plugins=[Slow()])
    def slowly_left(step: Step) -> Steps[None]:
        yield step.delay("no time", 0)

    engine.register_workflow(slowly_left)
    with working(engine):
        run = engine.start_workflow("slowly left")
        engine.wait_for_run(run.id, timeout=20)
        assert leaving.wait(20)
        threading.Timer(0.5, door.set).start()
    assert left.is_set()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    trees(),
    mails,
    st.sampled_from((0, 1)),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(ERRORS)), min_size=1, max_size=3),
)
def test_any_workflow_ends_with_hostile_plugins_as_without(
    tree: Block, mail: list[Mail], retries: int, worst: list[tuple[str, type[BaseException]]]
) -> None:
    calm = Play(tree, mail=mail, retries=retries).run()
    disturbed = Play(tree, mail=mail, retries=retries)
    plugins = [Hostile(where, error) for where, error in worst]
    disturbed.workflow = workflow("modelled", plugins=plugins)(disturbed.told.handler)
    assert ending(disturbed.run()) == ending(calm)


# Context variables ---------------------------------------------------------------------------------------------------

AMBIENT: ContextVar[str] = ContextVar("ambient", default="nothing")


class Ambient:
    """A plugin that sets a context variable for as long as an execution goes on."""

    name = "ambient"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    @contextmanager
    def wrap_run(self, context: RunContext) -> Generator[None]:
        token = AMBIENT.set(str(context.run_id))
        try:
            yield
        finally:
            AMBIENT.reset(token)  # raises in another context than the one in which it was set
            self.seen.append(("left", AMBIENT.get()))


def test_an_execution_has_a_context_of_its_own_over_all_its_threads_and_steps_have_copies(
    engine: WorkflowEngine, complaints: Lines
) -> None:
    ambient = Ambient()
    seen: dict[str, list[tuple[str, str]]] = {}
    threads: set[int] = set()
    meeting = threading.Barrier(4)

    def note(run_id: UUID, where: str) -> None:
        seen.setdefault(str(run_id), []).append((where, AMBIENT.get()))

    def spoil() -> None:
        threads.add(threading.get_ident())
        meeting.wait(20)
        note(current_step().run_id, "step")
        AMBIENT.set("spoilt")

    @workflow("ambient", plugins=[ambient])
    def in_context(step: Step) -> Steps[None]:
        run_id = step.context.run_id
        for number in range(5):
            yield step.run(f"step {number}", spoil)
            note(run_id, "handler")
        yield step.wait_for("event", "go")
        note(run_id, "after the wait")

    engine.register_workflow(in_context)
    runs = [engine.start_workflow("ambient") for _ in range(4)]
    with working(engine, threads=4):
        until(lambda: len(ambient.seen) == 4, "all wait")
        for run in runs:
            engine.trigger_event(run.id, "go")
            engine.wait_for_run(run.id, timeout=20)
    assert len(threads) > 1
    assert ambient.seen == [("left", "nothing")] * 8
    for run in runs:
        own = str(run.id)
        # The last execution replays, so its handler notes once more.
        assert [where for where, _ in seen[own]] == ["step", "handler"] * 5 + ["handler"] * 5 + ["after the wait"]
        assert {found for _, found in seen[own]} == {own}
    assert complaints.lines == []


def test_a_step_that_hangs_past_its_timeout_does_not_keep_the_execution_out_of_its_context(
    engine: WorkflowEngine, complaints: Lines
) -> None:
    ambient, door = Ambient(), threading.Event()
    diary = Diary()

    @workflow("hung", plugins=[ambient, diary])
    def hung(step: Step) -> Steps[list[Any]]:
        seen: list[Any] = []
        try:
            yield step.run("hangs", lambda: bool(door.wait(20))).timeout(0.05)
        except StepTimeoutError:
            seen.append(AMBIENT.get())
        seen.append((yield step.run("reads", AMBIENT.get)))
        return seen

    engine.register_workflow(hung)
    try:
        run = worked(engine, "hung")
        assert run.output == [str(run.id)] * 2
        assert diary.lines[-1] == "diary: completed"
    finally:
        door.set()
    until(lambda: "diary: hangs ends" in diary.lines, "the late function returns")
    assert run.status is RunStatus.COMPLETED
    assert diary.lines.count("diary: completed") == 1
    assert complaints.lines == []


# Headers -------------------------------------------------------------------------------------------------------------


def test_each_plugin_adds_to_the_headers_and_one_that_fails_adds_nothing(complaints: Lines) -> None:
    logger = logging.Logger("told")
    logger.addHandler(complaints)

    def half_way(headers: dict[str, str]) -> None:
        headers["half"] = "way"
        raise SystemExit

    plugins: list[Any] = [
        Around("first", inject=lambda headers: headers.update(a="1")),
        Around("half way", inject=half_way),
        Around("numbers", inject=lambda headers: headers.update(a=1)),
        Around("unstorable", inject=lambda headers: headers.update(b="\0")),
        Around("long", inject=lambda headers: headers.update(b="x" * 20_000)),
        Around("last", inject=lambda headers: headers.update(c=headers["a"] + "é")),
        Diary(),
    ]
    assert injected(plugins, logger) == {"a": "1", "c": "1é"}
    assert injected([Diary()], logger) == {}
    assert injected(plugins[:1], logger, {"a": "0", "z": "9"}) == {"a": "1", "z": "9"}
    assert [line.split(" raised in inject; the run starts without its headers: ") for line in complaints.lines] == [
        ["pgworkflows: plugin half way", "SystemExit"],
        ["pgworkflows: plugin numbers", "TypeError"],
        ["pgworkflows: plugin unstorable", "ValueError"],
        ["pgworkflows: plugin long", "ValueError"],
    ]


def test_an_interrupt_from_the_keyboard_is_not_the_plugin_s() -> None:
    def interrupted(headers: dict[str, str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        injected([Around(inject=interrupted)], logging.getLogger())


def test_what_plugins_inject_where_a_run_is_started_is_there_in_all_its_executions(database_url: str) -> None:
    diary = Diary()
    ambient: ContextVar[str] = ContextVar("ambient of the caller")
    outer = Around("outer", inject=lambda headers: headers.update(caller=ambient.get(), outer="yes"))
    inner = Around("inner", inject=lambda headers: headers.update(outer="no", inner="yes"))

    @workflow("told", plugins=[inner, diary])
    def told(step: Step) -> Steps[None]:
        yield step.delay("wait", "1 hour")

    @workflow("without", plugins=[diary])
    def without(step: Step) -> Steps[None]:
        yield step.delay("no time", 0)

    ambient.set("the caller's")
    sent = {"caller": "the caller's", "outer": "no", "inner": "yes"}
    with WorkflowEngine(database_url, workflows=[told, without], plugins=[outer]) as engine:
        for start in (told, "told", workflow_ref("told")):
            worked(engine, start)
        [run] = engine.start_workflows(told, [None])
        engine.worker().run_until_idle("20s")
        make_due(database_url)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).status == "completed"
        assert [dict(context.headers) for context in diary.contexts] == [sent] * 8
        diary.contexts.clear()
        with WorkflowClient(database_url) as client:
            client.start_workflow("without")
        with WorkflowClient(database_url, plugins=[outer]) as client:
            client.start_workflow("without")
        engine.worker().run_until_idle("20s")
        assert sorted(sorted(context.headers.items()) for context in diary.contexts) == [
            [],
            [("caller", "the caller's"), ("outer", "yes")],
        ]


def test_a_start_is_not_stopped_by_a_plugin_that_fails(database_url: str, complaints: Lines) -> None:
    logger = logging.Logger("told")
    logger.addHandler(complaints)

    def fail(headers: dict[str, str]) -> None:
        raise OSError("no")

    @workflow("told")
    def told(step: Step) -> Steps[None]:
        yield step.delay("no time", 0)

    with WorkflowEngine(database_url, workflows=[told], plugins=[Around(inject=fail)], logger=logger) as engine:
        assert worked(engine, "told").status == "completed"
    assert len(complaints.lines) == 1
    assert value(database_url, "select headers from pgworkflows.runs") is None


def test_the_queue_lag_is_how_long_a_run_was_ready_before_it_was_claimed(engine: WorkflowEngine) -> None:
    diary = Diary()

    @workflow("late", plugins=[diary])
    def late(step: Step) -> Steps[None]:
        yield step.delay("wait", "1 hour")

    engine.register_workflow(late)
    run = engine.start_workflow("late", delay="1 hour")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    rows(engine.conninfo, "update pgworkflows.steps set wake_at = wake_at - interval '1 hour'")
    rows(engine.conninfo, "update pgworkflows.queue set wake_at = now() - interval '90 seconds'")
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status == "completed"
    lags = [context.queue_lag.total_seconds() for context in diary.contexts]
    assert 0 <= lags[0] < 20
    assert 90 <= lags[1] < 110


# What is none --------------------------------------------------------------------------------------------------------


async def asynchronous(*_: Any) -> None: ...


def generating(*_: Any) -> Generator[None]:
    yield


@pytest.mark.parametrize(
    ("plugins", "complaint"),
    [
        ("otel", "must be a list of plugins, not str"),
        (Diary(), "must be a list of plugins, not Diary"),
        ([Diary], "plugin Diary is a class"),
        ([object()], "needs a name, which is text; that of a object is None"),
        ([Around(3)], "that of a Around is 3"),  # type: ignore[arg-type]  # the mistake
        ([Around("")], "that of a Around is ''"),
        ([Around("x", wrap_run=3)], "wrap_run of plugin 'x' must be a method, not int"),  # type: ignore[arg-type]  # too
        ([Around("x", wrap_step=asynchronous)], "wrap_step of plugin 'x' must not be async"),
        (
            [Around("x", wrap_run=generating)],
            "wrap_run of plugin 'x' is a generator function: decorate it",
        ),
        ([Around("x", inject=generating)], "inject of plugin 'x' is a generator function: it must not yield"),
    ],
)
def test_what_is_no_plugin_is_refused_wherever_it_is_given(plugins: Any, complaint: str) -> None:
    for give in (
        lambda: WorkflowEngine("postgresql://", plugins=plugins),
        lambda: WorkflowClient("postgresql://", plugins=plugins),
        lambda: workflow("any", plugins=plugins),
        lambda: workflow_ref("any").handler(plugins=plugins),
    ):
        with pytest.raises(TypeError) as caught:
            give()
        assert complaint in str(caught.value)


def test_a_plugin_may_have_any_of_the_methods_or_none(engine: WorkflowEngine) -> None:
    assert [plugin.name for plugin in checked_plugins(iter([Around("a"), Around("b")]))] == ["a", "b"]

    @workflow("any", plugins=[Around("none"), Around("run", wrap_run=lambda context: nullcontext())])
    def any_of_them(step: Step) -> Steps[int]:
        return (yield from step.run("one", lambda: 1))

    engine.register_workflow(any_of_them)
    assert worked(engine, "any").output == 1
