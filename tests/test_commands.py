"""What `step` makes: frozen commands, checked when they are made."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import tenacity
from naming import named

from pgworkflows.commands import (
    Command,
    DelayCommand,
    PauseCommand,
    PollCommand,
    RunCommand,
    Step,
    StepContext,
    WaitForCommand,
    WaitUntilCommand,
)
from pgworkflows.history import StepKind

step = Step(
    StepContext(
        run_id=UUID(int=1),
        workflow_id="w",
        resource_id=None,
        attempt=1,
        input=None,
        timeline={},
        schedule=None,
        logger=logging.LoggerAdapter(logging.getLogger("test")),
    )
)


def add(a: int, b: int = 0) -> int:
    return a + b


COMMANDS: dict[StepKind, Command[Any]] = {
    StepKind.RUN: step.run("a", add, 1),
    StepKind.WAIT_FOR: step.wait_for("a", "paid"),
    StepKind.WAIT_UNTIL: step.wait_until("a", "2030-01-01T00:00:00Z"),
    StepKind.DELAY: step.delay("a", 1),
    StepKind.PAUSE: step.pause("a"),
    StepKind.POLL: step.poll("a", add, 1),
}
MAKERS: list[Callable[[Any], Any]] = [
    lambda name: step.run(name, add, 1),
    lambda name: step.wait_for(name, "paid"),
    lambda name: step.wait_until(name, "2030-01-01T00:00:00Z"),
    lambda name: step.delay(name, 1),
    lambda name: step.sleep(name, 1),
    lambda name: step.pause(name),
    lambda name: step.poll(name, add, 1),
]


@pytest.mark.parametrize(("kind", "command"), COMMANDS.items())
def test_a_command_knows_its_kind_and_is_frozen(kind: StepKind, command: Command[Any]) -> None:
    assert command.kind == kind
    assert command.id == "a"
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.id = "b"  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("command", COMMANDS.values(), ids=named)
def test_a_command_has_no_truth_value(command: Command[Any]) -> None:
    with pytest.raises(TypeError, match="no truth value: yield it"):
        bool(command)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=named)
def test_yield_from_yields_the_command_itself_and_gives_what_is_sent(command: Command[Any]) -> None:
    generator = iter(command)
    assert next(generator) is command
    with pytest.raises(StopIteration) as stop:
        generator.send("result")
    assert stop.value.value == "result"


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("id", "error"),
    [
        ("", ValueError),
        ("a" * 257, ValueError),
        ("a\0", ValueError),
        ("\ud800", ValueError),
        (5, TypeError),
        (None, TypeError),
    ],
)
def test_step_ids_are_checked(make: Callable[[Any], Any], id: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="a step id"):
        make(id)


def test_run_keeps_function_and_arguments() -> None:
    command = step.run("a", add, 1, b=2)
    assert command == command
    assert (command.fn, command.args, command.kwargs) == (add, (1,), {"b": 2})
    assert command.retry_policy is None
    assert command.call_timeout is None


def test_run_passes_keywords_of_any_name() -> None:
    def named(id: int, fn: int, self: int) -> int:
        return id + fn + self

    command = step.run("a", named, id=1, fn=2, self=3)
    assert command.fn(*command.args, **command.kwargs) == 6


def test_retry_and_timeout_make_new_commands() -> None:
    plain = step.run("a", add, 1)
    command = plain.retry(attempts=5, wait="10s", on=OSError, not_on=ConnectionError).timeout("1m")
    assert plain.retry_policy is None
    assert plain.call_timeout is None
    assert command.call_timeout == timedelta(minutes=1)
    policy = command.retry_policy
    assert policy is not None
    assert (policy.attempts, policy.on, policy.not_on) == (5, (OSError,), (ConnectionError,))
    assert policy.pause_after(1, OSError()) == timedelta(seconds=10)
    assert step.run("a", add, 1).timeout(5).retry().call_timeout == timedelta(seconds=5)


def test_retry_takes_tenacitys_strategies_and_three_attempts_by_default() -> None:
    strategy = tenacity.wait_fixed(7)
    policy = step.run("a", add, 1).retry(wait=strategy).retry_policy
    assert policy is not None
    assert policy.wait is strategy
    assert policy.attempts == 3


async def asynchronous() -> None: ...


@pytest.mark.parametrize("fn", [None, 5, "add", COMMANDS[StepKind.RUN], asynchronous, functools.partial(asynchronous)])
def test_a_step_needs_a_function_that_is_not_async(fn: Any) -> None:
    with pytest.raises(TypeError, match="step 'a' "):
        step.run("a", fn)
    with pytest.raises(TypeError, match="step 'a' "):
        step.poll("a", fn)


def test_waits_and_delays_are_parsed_when_they_are_made() -> None:
    event = step.wait_for("a", "paid", timeout="24 hours", schema=int)
    assert isinstance(event, WaitForCommand)
    assert (event.event_name, event.wait_timeout, event.schema) == ("paid", timedelta(days=1), int)
    moment = step.wait_until("a", "2030-01-01T01:00:00+01:00")
    assert isinstance(moment, WaitUntilCommand)
    assert moment.when == datetime(2030, 1, 1, tzinfo=UTC)
    assert isinstance(step.delay("a", 0), DelayCommand)
    assert step.sleep("a", "PT5M").duration == timedelta(minutes=5)
    assert isinstance(step.pause("a"), PauseCommand)


def test_poll_calls_every_thirty_seconds_by_default() -> None:
    command = step.poll("a", add, 1, 2)
    assert isinstance(command, PollCommand)
    assert (command.args, command.interval, command.poll_timeout) == ((1, 2), timedelta(seconds=30), None)
    assert step.poll("a", add, 1, interval=1, timeout="1h").poll_timeout == timedelta(hours=1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: step.poll("a", add, 1, interval=0.5), "at least 1 second"),
        (lambda: step.poll("a", add, 1, interval=0), "greater than zero"),
        (lambda: step.poll("a", add, 1, timeout=0), "greater than zero"),
        (lambda: step.wait_for("a", "paid", timeout=0), "greater than zero"),
        (lambda: step.wait_for("a", ""), "an event name"),
        (lambda: step.delay("a", -1), "negative"),
        (lambda: step.delay("a", "1 month"), "no fixed length"),
        (lambda: step.wait_until("a", datetime(2030, 1, 1)), "no UTC offset"),  # noqa: DTZ001  (naive on purpose)
        (lambda: step.run("a", add, 1).timeout("0s"), "greater than zero"),
        (lambda: step.run("a", add, 1).retry(attempts=0), "at least 1"),
    ],
)
def test_bad_options_are_refused_when_the_command_is_made(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_commands_are_told_apart_by_identity_so_arguments_may_be_anything() -> None:
    assert step.run("a", len, []) != step.run("a", len, [])
    assert hash(step.run("a", len, []))
    assert isinstance(step.run("a", len, []), RunCommand)
