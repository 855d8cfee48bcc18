"""Traces and metrics by OpenTelemetry, as its SDK gets them, of runs on real workers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from waiting import until
from working import make_due, rows, worker_processes, working

from pgworkflows import (
    RunContext,
    RunStatus,
    Step,
    StepFailedError,
    Steps,
    StepTimeoutError,
    WorkflowClient,
    WorkflowEngine,
    current_step,
    heartbeat,
    workflow,
)
from pgworkflows.otel import OpenTelemetryPlugin


class Telescope:
    """The SDK with exporters in memory, and a plugin that reports to it."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("the application's")
        self.plugin = OpenTelemetryPlugin(self.tracers, MeterProvider([self.reader], shutdown_on_exit=False), **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        """What has ended, in the order of its beginning."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def metrics(self) -> dict[str, dict[tuple[Any, ...], Any]]:
        """By name and values of attributes: a sum, or how often a histogram was told something."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[tuple[Any, ...], Any]] = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data is not None else ():
            for point in metric.data.data_points:
                assert isinstance(point, NumberDataPoint | HistogramDataPoint)
                number = point.value if isinstance(point, NumberDataPoint) else point.count
                found.setdefault(metric.name, {})[tuple((point.attributes or {}).values())] = number
        return found


@pytest.fixture
def telescope() -> Telescope:
    return Telescope()


@pytest.fixture
def engine(database_url: str, telescope: Telescope, caplog: pytest.LogCaptureFixture) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, plugins=[telescope.plugin]) as engine:
        yield engine
    complaints = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert complaints == []


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan | trace.Span) -> int:
    told = span.get_span_context()
    assert told is not None
    return told.span_id


def trace_of(span: ReadableSpan | trace.Span) -> int:
    told = span.get_span_context()
    assert told is not None
    return told.trace_id


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("pgworkflows."): value for name, value in (span.attributes or {}).items()}


# Spans ---------------------------------------------------------------------------------------------------------------


def test_each_execution_and_each_executed_step_has_a_span(engine: WorkflowEngine, telescope: Telescope) -> None:
    @workflow("order")
    def order(step: Step, input: int) -> Steps[int]:
        price = yield from step.run("price", lambda: input)
        yield from step.wait_for("paid", "paid")
        yield from step.poll("sent", lambda: current_step().attempt == 2, interval=1)
        return price

    engine.register_workflow(order)
    run = engine.start_workflow(order, 5, resource_id="ada")
    engine.worker().run_until_idle("20s")
    engine.trigger_event(run.id, "paid")
    engine.worker().run_until_idle("20s")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status == "completed"
    assert telescope.names == ["run order", "step price", "run order", "step sent", "run order", "step sent"]
    common = {"workflow.id": "order", "run.id": str(run.id), "run.attempt": 1, "resource.id": "ada"}
    first, price, second, sent, third, sent_again = telescope.spans
    assert attributes_of(first) == common | {"run.resumed": False, "run.outcome": "waiting"}
    assert attributes_of(second) == common | {"run.resumed": True, "run.outcome": "waiting"}
    assert attributes_of(third) == common | {"run.resumed": True, "run.outcome": "completed"}
    assert attributes_of(price) == common | {"step.id": "price", "step.kind": "run", "step.attempt": 1}
    assert attributes_of(sent_again) == common | {"step.id": "sent", "step.kind": "poll", "step.attempt": 2}
    assert [parent_of(span) for span in (price, sent, sent_again)] == [id_of(first), id_of(second), id_of(third)]
    assert [span.kind for span in (first, price)] == [SpanKind.CONSUMER, SpanKind.INTERNAL]
    assert {span.status.status_code for span in telescope.spans} == {StatusCode.UNSET}
    assert first.instrumentation_scope is not None
    assert first.instrumentation_scope.name == "pgworkflows"


def test_spans_of_a_step_function_and_of_the_handler_nest_inside(engine: WorkflowEngine, telescope: Telescope) -> None:
    def instrumented() -> None:
        with telescope.tracer.start_as_current_span("query"):
            pass

    @workflow("nested")
    def nested(step: Step) -> Steps[None]:
        for number in range(3):
            yield step.run(f"{number}", instrumented)
        instrumented()

    engine.register_workflow(nested)
    with working(engine, threads=4):
        runs = [engine.start_workflow(nested) for _ in range(5)]
        for run in runs:
            engine.wait_for_run(run.id, timeout=20)
    executions = telescope.named("run nested")
    assert len(executions) == 5
    steps = {id_of(span): span for number in range(3) for span in telescope.named(f"step {number}")}
    assert len(steps) == 15
    inside = [parent_of(span) for span in telescope.named("query")]
    assert sorted(found for found in inside if found is not None) == sorted([*steps, *map(id_of, executions)])
    assert {parent_of(span) for span in steps.values()} == set(map(id_of, executions))
    # Nobody's trace goes on in them: each is one of its own.
    assert len({trace_of(span) for span in executions}) == 5


def test_errors_are_recorded_and_show_in_the_status(engine: WorkflowEngine, telescope: Telescope) -> None:
    def fail(kind: type[Exception]) -> None:
        raise kind("the account is closed")

    class Closed(Exception):
        pass

    @workflow("failing", retries=1)
    def failing(step: Step) -> Steps[None]:
        try:
            yield step.run("caught", fail, ValueError)
        except StepFailedError:
            yield step.run("fails", fail, Closed)

    engine.register_workflow(failing)
    run = engine.start_workflow(failing)
    engine.worker().run_until_idle("20s")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status == "failed"
    first, caught, fails, second, fails_again = telescope.spans
    assert {span.status.status_code for span in telescope.spans} == {StatusCode.ERROR}
    types = [(span.attributes or {})["error.type"] for span in telescope.spans]
    closed = f"{__name__}.{Closed.__qualname__}"
    assert types == ["Closed", "ValueError", closed, "Closed", closed]
    assert [event.name for span in telescope.spans for event in span.events] == ["exception"] * 5
    assert caught.status.description == "ValueError: the account is closed"
    assert [attributes_of(span)["run.outcome"] for span in (first, second)] == ["retrying", "failed"]
    assert [attributes_of(span)["run.attempt"] for span in (first, second)] == [1, 2]
    assert [attributes_of(span)["step.attempt"] for span in (fails, fails_again)] == [1, 2]


def test_a_call_that_was_given_up_says_so_when_it_ends(engine: WorkflowEngine, telescope: Telescope) -> None:
    @workflow("hangs")
    def hangs(step: Step) -> Steps[None]:
        with suppress(StepTimeoutError):
            yield step.run("hangs", lambda: until(lambda: current_step().cancelled, "it is told")).timeout(0.05)

    engine.register_workflow(hangs)
    run = engine.start_workflow(hangs)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status == "completed"
    until(lambda: len(telescope.spans) == 2, "the function returns")
    [step] = telescope.named("step hangs")
    assert attributes_of(step)["step.cancelled"] is True


# The caller's trace --------------------------------------------------------------------------------------------------


def test_the_callers_trace_goes_on_in_the_run_over_waits_and_retries(
    engine: WorkflowEngine, telescope: Telescope, database_url: str
) -> None:
    seen: list[Any] = []

    @workflow("traced")
    def traced(step: Step) -> Steps[None]:
        yield step.wait_for("event", "go")
        yield step.run("reads", lambda: seen.append(baggage.get_baggage("customer")))
        if step.context.attempt == 1:
            raise OSError("once")

    engine.register_workflow(traced)
    with WorkflowClient(database_url, plugins=[OpenTelemetryPlugin()]) as client:
        token = context.attach(baggage.set_baggage("customer", "ada"))
        with telescope.tracer.start_as_current_span("request") as request:
            run = client.start_workflow("traced", retries=1)
        context.detach(token)
    [(headers,)] = rows(database_url, "select headers from pgworkflows.runs")
    assert headers["traceparent"].split("-")[1:3] == [f"{trace_of(request):032x}", f"{id_of(request):016x}"]
    assert headers["baggage"] == "customer=ada"
    engine.worker().run_until_idle("20s")
    engine.trigger_event(run.id, "go")
    engine.worker().run_until_idle("20s")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status == "completed"
    executions = telescope.named("run traced")
    assert [attributes_of(span)["run.outcome"] for span in executions] == ["waiting", "retrying", "completed"]
    assert [parent_of(span) for span in executions] == [id_of(request)] * 3
    assert {trace_of(span) for span in telescope.spans} == {trace_of(request)}
    assert seen == ["ada"]


def test_a_run_whose_callers_span_is_long_gone_has_a_trace_of_its_own_with_a_link(database_url: str) -> None:
    telescope = Telescope(link_after=0)
    seen: list[Any] = []

    @workflow("late")
    def late(step: Step) -> Steps[None]:
        yield step.run("reads", lambda: seen.append(baggage.get_baggage("customer")))

    with WorkflowEngine(database_url, workflows=[late], plugins=[telescope.plugin]) as engine:
        token = context.attach(baggage.set_baggage("customer", "ada"))
        with telescope.tracer.start_as_current_span("request") as request:
            engine.start_workflow(late)
        context.detach(token)
        engine.worker().run_until_idle("20s")
    [execution] = telescope.named("run late")
    assert execution.parent is None
    assert trace_of(execution) != trace_of(request)
    assert [link.context.span_id for link in execution.links] == [id_of(request)]
    assert [trace_of(span) for span in telescope.named("step reads")] == [trace_of(execution)]
    assert seen == ["ada"]


def test_what_is_long_gone_is_judged_by_the_age_of_the_run_when_it_is_claimed(
    engine: WorkflowEngine, telescope: Telescope
) -> None:
    contexts: list[RunContext] = []

    class Notes:
        name = "notes"

        def wrap_run(self, run: RunContext) -> Any:
            contexts.append(run)
            return telescope.tracer.start_as_current_span("notes")

    @workflow("aged", plugins=[Notes()])
    def aged(step: Step) -> Steps[None]:
        yield step.wait_for("event", "go")

    engine.register_workflow(aged)
    with telescope.tracer.start_as_current_span("request") as request:
        run = engine.start_workflow(aged)
    engine.worker().run_until_idle("20s")
    engine.trigger_event(run.id, "go")
    engine.worker().run_until_idle("20s")
    young, older = (each.age for each in contexts)
    assert timedelta(0) <= young < older < timedelta(seconds=30)
    for age, linked in ((timedelta(minutes=4, seconds=59), False), (timedelta(minutes=5), True)):
        with telescope.plugin.wrap_run(replace(contexts[0], age=age)):
            span = trace.get_current_span()
        assert isinstance(span, ReadableSpan)
        assert (parent_of(span) is None, len(span.links)) == (linked, int(linked))
        assert (trace_of(span) == trace_of(request)) != linked


def test_a_run_that_another_worker_takes_over_stays_in_its_callers_trace(
    database_url: str, telescope: Telescope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.1)

    @workflow("story")
    def story(step: Step, input: Any) -> Steps[str]:
        yield step.run("a", lambda: None)
        yield step.run("b", lambda: None)
        return "by the survivor"

    with (
        worker_processes(database_url) as processes,
        WorkflowClient(database_url, plugins=[telescope.plugin]) as client,
    ):
        victim = processes.start()
        victim.await_registration()
        with telescope.tracer.start_as_current_span("request") as request:
            run = client.start_workflow("story", {"steps": ["a", "b"], "gated": ["b"]})
        until(lambda: ("b", victim.pid) in processes.calls(run.id), "it is in its second step")
        with WorkflowEngine(database_url, workflows=[story], plugins=[telescope.plugin]) as engine, working(engine):
            victim.kill()
            assert client.wait_for_run(run.id, timeout=30).output == "by the survivor"
    assert telescope.names == ["request", "run story", "step b"]
    _, execution, step = telescope.spans
    assert parent_of(execution) == id_of(request)
    assert attributes_of(execution)["run.resumed"] is True
    assert parent_of(step) == id_of(execution)


def test_the_trace_goes_on_in_children_under_the_execution_that_invoked_them(
    engine: WorkflowEngine, telescope: Telescope
) -> None:
    @workflow("child")
    def child(step: Step, input: int) -> Steps[int]:
        return (yield from step.run("doubles", lambda: input * 2))

    @workflow("parent")
    def parent(step: Step) -> Steps[Any]:
        first = yield step.invoke_child_workflow("first", child, 1)
        second = yield step.invoke_child_workflow("second", child, first)
        return [first, second]

    engine.register_workflow(child)
    engine.register_workflow(parent)
    with telescope.tracer.start_as_current_span("request") as request:
        run = engine.start_workflow(parent)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).output == [2, 4]
    one, two, three = telescope.named("run parent")
    children = telescope.named("run child")
    assert [parent_of(span) for span in (one, two, three)] == [id_of(request)] * 3
    assert [parent_of(span) for span in children] == [id_of(one), id_of(two)]
    assert [parent_of(span) for span in telescope.named("step doubles")] == [id_of(span) for span in children]
    assert {trace_of(span) for span in telescope.spans} == {trace_of(request)}


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_count_runs_claims_steps_and_lag(engine: WorkflowEngine, telescope: Telescope) -> None:
    @workflow("counted", retries=1)
    def counted(step: Step, input: str) -> Steps[None]:
        yield step.run("works", lambda: None)
        if input == "cancel":
            yield step.run("cancels", lambda: str(engine.cancel_workflow(step.context.run_id).id))
            yield step.run("never", lambda: None)
        yield step.run("fails", int, "x" if input == "fail" else "1")

    engine.register_workflow(counted)
    runs = [engine.start_workflow(counted, what) for what in ("succeed", "succeed", "fail", "cancel")]
    engine.worker().run_until_idle("20s")
    make_due(engine.conninfo)
    engine.worker().run_until_idle("20s")
    completed, failed, cancelled = RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED
    assert [engine.get_run(run.id).status for run in runs] == [completed, completed, failed, cancelled]
    found = telescope.metrics()
    assert found == {
        "pgworkflows.runs.started": {("counted",): 4},
        "pgworkflows.runs.finished": {
            ("counted", "completed"): 2,
            ("counted", "failed"): 1,
            ("counted", "cancelled"): 1,
        },
        "pgworkflows.claims": {("counted",): 5},
        "pgworkflows.queue.lag": {("counted",): 5},
        "pgworkflows.step.duration": {
            ("counted", "works", "run"): 4,
            ("counted", "cancels", "run"): 1,
            ("counted", "fails", "run"): 2,
            ("counted", "fails", "run", "ValueError"): 2,
        },
    }


# The extra -----------------------------------------------------------------------------------------------------------


def test_without_providers_it_uses_the_global_ones_and_without_an_sdk_it_does_nothing(database_url: str) -> None:
    @workflow("silent")
    def silent(step: Step) -> Steps[int]:
        return (yield from step.run("one", lambda: 1))

    with WorkflowEngine(database_url, workflows=[silent], plugins=[OpenTelemetryPlugin()]) as engine:
        run = engine.start_workflow(silent)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == 1
    headers: dict[str, str] = {}
    propagate.inject(headers)
    assert headers == {}
    assert rows(database_url, "select headers from pgworkflows.runs") == [(None,)]


def test_the_package_does_not_import_opentelemetry_and_the_plugin_says_what_to_install() -> None:
    code = """
import sys
import pgworkflows
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
try:
    import pgworkflows.otel
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "pgworkflows.otel needs the API of OpenTelemetry: pip install 'pgworkflows[otel]'\n", (
        done.stderr
    )


def test_an_age_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="link_after"):
        OpenTelemetryPlugin(link_after="soon")
