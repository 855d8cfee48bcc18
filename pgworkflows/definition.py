"""Workflows as their authors define them: `@workflow`, and references to them without code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol, TypeVar, overload

from pgworkflows.annotations import NOTHING, resolved, shown
from pgworkflows.commands import Invocable, Step, Steps
from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.errors import ConfigurationError, DuplicateStepError, InvalidInputError, WorkflowEngineError
from pgworkflows.handlers import input_parameter, names_at_definition, output_annotation
from pgworkflows.limits import checked_flag, checked_identifier, checked_priority, checked_retries, is_storable
from pgworkflows.plugins import Plugin, checked_plugins
from pgworkflows.schemas import REQUIRED, InputSchema
from pgworkflows.serialization import PLAIN, Codec, codec_for, typed_codec
from pgworkflows.source import SourceReport, StepDefinition, find_steps
from pgworkflows.timetable import CatchUp, Overlap, SchedulePlan

__all__ = ["StepDefinition", "Workflow", "WorkflowRef", "workflow", "workflow_ref"]

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True)
class WorkflowOptions:
    """What a run of the workflow gets when its start says nothing else."""

    retries: int = 0
    timeout: timedelta | None = None
    priority: int = 0
    singleton: bool = False
    queue: str = "default"
    retention: timedelta | None = None
    plan: SchedulePlan | None = None

    @classmethod
    def build(
        cls,
        *,
        retries: int,
        timeout: Duration | None,
        priority: int | str,
        singleton: bool,
        queue: str,
        retention: Duration | None,
        schedule: Duration | None,
        timezone: str,
        catch_up: CatchUp,
        overlap: Overlap,
    ) -> WorkflowOptions:
        """Checked options. Raises ValueError or TypeError."""
        return cls(
            retries=checked_retries(retries),
            timeout=None if timeout is None else parse_positive_duration(timeout, "the timeout"),
            priority=checked_priority(priority),
            singleton=checked_flag(singleton, "singleton"),
            queue=checked_identifier(queue, "a queue name"),
            retention=None if retention is None else parse_positive_duration(retention, "the retention"),
            plan=SchedulePlan.build(schedule, timezone=timezone, catch_up=catch_up, overlap=overlap),
        )


class WorkflowRef(Invocable[I, O]):
    """A workflow by its id and schemas, without its code: enough to start runs of it."""

    def __init__(
        self, id: str, *, input_schema: Any = None, output_schema: Any = None, singleton: bool = False
    ) -> None:
        self.id = checked_identifier(id, "a workflow id")
        self.input_schema = input_schema
        self.output_schema = output_schema
        self.singleton = checked_flag(singleton, "singleton")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}>"

    def validate_input(self, value: Any) -> tuple[str, Any]:
        """An input as JSON text, and as the handler will see it. Takes valid values and JSON values.

        Raises InvalidInputError if it does not fit the schema, SerializationError if it cannot be stored,
        ConfigurationError if the schema is none.
        """
        return self._input.validate(value)

    def load_input(self, text: str) -> Any:
        """A stored input as the handler will see it. Raises InvalidInputError if it does not fit the schema."""
        return self._input.load(text)

    def load_output(self, text: str) -> O:
        """A stored output as its annotation says. Raises SerializationError if it does not fit."""
        output: O = self.output_codec.decode(text, f"the output of workflow {self.id!r}")
        return output

    def handler(
        self,
        *,
        retries: int = 0,
        timeout: Duration | None = None,
        priority: int | str = "normal",
        singleton: bool | None = None,
        queue: str = "default",
        retention: Duration | None = None,
        schedule: Duration | None = None,
        timezone: str = "UTC",
        catch_up: CatchUp = "latest",
        overlap: Overlap = "allow",
        plugins: Iterable[Plugin] = (),
    ) -> RefDecorator[I, O]:
        """Make the full workflow of this reference: a decorator for its handler. Options as in `workflow`; `singleton`
        is the reference's if it is left out."""
        options = WorkflowOptions.build(
            retries=retries,
            timeout=timeout,
            priority=priority,
            singleton=self.singleton if singleton is None else singleton,
            queue=queue,
            retention=retention,
            schedule=schedule,
            timezone=timezone,
            catch_up=catch_up,
            overlap=overlap,
        )
        checked = checked_plugins(plugins)

        def define(handler: Callable[..., Steps[Any]], /) -> Workflow[Any, Any]:
            return Workflow(
                self.id,
                handler,
                options,
                input_schema=self.input_schema,
                output_schema=self.output_schema,
                names=names_at_definition(),
                plugins=checked,
            )

        return define

    @cached_property
    def output_codec(self) -> Codec:
        """Writes and restores the workflow's output. Raises ConfigurationError if the schema is none."""
        if self.output_schema is None:
            return PLAIN
        try:
            return typed_codec(self.output_schema)
        except Exception as error:
            raise ConfigurationError(
                f"the output schema of workflow {self.id!r}, {shown(self.output_schema)}, "
                f"is none that pydantic takes: {error}",
                workflow_id=self.id,
            ) from None

    @property
    def _input_name(self) -> str:
        return f"the input of workflow {self.id!r}"

    @cached_property
    def _input(self) -> InputSchema:
        return InputSchema(
            NOTHING if self.input_schema is None else self.input_schema, self._input_name, workflow_id=self.id
        )


class Workflow(WorkflowRef[I, O]):
    """A workflow: its id, its handler, and what its runs get when they are started without options.

    Immutable and without ties to an engine: it may serve several. Called like its handler, it gives the generator, so
    that another handler can `yield from` it.
    """

    def __init__(
        self,
        id: str,
        function: Callable[..., Steps[O]],
        options: WorkflowOptions,
        *,
        input_schema: Any = None,
        output_schema: Any = None,
        names: Mapping[str, Any] | None = None,
        plugins: tuple[Plugin, ...] = (),
    ) -> None:
        """`names` are those of the place of definition, for annotations written as text. Raises TypeError for a
        `function` that is no handler."""
        super().__init__(id, input_schema=input_schema, output_schema=output_schema, singleton=options.singleton)
        self.function = function
        self.retries = options.retries
        self.timeout = options.timeout
        self.priority = options.priority
        self.queue = options.queue
        self.retention = options.retention
        self.plan = options.plan
        self.plugins = plugins
        self._parameter = input_parameter(function, f"the handler of workflow {id!r}")
        if self._parameter is None and input_schema is not None:
            raise TypeError(f"workflow {id!r} has an input schema, but its handler takes no input")
        self._input_annotation = self._resolved_input(names)
        self._output_annotation = output_annotation(function, names)

    @overload
    def __call__(self: Workflow[None, O], step: Step) -> Steps[O]: ...
    @overload
    def __call__(self, step: Step, input: I) -> Steps[O]: ...
    def __call__(self, step: Step, input: Any = NOTHING) -> Steps[O]:
        return self.function(step) if input is NOTHING else self.function(step, input)

    @property
    def takes_input(self) -> bool:
        """Whether the handler has a second parameter."""
        return self._parameter is not None

    @property
    def steps(self) -> tuple[StepDefinition, ...]:
        """The steps that the handler's source shows, for progress and display; empty if it cannot be read."""
        return self._source.steps

    def begin(self, step: Step, input: Any) -> Steps[O]:
        """The generator of one execution; `input` goes to a handler that takes one."""
        return self.function(step, input) if self.takes_input else self.function(step)

    def validate_input(self, value: Any) -> tuple[str, Any]:
        if value is None and not self.takes_input:
            return "null", None
        return super().validate_input(value)

    def load_input(self, text: str) -> Any:
        if text.strip() == "null" and not self.takes_input:
            return None
        return super().load_input(text)

    @cached_property
    def output_codec(self) -> Codec:
        """Writes and restores the output: by the output schema, or by the R of a handler that returns `Steps[R]`."""
        if self.output_schema is not None:
            return super().output_codec
        annotation = self._output_annotation
        return codec_for(output_annotation(self.function, None) if annotation is NOTHING else annotation)

    def check_registrable(self) -> None:
        """Raise DuplicateStepError if two steps have one literal id, and ConfigurationError if a command is made
        without `yield`, or if the input's annotation is no schema."""
        if self._source.duplicates:
            raise DuplicateStepError(
                f"workflow {self.id!r} uses the step id {self._source.duplicates[0]!r} twice; "
                "give each step an id of its own",
                workflow_id=self.id,
            )
        for call in self._source.unyielded:
            raise ConfigurationError(
                f"{call.filename}:{call.line}: step {call.step_id!r} of workflow {self.id!r} is never run: "
                "write `yield` or `yield from` before it",
                workflow_id=self.id,
            )
        if self.takes_input:
            _ = self._input
        if self.plan is not None:
            self._check_default_input()
        _ = self.output_codec

    @cached_property
    def described_input(self) -> str | None:
        """The JSON Schema of the input, as JSON text; None where there is none to write."""
        try:
            schema = self._input.described() if self.takes_input else None
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except Exception:  # pydantic cannot describe every type, and types may describe themselves
            return None
        return text if schema is not None and is_storable(text) else None

    def _check_default_input(self) -> None:
        try:
            self.validate_input(None)
        except WorkflowEngineError as error:
            raise ConfigurationError(
                f"workflow {self.id!r} has a schedule, whose runs start without input, but {error}; "
                "give the handler's input a default",
                workflow_id=self.id,
            ) from None

    @cached_property
    def _source(self) -> SourceReport:
        return find_steps(self.function)

    @cached_property
    def _input(self) -> InputSchema:
        parameter = self._parameter
        if parameter is None:
            raise self._unwanted_input()
        annotation = self._resolved_input(None) if self._input_annotation is NOTHING else self._input_annotation
        if annotation is NOTHING and parameter.annotation is not parameter.empty and self.input_schema is None:
            raise ConfigurationError(
                f"the annotation {parameter.annotation!r} of {self._input_name} cannot be resolved: import its names "
                "at run time, or give input_schema=",
                workflow_id=self.id,
            )
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        return InputSchema(annotation, self._input_name, default=default, workflow_id=self.id)

    def _resolved_input(self, names: Mapping[str, Any] | None) -> Any:
        if self.input_schema is not None:
            return self.input_schema
        if self._parameter is None or self._parameter.annotation is self._parameter.empty:
            return NOTHING
        return resolved(self._parameter.annotation, self.function, names)

    def _unwanted_input(self) -> InvalidInputError:
        return InvalidInputError(
            f"workflow {self.id!r} takes no input: its handler has one parameter", workflow_id=self.id
        )


class WorkflowDecorator(Protocol):
    """What `workflow(…)` gives: it makes a Workflow of a handler."""

    @overload
    def __call__(self, handler: Callable[[Step, I], Steps[O]], /) -> Workflow[I, O]: ...
    @overload
    def __call__(self, handler: Callable[[Step], Steps[O]], /) -> Workflow[None, O]: ...


class RefDecorator(Protocol[I, O]):
    """What `ref.handler(…)` gives: it makes a Workflow of a handler that fits the reference."""

    @overload
    def __call__(self, handler: Callable[[Step, I], Steps[O]], /) -> Workflow[I, O]: ...
    @overload
    def __call__(self: RefDecorator[None, O], handler: Callable[[Step], Steps[O]], /) -> Workflow[I, O]: ...


def workflow(
    id: str,
    *,
    input_schema: Any = None,
    retries: int = 0,
    timeout: Duration | None = None,
    priority: int | str = "normal",
    singleton: bool = False,
    queue: str = "default",
    retention: Duration | None = None,
    schedule: Duration | None = None,
    timezone: str = "UTC",
    catch_up: CatchUp = "latest",
    overlap: Overlap = "allow",
    plugins: Iterable[Plugin] = (),
) -> WorkflowDecorator:
    """Make a workflow of a generator function that takes `(step)` or `(step, input)`.

    `input_schema` is whatever pydantic's TypeAdapter takes; without it the annotation of `input` is the schema.
    `retries` are further executions of a failed run, `timeout` counts from when a run may first start, `priority` is
    "high", "normal", "low" or within ±1000. A `singleton` has at most one unfinished run. Finished runs are deleted
    after `retention`; without it they are kept. `plugins` stand inside those of the engine.

    `schedule` is five cron fields, read in `timezone`, or an interval of at least a minute: a run starts at each tick,
    with the input's default. Of the ticks missed while no worker lived, `catch_up` fires the "latest", "all" or "none".
    `overlap` is "allow", or "skip" for ticks that find the schedule's last run unfinished.

    Raises ValueError and TypeError for these; the decorator raises TypeError for what is no such function.
    """
    _refuse_bare(id)
    checked_identifier(id, "a workflow id")
    options = WorkflowOptions.build(
        retries=retries,
        timeout=timeout,
        priority=priority,
        singleton=singleton,
        queue=queue,
        retention=retention,
        schedule=schedule,
        timezone=timezone,
        catch_up=catch_up,
        overlap=overlap,
    )
    checked = checked_plugins(plugins)

    def define(handler: Callable[..., Steps[Any]], /) -> Workflow[Any, Any]:
        return Workflow(id, handler, options, input_schema=input_schema, names=names_at_definition(), plugins=checked)

    return define


@overload
def workflow_ref(id: str, *, singleton: bool = ...) -> WorkflowRef[Any, Any]: ...
@overload
def workflow_ref(id: str, *, input_schema: type[I], singleton: bool = ...) -> WorkflowRef[I, Any]: ...
@overload
def workflow_ref(id: str, *, output_schema: type[O], singleton: bool = ...) -> WorkflowRef[Any, O]: ...
@overload
def workflow_ref(
    id: str, *, input_schema: type[I], output_schema: type[O], singleton: bool = ...
) -> WorkflowRef[I, O]: ...
@overload
def workflow_ref(
    id: str, *, input_schema: Any = None, output_schema: Any = None, singleton: bool = ...
) -> WorkflowRef[Any, Any]: ...
def workflow_ref(
    id: str, *, input_schema: Any = None, output_schema: Any = None, singleton: bool = False
) -> WorkflowRef[Any, Any]:
    """A workflow by its id, for processes that start runs without having the handler's code.

    The schemas are whatever pydantic's TypeAdapter takes; without them any JSON value passes.
    With `singleton` at most one of the runs started with it is unfinished, unless a declaration is stored, which wins.
    """
    return WorkflowRef(id, input_schema=input_schema, output_schema=output_schema, singleton=singleton)


def _refuse_bare(id: object) -> None:
    if callable(id):
        raise TypeError('@workflow needs the id of the workflow: write @workflow("some-id")')
