"""Random workflows: trees of commands, loops, branches and try blocks, told as a handler that notes what it saw."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias, cast

from hypothesis import strategies as st

from pgworkflows.commands import Command, Step, Steps, WaitForCommand
from pgworkflows.current import current_step
from pgworkflows.errors import StepFailedError
from pgworkflows.replay import LetGo

EVENTS = ("apple", "pear")


@dataclass(frozen=True)
class Model:
    """A result that only its annotation brings back."""

    name: str
    due: datetime


# What a tree is made of ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A step whose first calls fail as `failures` say, and whose next one returns `value`."""

    value: Any = None
    failures: tuple[str, ...] = ()
    attempts: int = 1
    wait_s: int = 0


@dataclass(frozen=True)
class Poll:
    """A poll that finds something after `misses` calls, the last of which may fail."""

    misses: int = 0
    fails: bool = False
    interval_s: int = 2
    timeout_s: int | None = None


@dataclass(frozen=True)
class WaitFor:
    event: str
    timeout_s: int | None = None
    numbers_only: bool = False


@dataclass(frozen=True)
class Delay:
    seconds: int


@dataclass(frozen=True)
class Until:
    """A wait until a moment: so long after the start, or after the moment at which the handler happens to ask."""

    seconds: int
    from_now: bool = False


@dataclass(frozen=True)
class Pause:
    pass


@dataclass(frozen=True)
class Nonsense:
    """A `yield` of what is no command."""


@dataclass(frozen=True)
class Twin:
    """A step whose id every other twin has too."""


@dataclass(frozen=True)
class Branch:
    """One way or the other, by whether the last result was true."""

    then: Block
    other: Block


@dataclass(frozen=True)
class Loop:
    """At most `times` rounds; `while_true` ends it once the last result is false."""

    times: int
    body: Block
    while_true: bool = False


@dataclass(frozen=True)
class Try:
    """`except catch: handler`, and then `after`: swallow, reraise, wrap (from the error) or hide (from None)."""

    body: Block
    catch: str | None = None
    handler: Block = ()
    after: str = "swallow"
    final: Block | None = None


@dataclass(frozen=True)
class Break:
    """The handler's own error."""


Node: TypeAlias = Run | Poll | WaitFor | Delay | Until | Pause | Nonsense | Twin | Branch | Loop | Try | Break
Block: TypeAlias = tuple[Node, ...]

CATCHES: dict[str | None, type[BaseException] | tuple[()]] = {
    None: (),
    "step": StepFailedError,
    "exception": Exception,
    "base": BaseException,
}


class WrappedError(Exception):
    pass


class InvalidInputError(Exception):
    """The user's own class, which only bears the name of one that is never retried."""


def _fail(how: str) -> Any:
    match how:
        case "unstorable":
            return float("nan")
        case "exit":
            raise SystemExit(3)
        case "namesake":
            raise InvalidInputError("the user's")
        case "mute":
            raise MuteError
        case _:
            raise OSError(f"as told: {how}\0")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


FAILURES = ("error",) * 8 + ("unstorable", "exit", "namesake", "mute")


# How a tree is told --------------------------------------------------------------------------------------------------


Called: TypeAlias = Callable[[str, int], None]
"""Hears of every call of a step function: the step's id and the attempt."""


def _outcome(node: Run, heard: Called) -> Any:
    current = current_step()
    heard(current.step_id, current.attempt)
    if current.attempt <= len(node.failures):
        return _fail(node.failures[current.attempt - 1])
    return node.value


def _plain(node: Run, heard: Called):  # type: ignore[no-untyped-def]  # without an annotation on purpose
    return _outcome(node, heard)


def _decimal(node: Run, heard: Called) -> Decimal:
    return cast("Decimal", _outcome(node, heard))


def _moment(node: Run, heard: Called) -> datetime:
    return cast("datetime", _outcome(node, heard))


def _model(node: Run, heard: Called) -> list[Model]:
    return cast("list[Model]", _outcome(node, heard))


def _function(value: Any) -> Callable[[Run, Called], Any]:
    match value:
        case Decimal():
            return _decimal
        case datetime():
            return _moment
        case [Model(), *_]:
            return _model
        case _:
            return _plain


def _look(node: Poll, heard: Called) -> int | None:
    current = current_step()
    heard(current.step_id, current.attempt)
    if current.attempt <= node.misses:
        if node.fails and current.attempt == node.misses:
            raise OSError("as told: the poll")
        return None
    return current.attempt


class Telling:
    """One execution: what the handler saw, in order, by step id; and what it looked like on the way."""

    def __init__(self, told: Told, step: Step) -> None:
        self.saw: list[tuple[str, Any]] = []
        self.path: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.raised = False
        self.last: Any = None
        self.timeline: dict[str, Any] = {}
        self._told = told
        self._step = step
        self._let_go = False

    def whole(self, tree: Block) -> Generator[Command[Any], Any, None]:
        try:
            yield from self.block(tree, "")
        except BaseException:
            self.raised = not self._let_go
            raise

    def block(self, nodes: Block, path: str) -> Generator[Command[Any], Any, None]:
        for index, node in enumerate(nodes):
            yield from self._node(node, f"{path}.{index}")

    def _node(self, node: Node, path: str) -> Generator[Command[Any], Any, None]:
        step = self._step
        step.context.logger.info(path)
        if not self._let_go:
            self.path.append(path)
        match node:
            case Run(attempts=attempts, wait_s=wait_s):
                command = step.run(path, _function(node.value), node, self._told.called)
                yield from self._ask(command.retry(attempts=attempts, wait=wait_s) if attempts > 1 else command)
            case Poll(interval_s=interval_s, timeout_s=timeout_s):
                heard = self._told.called
                yield from self._ask(step.poll(path, _look, node, heard, interval=interval_s, timeout=timeout_s))
            case WaitFor(event=event, timeout_s=timeout_s, numbers_only=numbers_only):
                limit = None if timeout_s is None else timedelta(seconds=timeout_s)
                yield from self._ask(WaitForCommand(path, event, limit, int if numbers_only else None))
            case Delay(seconds=seconds):
                yield from self._ask(step.delay(path, seconds))
            case Until(seconds=seconds, from_now=from_now):
                since = self._told.now() if from_now else self._told.start
                yield from self._ask(step.wait_until(path, since + timedelta(seconds=seconds)))
            case Pause():
                yield from self._ask(step.pause(path))
            case Nonsense():
                try:
                    yield path  # type: ignore[misc]  # that is the point
                except TypeError as error:
                    self.saw.append((path, str(error)))
            case Twin():
                yield from self._ask(step.run("twin", _plain, Run(1), self._told.called))
            case Branch(then=then, other=other):
                yield from self.block(then, f"{path}+") if self.last else self.block(other, f"{path}-")
            case Loop(times=times, body=body, while_true=while_true):
                for index in range(times):
                    if while_true and not self.last:
                        break
                    yield from self.block(body, f"{path}#{index}")
            case Try():
                yield from self._try(node, path)
            case Break():
                raise LookupError(path)

    def _try(self, node: Try, path: str) -> Generator[Command[Any], Any, None]:
        try:
            yield from self.block(node.body, f"{path}t")
        except CATCHES[node.catch] as error:
            if not isinstance(error, StepFailedError | WrappedError | LookupError) and node.catch != "base":
                self._told.wrongs.append(f"the handler was told of {error!r} at {path}")
            yield from self.block(node.handler, f"{path}e")
            match node.after:
                case "reraise":
                    raise
                case "wrap":
                    raise WrappedError(path) from error
                case "hide":
                    raise WrappedError(path) from None
                case _:
                    pass
        finally:
            if node.final is not None:
                yield from self.block(node.final, f"{path}f")

    def _ask(self, command: Command[Any]) -> Generator[Command[Any], Any, None]:
        if not self._let_go:
            self.asked.append((command.id, command.kind))
        try:
            value = yield command
        except StepFailedError as error:
            self.saw.append((command.id, (type(error).__name__, error.error_type, error.message, error.step_id)))
            raise
        except LetGo:
            self._let_go = True
            raise
        self.saw.append((command.id, value))
        self.timeline[command.id] = value
        self.last = value
        if self._step.context.timeline != self.timeline:
            self._told.wrongs.append(f"the timeline at {command.id}: {dict(self._step.context.timeline)}")


class Told:
    """A tree as a handler, and all its executions in this process."""

    def __init__(self, tree: Block, *, start: datetime, now: Callable[[], datetime], called: Called) -> None:
        self.tree = tree
        self.start = start
        self.now = now
        self.called = called
        self.tellings: list[Telling] = []
        self.wrongs: list[str] = []

    def handler(self, step: Step) -> Steps[int]:
        telling = Telling(self, step)
        self.tellings.append(telling)
        yield from telling.whole(self.tree)
        return len(telling.saw)


class Lines(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


# Where trees come from -----------------------------------------------------------------------------------------------

MOMENT = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
VALUES: tuple[Any, ...] = (
    None,
    0,
    1,
    True,
    "text",
    [],
    {"b": 1, "a": [1e16, 1.5]},
    Decimal("1.10"),
    MOMENT,
    [Model("x", MOMENT), Model("y", MOMENT)],
)


@st.composite
def trees(draw: st.DrawFn) -> Block:
    """Whole workflows."""
    return _block(draw, depth=2, least=1, most=6)


def _block(draw: st.DrawFn, *, depth: int, least: int = 0, most: int = 3) -> Block:
    return tuple(_node(draw, depth) for _ in range(draw(st.integers(least, most))))


def _node(draw: st.DrawFn, depth: int) -> Node:
    kind = draw(st.sampled_from(LEAVES if depth == 0 else LEAVES + FORKS))
    block = partial(_block, draw, depth=depth - 1)
    match kind:
        case "branch":
            return Branch(block(), block())
        case "loop":
            return Loop(draw(st.integers(1, 3)), block(least=1), draw(st.booleans()))
        case "try":
            catch = draw(st.sampled_from(("step", "step", "exception", "base", None)))
            handler = () if catch is None else block()
            final = draw(st.booleans())
            return Try(block(least=1), catch, handler, draw(st.sampled_from(AFTER)), block() if final else None)
        case _:
            return draw(LEAF[kind])


AFTER = ("swallow", "swallow", "reraise", "wrap", "hide")
FORKS = ("try", "try", "try", "branch", "loop")
TIMEOUTS = st.sampled_from((None, 1, 2, 4, 9))
LEAF: dict[str, st.SearchStrategy[Node]] = {
    "run": st.builds(Run, st.sampled_from(VALUES)),
    "failing": st.builds(
        Run,
        st.sampled_from(VALUES),
        st.lists(st.sampled_from(FAILURES), min_size=1, max_size=5).map(lambda found: tuple(found)),
        st.integers(1, 3),
        st.sampled_from((0, 2)),
    ),
    "wait_for": st.builds(WaitFor, st.sampled_from(EVENTS), TIMEOUTS, st.sampled_from((False, False, True))),
    "delay": st.builds(Delay, st.integers(0, 4)),
    "until": st.builds(Until, st.integers(-2, 9), st.booleans()),
    "poll": st.builds(Poll, st.integers(0, 3), st.booleans(), st.integers(1, 3), TIMEOUTS),
    "rare": st.sampled_from((Pause(), Pause(), Nonsense(), Twin(), Break())),
}
LEAVES = ("run", "run", "failing", "failing", "wait_for", "wait_for", "delay", "until", "poll", "rare")


# What happens to a run meanwhile --------------------------------------------------------------------------------------

EVER = 3000


@dataclass(frozen=True)
class Mail:
    """An event that somebody sends, so many seconds after the start, or after the deed before it."""

    at_s: int
    name: str
    data: str
    key: str | None = None


@dataclass(frozen=True)
class Work:
    """A worker claims the run, and dies after so many flushes; each thing it does takes a while. `meanwhile` are the
    calls that a client makes, and the events that it sends, before the first flush."""

    flushes: int
    pass_s: float = 0
    meanwhile: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    seconds: float


@dataclass(frozen=True)
class Ask:
    """A client's call."""

    what: str


Deed: TypeAlias = Work | Pass | Mail | Ask

_calls = st.sampled_from(("pause", "resume", "resume", "cancel", "retry", "retry", "fast_forward")).map(Ask)
_deeds = (
    st.builds(
        Work,
        st.sampled_from((0, 1, 2, 3, EVER)),
        st.sampled_from((0, 0, 0.5, 3)),
        st.sampled_from(((), (), EVENTS, EVENTS, ("pause",), ("pause", "resume"), ("cancel",), ("cancel", "retry"))),
    )
    | st.just(Work(EVER))
    | st.builds(Pass, st.sampled_from((0.5, 1, 2, 4, 9)))
    | st.builds(
        Mail,
        st.sampled_from((0, 0, 2, 9)),
        st.sampled_from(EVENTS),
        st.sampled_from(("1", "2", '{"n":3}')),
        st.none() | st.just("k"),
    )
    | _calls
)


def deeds(*, least: int, most: int) -> st.SearchStrategy[list[Deed]]:
    """What is done to a run, one after the other."""
    return st.lists(_deeds, min_size=least, max_size=most)


mails = st.lists(
    st.builds(
        Mail,
        st.integers(-1, 12),
        st.sampled_from(EVENTS),
        st.sampled_from(("1", "2", '{"n":3}', "{}")),
        st.none() | st.sampled_from(("k", "l")),
    ),
    max_size=8,
)
