"""Steps read from the source: in order, with what may be passed over, repeated or computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any

import pytest
from naming import named

from pgworkflows.history import StepKind
from pgworkflows.source import SourceReport, StepDefinition, find_steps

TICK = "tick"


def do() -> Any: ...


def flags(handler: Callable[..., Any]) -> dict[str, str]:
    """Each step's flags by its id: c conditional, l loop, d dynamic."""
    return {
        step.id: "c" * step.conditional + "l" * step.loop + "d" * step.dynamic for step in find_steps(handler).steps
    }


def test_every_kind_of_step_is_found_in_order() -> None:
    def handler(step: Any, input: Any) -> Any:
        a = yield step.run("run", do, input)
        b = yield from step.wait_for("event", "paid", timeout="1d")
        yield step.wait_until("moment", "2030-01-01T00:00:00Z")
        yield step.delay("delay", 5)
        yield (step.sleep("sleep", 5))
        yield step.pause(id="pause")
        c: Any = yield step.poll("poll", do, interval="1m")
        return [a, b, c, (yield step.invoke_child_workflow("child", "other"))]

    assert find_steps(handler).steps == tuple(
        StepDefinition(name, kind, conditional=False, loop=False, dynamic=False)
        for name, kind in {
            "run": StepKind.RUN,
            "event": StepKind.WAIT_FOR,
            "moment": StepKind.WAIT_UNTIL,
            "delay": StepKind.DELAY,
            "sleep": StepKind.DELAY,
            "pause": StepKind.PAUSE,
            "poll": StepKind.POLL,
            "child": StepKind.INVOKE_CHILD_WORKFLOW,
        }.items()
    )


def test_the_step_object_may_have_any_name_and_commands_may_be_chained() -> None:
    def handler(s: Any, step: Any) -> Any:
        step.run("not a step", do)
        yield s.run("a", do).retry(attempts=3, wait="5s").timeout("1m")
        command = s.run("b", do)
        yield command
        yield s.run("d", do, (yield s.run("c", do)))

    assert list(flags(handler)) == ["a", "b", "c", "d"]


def test_branches_are_conditional_and_loops_are_loops() -> None:
    def handler(step: Any, input: Any) -> Any:
        if (yield step.run("test", do)):
            yield step.run("body", do)
        elif input:
            yield step.run("elif", do)
        else:
            yield step.run("else", do)
        for _ in (yield step.run("iterable", do)):
            yield step.run("for", do)
        else:
            yield step.run("for else", do)
        while (yield step.run("while test", do)):
            yield step.run("while", do)
            if input:
                yield step.run("if in while", do)
        try:
            yield step.run("try", do)
        except ValueError:
            yield step.run("except", do)
        else:
            yield step.run("try else", do)
        finally:
            yield step.run("finally", do)
        match (yield step.run("subject", do)):
            case 1 if (yield step.run("guard", do)):
                yield step.run("case", do)
            case _:
                yield step.run("other case", do)
        with (yield step.run("with", do)):
            yield step.run("in with", do)
        x = (yield step.run("yes", do)) if (yield step.run("question", do)) else (yield step.run("no", do))
        y = ((yield step.run("first", do)) and (yield step.run("second", do))) or (yield step.run("third", do))
        commands = [step.run(f"number {n}", do) for n in range(3)]
        yield from commands
        return x, y

    assert flags(handler) == {
        "test": "",
        "body": "c",
        "elif": "c",
        "else": "c",
        "iterable": "",
        "for": "l",
        "for else": "c",
        "while test": "l",
        "while": "l",
        "if in while": "cl",
        "try": "",
        "except": "c",
        "try else": "c",
        "finally": "",
        "subject": "",
        "guard": "c",
        "case": "c",
        "other case": "c",
        "with": "",
        "in with": "",
        "question": "",
        "yes": "c",
        "no": "c",
        "first": "",
        "second": "c",
        "third": "c",
        "f'number {n}'": "ld",
    }


def test_what_follows_an_early_return_is_conditional() -> None:
    def handler(step: Any, input: Any) -> Any:
        for item in input:
            if item:
                continue
            yield step.run("after continue", do)
            if item > 1:
                break
        yield step.run("after the loop", do)
        if input:
            raise ValueError
        yield step.run("after raise", do)
        with input:
            if input:
                return
            yield step.run("after return", do)
        yield step.run("after with", do)

    assert flags(handler) == {
        "after continue": "cl",
        "after the loop": "",
        "after raise": "",
        "after return": "c",
        "after with": "c",
    }


def test_computed_ids_are_shown_as_source_text() -> None:
    def handler(step: Any, input: Any) -> Any:
        yield step.run(TICK, do)
        yield step.run("a" + input, do)
        yield step.run(*input)
        yield step.run("ab", do)
        yield step.run()
        yield step.run(5, do)

    assert flags(handler) == {"TICK": "d", "'a' + input": "d", "*input": "d", "ab": "", "5": "d"}


def test_an_id_used_twice_is_a_duplicate_also_in_two_branches() -> None:
    def handler(step: Any, input: Any) -> Any:
        if input:
            yield step.run("send", do)
            yield step.run(f"{input}", do)
            yield step.run(f"{input}", do)
        else:
            yield step.delay("send", 5)
        yield step.run("once", do)

    assert find_steps(handler).duplicates == ("send",)


def test_bare_statements_are_reported_with_their_lines() -> None:
    def handler(step: Any) -> Any:
        yield step.run("a", do)
        step.run("b", do)
        if step:
            step.run("c", do).retry(attempts=2).timeout(5)
        step.context.logger.info("not a step")
        print(step.run("d", do))
        step.run("e", do).id.upper()
        yield

    report = find_steps(handler)
    first = inspect.getsourcelines(handler)[1]
    assert [(call.step_id, call.line - first) for call in report.unyielded] == [("b", 2), ("c", 4)]
    assert report.unyielded[0].filename == __file__
    assert [step.id for step in report.steps] == ["a", "b", "c", "d", "e"]


def test_nested_functions_are_not_followed() -> None:
    def handler(step: Any, input: Any) -> Any:
        def inner() -> Any:
            step.run("bare", do)
            yield step.run("inner", do)

        class Thing:
            command = step.run("class", do)

        later = lambda: step.run("lambda", do)  # noqa: E731
        yield step.run("outer", do)
        yield from inner()
        yield later
        return Thing

    assert find_steps(handler).unyielded == ()
    assert list(flags(handler)) == ["outer"]


def test_a_rebound_step_object_is_not_followed() -> None:
    def handler(step: Any, input: Any) -> Any:
        yield step.run("a", do)
        for step in input:
            step.run("b", do)

    assert find_steps(handler) == SourceReport()


# fmt: off
class Service:
    def handle(self, step: Any, input: Any) -> Any:
        """Text in the
first column."""
        yield step.run("method", do)

    @staticmethod
    def static(step: Any) -> Any:
# a comment in the first column
        yield step.run("static", do)
# fmt: on


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


@logged
@logged
def decorated(
    step: Any,
    input: Any,
) -> Any:
    yield step.run("decorated", do)


def test_methods_decorated_functions_and_partials_are_read() -> None:
    assert list(flags(Service().handle)) == ["method"]
    assert list(flags(Service.static)) == ["static"]
    assert list(flags(decorated)) == ["decorated"]
    assert list(flags(functools.partial(decorated, input=1))) == ["decorated"]


def made_by_exec() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec("def handler(step):\n    yield step.run('a', print)\n", names)
    handler: Callable[..., Any] = names["handler"]
    return handler


def made_with_a_false_line() -> Callable[..., Any]:
    def handler(step: Any) -> Any:
        yield step.run("a", do)

    handler.__code__ = handler.__code__.replace(co_firstlineno=1)
    return handler


@pytest.mark.parametrize(
    "handler",
    [
        made_by_exec(),
        made_with_a_false_line(),
        lambda step: (yield step.run("a", do)),
        len,
        print,
        Service(),
        functools.partial(len),
        None,
    ],
    ids=named,
)
def test_what_cannot_be_read_has_no_steps(handler: Any) -> None:
    assert find_steps(handler) == SourceReport()


def test_a_handler_on_one_line() -> None:
    def handler(step: Any) -> Generator[Any, Any, None]: yield step.run("a", do); yield step.run("b", do)  # noqa: E702 # fmt: skip

    assert list(flags(handler)) == ["a", "b"]
