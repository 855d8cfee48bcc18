"""Plugins: what stands around the executions of runs and the calls of their steps, and how several are nested.

Whatever a plugin does, what a step did is kept, and the run ends as its handler and its steps decide.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from pgworkflows.commands import StepContext
from pgworkflows.failures import outline
from pgworkflows.limits import is_storable

MAX_HEADERS_LENGTH = 16_384
"""In characters of JSON; twice what the W3C lets baggage have."""

HOOKS = ("wrap_run", "wrap_step", "inject")


class Plugin(Protocol):
    """An object that stands around executions and steps. Besides its `name` it may have any of these methods:

    `wrap_run(context: RunContext)` returns a context manager around one execution of a run: entered before the handler
    begins or resumes, left once when it suspends or ends, perhaps in another thread. A failure of the handler is given
    to its `__exit__`, whose answer changes nothing. Where it raises, that is logged; a plugin that raises at the
    beginning is left out of this execution.

    `wrap_step(context: RunContext, step: StepInfo, call)` runs in the thread of a step function, not for replayed
    steps, and returns the result of `call()`, or another in its place. What the step did stands: a plugin that raises
    after `call()` has returned, or raises something else than `call()` did, is logged. One that raises before it calls
    fails the step; one that catches what `call()` raised, and returns, makes that the result.

    `inject(headers: dict[str, str])` adds what is to travel with a run, where it is started: in the caller's context,
    or in that of the execution that starts a child. Executions find it in `context.headers`.

    The first plugin is the outermost; an engine's stand outside a workflow's. One execution, its plugins and its
    handler share a `contextvars.Context` of their own; each call of a step function has a copy of it.
    """

    @property
    def name(self) -> str: ...


class ExecutionOutcome(StrEnum):
    """How an execution of a run ended, as its worker decided before that was durable."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRYING = "retrying"
    """The run, or a step of it, is tried again later."""
    WAITING = "waiting"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    """By a client, or since the run's timeout has passed while a worker had it."""
    RELEASED = "released"
    """Given back as it stands: its worker stops, or a result could not be stored."""
    LOST = "lost"
    """Another worker has the run."""


@dataclass(frozen=True, eq=False)
class RunContext(StepContext):
    """What a plugin may know of an execution: the fields of `step.context`, and some of its own.

    Its `logger` is never silent. `headers` is what plugins sent along with the start. By the database's clock,
    `queue_lag` is how long the run had been ready when this worker claimed it, `age` how long ago it was started.
    `resumed`: an earlier execution of the run has stored something. `outcome` is how the execution ended, None while it
    goes on.
    """

    headers: Mapping[str, str]
    queue_lag: timedelta
    age: timedelta
    resumed: bool
    outcome: ExecutionOutcome | None = None

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def end(self, outcome: ExecutionOutcome) -> None:
        """Say how the execution ended. For the library."""
        object.__setattr__(self, "outcome", outcome)


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One call of a step function. `attempt` and `idempotency_key` are those of `current_step()`; `kind` is "run" or
    "poll"."""

    step_id: str
    kind: str
    attempt: int
    idempotency_key: str

    @property
    def id(self) -> str:
        """The same as `step_id`."""
        return self.step_id


class Entered(NamedTuple):
    """A plugin whose `wrap_run` was entered, and what leaves it."""

    plugin: Plugin
    leave: Callable[..., object]


def checked_plugins(plugins: object) -> tuple[Plugin, ...]:
    """The plugins, if they are such; else TypeError."""
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise TypeError(f"plugins must be a list of plugins, not {type(plugins).__name__}")
    found = tuple(cast("Iterable[Plugin]", plugins))
    for plugin in found:
        _check(plugin)
    return found


def _check(plugin: object) -> None:
    if isinstance(plugin, type):
        raise TypeError(f"plugin {plugin.__name__} is a class: pass an object of it")
    name = getattr(plugin, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"a plugin needs a name, which is text; that of a {type(plugin).__name__} is {name!r}")
    for hook in HOOKS:
        method = getattr(plugin, hook, None)
        if method is None:
            continue
        if not callable(method):
            raise TypeError(f"{hook} of plugin {name!r} must be a method, not {type(method).__name__}")
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise TypeError(f"{hook} of plugin {name!r} must not be async")
        if inspect.isgeneratorfunction(method):
            remedy = "decorate it with contextlib.contextmanager" if hook == "wrap_run" else "it must not yield"
            raise TypeError(f"{hook} of plugin {name!r} is a generator function: {remedy}")


def enter(plugins: Sequence[Plugin], context: RunContext, logger: logging.Logger) -> list[Entered]:
    """Enter the `wrap_run` of each plugin that has one; those that could be entered, outermost first."""
    entered: list[Entered] = []
    for plugin in plugins:
        wrap_run = getattr(plugin, "wrap_run", None)
        if wrap_run is None:
            continue
        try:
            manager = wrap_run(context)
            kind = cast("Any", type(manager))
            leaving = partial(kind.__exit__, manager)
            kind.__enter__(manager)
        except BaseException as error:
            _complain(logger, plugin, "wrap_run", context, error, "this execution goes on without it")
        else:
            entered.append(Entered(plugin, leaving))
    return entered


def leave(
    entered: Sequence[Entered], context: RunContext, failure: BaseException | None, logger: logging.Logger
) -> None:
    """Leave what was entered, innermost first; all of it, whatever one of them raises."""
    for plugin, leaving in reversed(entered):
        try:
            leaving(
                None if failure is None else type(failure), failure, None if failure is None else failure.__traceback__
            )
        except BaseException as error:
            if error is not failure:
                _complain(logger, plugin, "wrap_run", context, error, "the run's outcome stands")


class WrappedCall:
    """A call of a step function inside the `wrap_step` of its plugins. It knows what the function itself did."""

    def __init__(
        self,
        plugins: Sequence[Plugin],
        context: RunContext,
        step: StepInfo,
        function: Callable[[], Any],
        logger: logging.Logger,
    ) -> None:
        self._context = context
        self._step = step
        self._logger = logger
        self._own = _Seen(function)
        self._replacer: Plugin | None = None
        self._outermost: Callable[[], Any] = self._own
        for plugin in reversed(plugins):
            if getattr(plugin, "wrap_step", None) is not None:
                self._outermost = partial(self._around, plugin, self._outermost)

    def __call__(self) -> Any:
        try:
            return self._outermost()
        except BaseException as error:
            if error is self._own.error:
                # By the user's own frames, as without plugins.
                error.__traceback__ = self._own.trace
            raise

    def take_back(self, value: Any, refused: BaseException) -> bool:
        """Whether `value`, which cannot be stored, is not what the function returned: that is `own_result`, then."""
        own = self._own
        if self._replacer is None or not own.called or own.error is not None or value is own.value:
            return False
        self._complain(self._replacer, refused, "what it returned cannot be stored, and the step's own result stands")
        return True

    @property
    def own_result(self) -> Any:
        """What the function returned."""
        return self._own.value

    def _around(self, plugin: Any, inner: Callable[[], Any]) -> Any:
        """Let one plugin make the call, and see to it that what came of the call is kept."""
        seen = _Seen(inner)
        try:
            value = plugin.wrap_step(self._context, self._step, seen)
        except BaseException as error:
            if not seen.called or error is seen.error:
                raise
            self._complain(plugin, error, "what the step did stands")
        else:
            if value is not seen.value:
                self._replacer = plugin
            return value
        if seen.error is not None:
            raise seen.error
        return seen.value

    def _complain(self, plugin: Plugin, error: BaseException, consequence: str) -> None:
        hook = f"wrap_step around step {self._step.step_id!r}"
        _complain(self._logger, plugin, hook, self._context, error, consequence)


class _Seen:
    """A call that remembers what came of it, the last time."""

    __slots__ = ("_call", "called", "error", "trace", "value")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.called = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.trace: Any = None

    def __call__(self) -> Any:
        self.value = self.error = self.trace = None
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error
            self.trace = None if error.__traceback__ is None else error.__traceback__.tb_next
            raise
        finally:
            self.called = True
        return self.value


def injected(
    plugins: Sequence[Plugin], logger: logging.Logger, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What the plugins send along with the start of a run; `inherited` is what its parent was started with."""
    headers = {**(inherited or {})}
    for plugin in plugins:
        inject = getattr(plugin, "inject", None)
        if inject is None:
            continue
        tried = dict(headers)
        try:
            inject(tried)
            _check_headers(tried)
        except KeyboardInterrupt:
            raise  # in a caller's main thread this is not the plugin's
        except BaseException as error:
            logger.error(  # noqa: TRY400  (its message may hold anything)
                "pgworkflows: plugin %s raised in inject; the run starts without its headers: %s",
                plugin.name,
                outline(error),
            )
        else:
            headers = tried
    return headers


def _check_headers(headers: Mapping[Any, Any]) -> None:
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"headers are text by text, not {type(value).__name__} by {type(key).__name__}")
        if not is_storable(key) or not is_storable(value):
            raise ValueError(f"header {key!r} holds NUL or lone surrogates")
    length = len(json.dumps(headers))
    if length > MAX_HEADERS_LENGTH:
        raise ValueError(f"headers must have at most {MAX_HEADERS_LENGTH} characters as JSON; these have {length}")


def _complain(
    logger: logging.Logger, plugin: Plugin, hook: str, context: RunContext, error: BaseException, consequence: str
) -> None:
    logger.error(
        "pgworkflows: plugin %s raised in %s of run %s; %s: %s",
        plugin.name,
        hook,
        context.run_id,
        consequence,
        outline(error),
    )
