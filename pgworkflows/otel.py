"""Traces and metrics by OpenTelemetry: a plugin. Needs the extra `otel`, which is OpenTelemetry's API; what becomes of
the spans and numbers is up to the SDK that the application sets up."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from pgworkflows.current import current_step
from pgworkflows.durations import Duration, parse_duration
from pgworkflows.errors import StepFailedError
from pgworkflows.plugins import ExecutionOutcome, RunContext, StepInfo

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
    from opentelemetry.util.types import AttributeValue
except ImportError as error:
    raise ImportError(
        "pgworkflows.otel needs the API of OpenTelemetry: pip install 'pgworkflows[otel]'", name=error.name
    ) from error

SCOPE = "pgworkflows"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Bounds of the histograms' buckets: those that the conventions give for requests, and on to an hour."""

FINISHED = frozenset({ExecutionOutcome.COMPLETED, ExecutionOutcome.FAILED, ExecutionOutcome.CANCELLED})


class OpenTelemetryPlugin:
    """A span for each execution of a run and for each call of a step function, and metrics of both.

    Give it to engines, and to clients, whose trace then goes on in the runs they start. The providers are the global
    ones unless they are given. A run that was started longer than `link_after` ago, by the database's clock when it is
    claimed, gets a new trace, linked to its caller's span; before that its spans are children of it.
    """

    name = "opentelemetry"

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        link_after: Duration = "5 minutes",
    ) -> None:
        self._link_after: timedelta = parse_duration(link_after, "link_after")
        self._tracer = trace.get_tracer(SCOPE, version("pgworkflows"), tracer_provider)
        meter = metrics.get_meter(SCOPE, version("pgworkflows"), meter_provider)
        self._started = meter.create_counter(
            "pgworkflows.runs.started", "{run}", "Runs whose first execution has begun in this process"
        )
        self._finished = meter.create_counter(
            "pgworkflows.runs.finished", "{run}", "Runs that have ended in an execution of this process, by status"
        )
        self._claims = meter.create_counter(
            "pgworkflows.claims", "{claim}", "Runs that this process has claimed and begun or resumed"
        )
        self._lag = meter.create_histogram(
            "pgworkflows.queue.lag",
            "s",
            "How long a run had been ready when it was claimed",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._duration = meter.create_histogram(
            "pgworkflows.step.duration",
            "s",
            "How long calls of step functions took",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

    def inject(self, headers: dict[str, str]) -> None:
        """Send the current trace context along, by the global propagator."""
        propagate.inject(headers)

    @contextmanager
    def wrap_run(self, run: RunContext) -> Generator[None]:
        """A span around one execution, current for as long as it goes on."""
        of_workflow = {"pgworkflows.workflow.id": run.workflow_id}
        self._claims.add(1, of_workflow)
        self._lag.record(run.queue_lag.total_seconds(), of_workflow)
        if not run.resumed:
            self._started.add(1, of_workflow)
        outside, links = self._origin(run)
        span = self._tracer.start_span(
            f"run {run.workflow_id}",
            outside,
            SpanKind.CONSUMER,
            {**_of_run(run), "pgworkflows.run.resumed": run.resumed},
            links,
        )
        token = context.attach(trace.set_span_in_context(span, outside))
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            context.detach(token)
            if run.outcome is not None:
                span.set_attribute("pgworkflows.run.outcome", run.outcome.value)
                if run.outcome in FINISHED:
                    self._finished.add(1, {**of_workflow, "pgworkflows.run.status": run.outcome.value})
            span.end()

    def wrap_step(self, run: RunContext, step: StepInfo, call: Callable[[], Any]) -> Any:
        """A span around one call of a step function, current inside it."""
        measured: dict[str, AttributeValue] = {
            "pgworkflows.workflow.id": run.workflow_id,
            "pgworkflows.step.id": step.step_id,
            "pgworkflows.step.kind": step.kind,
        }
        attributes = {**_of_run(run), **measured, "pgworkflows.step.attempt": step.attempt}
        began = time.monotonic()
        with self._tracer.start_as_current_span(
            f"step {step.step_id}", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                return call()
            except BaseException as error:
                measured["error.type"] = _fail(span, error)
                raise
            finally:
                if current_step().cancelled:
                    span.set_attribute("pgworkflows.step.cancelled", True)
                self._duration.record(time.monotonic() - began, measured)

    def _origin(self, run: RunContext) -> tuple[Context, list[Link]]:
        """Where an execution's span belongs: under its caller's span, or beside it once that is long gone. What else
        the caller sent, such as baggage, comes along either way."""
        carried = propagate.extract(run.headers, context=Context())
        caller = trace.get_current_span(carried).get_span_context()
        if not caller.is_valid or run.age < self._link_after:
            return carried, []
        return trace.set_span_in_context(trace.INVALID_SPAN, carried), [Link(caller)]


def _of_run(run: RunContext) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "pgworkflows.workflow.id": run.workflow_id,
        "pgworkflows.run.id": str(run.run_id),
        "pgworkflows.run.attempt": run.attempt,
    }
    if run.resource_id is not None:
        attributes["pgworkflows.resource.id"] = run.resource_id
    return attributes


def _fail(span: Span, error: BaseException) -> str:
    """Record an error on its span; its type."""
    kind = error.error_type if isinstance(error, StepFailedError) else _name_of(type(error))
    span.record_exception(error)
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    return kind


def _name_of(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
